"""A voxel of the NIfTI file lies where its DICOM header says and has the value it says, or the export is refused with why."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from catalog import Archive, CatalogError, LabelSet, deterministic_uid, import_nifti, seg
from catalog.export import ExportReport, export_nifti, files_under

Data = Callable[[str], Path]
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SPACING = (0.8, 0.5)


def decimals(values: Sequence[float]) -> list[str]:
    return [format_number_as_ds(float(value)) for value in values]


def header(position: Sequence[float], orientation: Sequence[float] = AXIAL, spacing: Sequence[float] = SPACING) -> Any:
    made = pydicom.Dataset()
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", generate_uid()
    made.SeriesInstanceUID, made.FrameOfReferenceUID, made.Modality = "1.2.3", "1.2.4", "CT"
    made.ImagePositionPatient, made.ImageOrientationPatient = decimals(position), decimals(orientation)
    made.PixelSpacing, made.SliceThickness = decimals(spacing), "2.5"
    return made


def written(made: Any, pixels: np.ndarray, path: Path) -> Path:
    made.Rows, made.Columns = pixels.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8 * pixels.itemsize
    made.HighBit, made.PixelRepresentation = made.BitsAllocated - 1, int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes()
    made["PixelData"].VR = "OW"
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def series(folder: Path, positions: Sequence[Sequence[float]], stack: np.ndarray | None = None, **told: Any) -> Path:
    """A file a slice; ``told`` are attributes, a list of them where they differ by slice."""
    stack = np.arange(len(positions) * 20, dtype=np.int16).reshape(-1, 4, 5) if stack is None else stack
    for number, (position, pixels) in enumerate(zip(positions, stack, strict=True)):
        made = header(position)
        for keyword, value in told.items():
            setattr(made, keyword, value[number] if isinstance(value, list) else value)
        written(made, pixels, folder / f"{number:03d}.dcm")
    return folder


def exported(folder: Path, **options: Any) -> tuple[ExportReport, nibabel.Nifti1Image, np.ndarray]:
    out = folder.parent / f"{folder.name}.nii.gz"
    report = export_nifti(files_under(folder), out, about=str(folder), **options)
    image = nibabel.load(out)
    return report, image, np.asarray(image.dataobj)


def refused(folder: Path, **options: Any) -> str:
    out = folder.parent / "refused.nii.gz"
    with pytest.raises(CatalogError) as problem:
        export_nifti(files_under(folder), out, about=str(folder), **options)
    assert not out.exists()
    return str(problem.value)


angles = st.floats(-180, 180, allow_nan=False)
lengths = st.floats(0.2, 9.0)
places = st.floats(-900, 900)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    turns=st.tuples(angles, angles, angles),
    spacing=st.tuples(lengths, lengths, lengths),
    corner=st.tuples(places, places, places),
    order=st.permutations(range(4)),
)
def test_every_voxel_lies_where_its_header_says(
    tmp_path: Path, turns: Sequence[float], spacing: Sequence[float], corner: Sequence[float], order: Sequence[int]
) -> None:
    from scipy.spatial.transform import Rotation

    axes = Rotation.from_euler("zyx", turns, degrees=True).as_matrix()
    folder, stack = tmp_path / "in", np.arange(60, dtype=np.int16).reshape(4, 3, 5)
    shutil.rmtree(folder, ignore_errors=True)
    for number, place in enumerate(order):
        position = np.array(corner) + axes[:, 2] * spacing[2] * place
        written(header(position, axes[:, :2].T.ravel(), spacing[:2]), stack[place], folder / f"{number}.dcm")
    report, image, voxels = exported(folder, force=True)
    for path in folder.iterdir():
        said = pydicom.dcmread(path)
        along, down = np.array(said.ImageOrientationPatient, float).reshape(2, 3)
        for row, column in itertools.product((0, 2), (0, 4)):
            place = said.ImagePositionPatient + down * said.PixelSpacing[0] * row + along * said.PixelSpacing[1] * column
            world = TO_RAS @ [*place, 1]
            index = np.linalg.solve(np.array(report.affine), world)[:3]
            np.testing.assert_allclose(index, np.rint(index), atol=1e-6)
            assert voxels[tuple(np.rint(index).astype(int))] == said.pixel_array[row, column]
    np.testing.assert_array_equal(image.get_sform(), np.array(report.affine, np.float32))
    assert image.header["sform_code"] == 1
    if image.header["qform_code"]:
        corners = np.array([[*index, 1] for index in itertools.product((0, 4), (0, 2), (0, 3))])
        apart = np.linalg.norm(corners @ (image.get_qform() - report.affine)[:3].T, axis=1)
        assert apart.max() < 0.011 * min(spacing)
    assert image.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize(
    ("orientation", "step", "affine"),
    [
        (AXIAL, (0, 0, 2.5), [[-0.5, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 2.5, -30]]),
        ((0, 1, 0, 0, 0, -1), (-3, 0, 0), [[0, 0, 3, 10], [-0.5, 0, 0, 20], [0, -0.8, 0, -30]]),  # sagittal
        ((1, 0, 0, 0, 0, -1), (0, 3, 0), [[-0.5, 0, 0, 10], [0, 0, -3, 20], [0, -0.8, 0, -30]]),  # coronal
    ],
)
@pytest.mark.parametrize("backwards", [False, True])
def test_affines_worked_out_by_hand(
    orientation: Sequence[float], step: Sequence[float], affine: list[list[float]], backwards: bool, tmp_path: Path
) -> None:
    positions = [np.array([-10, -20, -30]) + np.array(step) * number for number in range(4)]
    told = {"ImageOrientationPatient": [decimals(orientation)] * 4}
    report, image, voxels = exported(series(tmp_path / "in", positions[:: -1 if backwards else 1], **told))
    np.testing.assert_array_equal(report.affine, [*affine, [0, 0, 0, 1]])
    for held in (image.get_sform(coded=True), image.get_qform(coded=True)):
        np.testing.assert_allclose(held[0], report.affine, atol=1e-6)
        assert held[1] == 1
    numbers = np.arange(80).reshape(4, 4, 5)
    np.testing.assert_array_equal(voxels.transpose(2, 1, 0), numbers[::-1] if backwards else numbers)


def test_a_cohort_goes_out_as_it_came_in(tmp_path: Path) -> None:
    affine = np.array([[0.7, 0, 0, 11.5], [0, 0.7, 0, -3.25], [0, 0, 3.1, 70.125], [0, 0, 0, 1]], np.float32).astype(float)
    array = np.random.default_rng(1).integers(-1024, 3000, (9, 8, 7)).astype(np.int16)
    (tmp_path / "cohort/images").mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "cohort/images/a.nii.gz")
    import_nifti(tmp_path / "cohort", tmp_path / "dicom")
    _, image, voxels = exported(tmp_path / "dicom" / "images")
    assert voxels.dtype == np.int16
    np.testing.assert_array_equal(voxels, array)
    np.testing.assert_allclose(image.affine, affine, rtol=0, atol=1e-6)


POSITIONS = [(0, 0, 2.0 * number) for number in range(3)]


@pytest.mark.parametrize(
    ("kind", "scale", "expected"),
    [
        (np.int16, {}, np.int16),
        (np.uint8, {}, np.uint8),
        (np.uint16, {"RescaleSlope": "1", "RescaleIntercept": "-1024"}, np.int16),
        (np.uint16, {"RescaleSlope": "1", "RescaleIntercept": "60000"}, np.uint16),
        (np.uint16, {"RescaleSlope": "1", "RescaleIntercept": "65500"}, np.int32),
        (np.uint16, {"RescaleSlope": "0.5", "RescaleIntercept": "-1"}, np.float32),
        (np.uint16, {"RescaleSlope": ["1.25", "2.5", "0.3"], "RescaleIntercept": "0"}, np.float32),
        (np.int16, {"RescaleSlope": ["1", "2", "3"], "RescaleIntercept": "5"}, np.int16),
        (np.uint32, {"RescaleSlope": "0.001", "RescaleIntercept": "0"}, np.float64),
    ],
)
def test_values_are_those_of_the_rescale_whole_where_it_is(
    kind: type, scale: dict[str, Any], expected: type, tmp_path: Path
) -> None:
    stack = np.arange(60).reshape(3, 4, 5).astype(kind)
    report, image, voxels = exported(series(tmp_path / "in", POSITIONS, stack, RescaleType="HU", **scale))
    slope, shift = (
        np.broadcast_to(np.array(scale.get(keyword, default), float), 3).reshape(3, 1, 1)
        for keyword, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
    )
    assert voxels.dtype == image.get_data_dtype() == expected and report.unit == "HU"
    assert (image.dataobj.slope, image.dataobj.inter) == (1, 0)
    np.testing.assert_array_equal(voxels.transpose(2, 1, 0), (stack * slope + shift).astype(expected))


def test_a_modality_lut_gives_the_values(tmp_path: Path) -> None:
    lut = pydicom.Dataset()
    lut.add_new("LUTDescriptor", "US", [60, 0, 16])
    lut.add_new("LUTData", "US", (np.arange(60) * 7 + 1000).tolist())
    _, _, voxels = exported(
        series(tmp_path / "in", POSITIONS, np.arange(60, dtype=np.uint16).reshape(3, 4, 5), ModalityLUTSequence=[[lut]] * 3)
    )
    np.testing.assert_array_equal(voxels.transpose(2, 1, 0).ravel(), np.arange(60) * 7 + 1000)


def field(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Something linear in space, that linear interpolation gives back exactly."""
    return 100 + 3 * x - 2 * y + 5 * z


def sampled(positions: Sequence[Sequence[float]], shape: tuple[int, int] = (12, 14)) -> np.ndarray:
    """``field`` in the voxels of axial slices (slices, rows, columns), in hundredths."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    slices = [field(p[0] + columns * SPACING[1], p[1] + rows * SPACING[0], np.full(shape, float(p[2]))) for p in positions]
    return np.rint(np.array(slices) * 100).astype(np.int32)


def assert_field(image: nibabel.Nifti1Image, voxels: np.ndarray, *, inside: float) -> None:
    """The voxels are the field at their places, but for those outside every slice, which have the lowest value."""
    index = np.stack([*np.indices(voxels.shape), np.ones(voxels.shape)], axis=-1)
    x, y, z, _ = np.moveaxis(index @ (TO_RAS @ image.affine).T, -1, 0)
    right = np.abs(voxels - field(x, y, z)) < 0.02
    assert right.mean() >= inside
    assert np.isin(voxels[~right], voxels.min()).sum() >= 0.9 * (~right).sum()


def test_a_tilted_gantry_is_refused_or_straightened(tmp_path: Path) -> None:
    positions = [(0, 0.53 * number, 2.5 * number) for number in range(6)]
    told = {"RescaleSlope": "0.01", "RescaleIntercept": "0", "GantryDetectorTilt": "-12"}
    folder = series(tmp_path / "in", positions, sampled(positions), **told)
    said = refused(folder)
    for word in ("gantry was tilted", "2.65 mm", "11.969°", "GantryDetectorTilt says -12", "--resample", str(folder)):
        assert word in said
    report, image, voxels = exported(folder, resample=True)
    assert report.resampled and "tilted" in report.warnings[0]
    np.testing.assert_allclose(report.affine, [[-0.5, 0, 0, 0], [0, -0.8, 0, 0], [0, 0, 2.5, 0], [0, 0, 0, 1]], atol=1e-12)
    assert report.shape == (14, 16, 6) and voxels.dtype == np.float32  # 2.65 mm are four rows more
    assert_field(image, voxels, inside=0.68)


def test_a_tilt_too_small_for_other_readers_is_still_seen(tmp_path: Path) -> None:
    positions = [(0, 0.02 * number, 2.5 * number) for number in range(30)]
    assert "0.458° off their normal, 0.58 mm over all" in refused(series(tmp_path / "in", positions))


def test_uneven_spacing_is_refused_or_evened_out(tmp_path: Path) -> None:
    positions = [(0, 0, z) for z in (0, 2, 4, 5.2, 7.2, 9.2)]
    folder = series(tmp_path / "in", positions, sampled(positions), RescaleSlope="0.01", RescaleIntercept="0")
    assert "mostly 2 mm, but 1.2 mm between 002.dcm and 003.dcm (ImagePositionPatient)" in refused(folder)
    report, image, voxels = exported(folder, resample=True)
    assert voxels.shape[2] == 5 and report.affine[2][2] == 2.0
    assert_field(image, voxels, inside=1.0)


def test_missing_slices_are_refused_or_interpolated_with_a_count(tmp_path: Path) -> None:
    positions = [(0, 0, 2.0 * number) for number in (0, 1, 2, 5, 6, 8)]
    folder = series(tmp_path / "in", positions, sampled(positions), RescaleSlope="0.01", RescaleIntercept="0")
    assert "3 slices are missing: steps of 2 mm, but 6 mm between 002.dcm and 003.dcm" in refused(folder)
    report, image, voxels = exported(folder, resample=True)
    assert voxels.shape[2] == 9 and "interpolated the 3 missing of 9 slices" in report.warnings
    assert_field(image, voxels, inside=1.0)
    for index, slice_ in zip((0, 1, 2, 5, 6, 8), sampled(positions), strict=True):
        np.testing.assert_array_equal(voxels[..., index].T, (slice_ * 0.01).astype(np.float32))


def test_a_slice_beside_the_others_is_named(tmp_path: Path) -> None:
    folder = series(tmp_path / "in", [(0, 0, 0), (0, 0, 2), (1.5, 0, 4), (0, 0, 6)])
    assert "002.dcm lies 1.500 mm beside the line of the others (ImagePositionPatient)" in refused(folder)


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "echoes": ({"EchoTime": ["2.3", "4.6", "2.3", "4.6"]}, ["several volumes", "4 slices at 2 places", "EchoTime (2.3, 4.6"]),
    "localizer": (
        {"ImageType": [["ORIGINAL", "PRIMARY", "LOCALIZER"]] + [["ORIGINAL", "PRIMARY", "AXIAL"]] * 3},
        ["localizer", "000.dcm"],
    ),
    "orientation": (
        {"ImageOrientationPatient": [decimals(AXIAL)] * 3 + [["0", "1", "0", "0", "0", "-1"]]},
        ["differ in ImageOrientation", "003.dcm"],
    ),
    "spacing": ({"PixelSpacing": [["1", "1"]] * 3 + [["1", "1.1"]]}, ["differ in PixelSpacing", "003.dcm"]),
    "frame of reference": ({"FrameOfReferenceUID": ["1.2", "1.2", "1.9", "1.2"]}, ["differ in FrameOfReferenceUID", "1.9"]),
    "series": ({"SeriesInstanceUID": ["1.2", "1.2", "1.9", "1.9"]}, ["2 series: 1.2, 1.9"]),
    "no position": ({"ImagePositionPatient": None}, ["no ImagePositionPatient"]),
    "garbled": ({"PixelSpacing": "1"}, ["no PixelSpacing"]),
    "slope": ({"RescaleSlope": "0", "RescaleIntercept": "0"}, ["RescaleSlope 0"]),
    "not right-angled": ({"ImageOrientationPatient": [["1", "0", "0", "0.1", "1", "0"]] * 4}, ["ImageOrientationPatient"]),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("resample", [False, True])
def test_what_is_not_one_volume_is_refused_by_name(what: str, resample: bool, tmp_path: Path) -> None:
    told, words = REFUSED[what]
    positions = [(0, 0, 2.0 * (number // 2 if what == "echoes" else number)) for number in range(4)]
    said = refused(series(tmp_path / "in", positions, **told), resample=resample)
    for word in words:
        assert word in said, said


def test_a_qform_that_cannot_hold_the_affine_is_left_out(tmp_path: Path) -> None:
    turn = np.radians(0.05)
    told = {"ImageOrientationPatient": [decimals((np.cos(turn), np.sin(turn), 0, -np.sin(turn), np.cos(turn), 0))] * 3}
    report, image, _ = exported(series(tmp_path / "in", POSITIONS, np.zeros((3, 400, 300), np.uint8), **told))
    assert image.header["qform_code"] == 0
    np.testing.assert_allclose(image.affine, report.affine, rtol=1e-7)


def test_a_garbled_number_is_no_traceback(tmp_path: Path) -> None:
    folder = series(tmp_path / "in", POSITIONS, RescaleSlope="7.25", RescaleIntercept="0")
    (folder / "001.dcm").write_bytes((folder / "001.dcm").read_bytes().replace(b"7.25", b"x.25"))
    assert "headers are not as they should be" in refused(folder)


def test_files_without_a_picture_are_passed_over_aloud(tmp_path: Path) -> None:
    folder = series(tmp_path / "in", POSITIONS)
    (folder / "readme.txt").write_text("about this series, in a file that is no DICOM" * 9)
    report, _, voxels = exported(folder)
    assert voxels.shape == (5, 4, 3) and "readme.txt: not a DICOM file" in report.warnings[0]
    (folder / "001.dcm").write_bytes((folder / "001.dcm").read_bytes()[:-9])
    assert "001.dcm" in refused(folder)


def test_nothing_is_replaced_unless_asked(tmp_path: Path) -> None:
    folder = series(tmp_path / "in", POSITIONS)
    exported(folder)
    before = (tmp_path / "in.nii.gz").read_bytes()
    with pytest.raises(CatalogError, match=r"there already.*--force"):
        exported(folder)
    exported(folder, force=True)
    assert (tmp_path / "in.nii.gz").read_bytes() == before
    with pytest.raises(CatalogError, match="does not end in"):
        export_nifti(files_under(folder), tmp_path / "in.mha", about="")


def test_a_multi_frame_image_is_the_same_volume_as_its_slices(tmp_path: Path) -> None:
    stack = np.arange(80, dtype=np.uint16).reshape(4, 4, 5)
    positions = [(1, 2, 2.0 * number) for number in range(4)]
    exported(series(tmp_path / "single", positions, stack, RescaleSlope="1", RescaleIntercept="-20"))
    made = header((0, 0, 0))
    shared, made.NumberOfFrames = pydicom.Dataset(), 4
    for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence"):
        setattr(shared, keyword, [pydicom.Dataset()])
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = made.ImageOrientationPatient
    shared.PixelMeasuresSequence[0].PixelSpacing = made.PixelSpacing
    shared.PixelValueTransformationSequence[0].RescaleSlope = "1"
    shared.PixelValueTransformationSequence[0].RescaleIntercept = "-20"
    each, order = [], [2, 0, 3, 1]
    for place in order:
        frame, plane = pydicom.Dataset(), pydicom.Dataset()
        plane.ImagePositionPatient, frame.PlanePositionSequence = decimals(positions[place]), [plane]
        each.append(frame)
    made.SharedFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence = [shared], each
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(made, keyword)
    written(made, stack[order], tmp_path / "multi" / "one.dcm")
    exported(tmp_path / "multi")
    assert (tmp_path / "multi.nii.gz").read_bytes() == (tmp_path / "single.nii.gz").read_bytes()


def test_a_segmentation_becomes_a_label_map_in_its_place(
    stored: Callable[..., tuple[Archive, str]], labels: LabelSet, affine: np.ndarray, tmp_path: Path
) -> None:
    archive, uid = stored(affine)
    like = archive.volume(uid)
    array = np.zeros(like.spatial_shape, np.uint8)
    array[1:3, 2:5, 3:8], array[3, 1, 6] = 1, 7
    told = {"sop_uid": deterministic_uid("a"), "series_uid": deterministic_uid("b"), "description": "", "author": "x"}
    (tmp_path / "seg").mkdir()
    seg.encode(like.with_array(array), archive.sources(uid), labels, **told).save_as(tmp_path / "seg" / "seg.dcm")
    report, image, voxels = exported(tmp_path / "seg")
    assert report.segments == {1: "Liver", 2: "Spleen"} and voxels.dtype == np.uint8
    for value, number in ((1, 1), (7, 2)):
        index = np.argwhere(array == value)
        placed = like.map_indices_to_reference(index)
        found = np.argwhere(voxels == number)
        lps = nibabel.affines.apply_affine(TO_RAS @ image.affine, found)
        np.testing.assert_allclose(lps[np.lexsort(lps.T.round(2))], placed[np.lexsort(placed.T.round(2))], atol=1e-3)


@pytest.mark.parametrize(
    "folder",
    [
        "acrin_nsclc_petct_seg/CT_CT-IMAGES_94858561",
        "acrin_nsclc_petct_seg/PT_PET-AC_61081015",
        "totalsegmentator_ct/ct_dicom_j2k",
    ],
)
def test_real_series(folder: str, data: Data, tmp_path: Path) -> None:
    source = data(folder.split("/")[0]) / folder.split("/")[1]
    report = export_nifti(files_under(source), tmp_path / "out.nii.gz", about=folder)
    image = nibabel.load(tmp_path / "out.nii.gz")
    headers = [pydicom.dcmread(path) for path in sorted(source.glob("*.dcm"))]
    assert image.shape[2] == len(headers) and report.unit == ("BQML" if "PT" in folder else "HU")
    assert report.off_grid < 0.02
    for said in headers[:: len(headers) // 4]:
        index = np.linalg.solve(np.array(report.affine), TO_RAS @ [*said.ImagePositionPatient, 1])[:3]
        np.testing.assert_allclose(index, [0, 0, round(index[2])], atol=0.01)
        exact = said.pixel_array * np.float64(said.RescaleSlope) + np.float64(said.RescaleIntercept)
        np.testing.assert_array_equal(np.asarray(image.dataobj[..., round(index[2])]).T, exact.astype(image.get_data_dtype()))


def test_the_command(stored: Callable[..., tuple[Archive, str]], tmp_path: Path) -> None:
    archive, uid = stored()

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "voxloop", "export", *words, "--home", str(archive.home), "--json"]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        )

    done = run(uid, "--nifti")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["out"] == f"{uid}.nii.gz" and told["shape"] == list(archive.volume(uid).spatial_shape[::-1])
    assert (tmp_path / told["out"]).exists()
    for words, reason in {
        (uid, "--nifti"): "there already",
        (uid,): "add --nifti",
        ("1.2.3", "--nifti"): "no such series",
        ("nowhere", "--nifti"): "neither a UID nor a path",
    }.items():
        failed = run(*words)
        assert failed.returncode == 1 and reason in failed.stderr and "Traceback" not in failed.stderr
