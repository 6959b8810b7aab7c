"""Outlines that exist become label revisions voxel for voxel, once; what does not fit is refused with the reason."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset

from catalog import (
    Archive,
    CatalogError,
    Imported,
    LabelSet,
    Project,
    Split,
    Structure,
    Submission,
    current,
    deterministic_uid,
    import_labels,
    mask,
    seg,
    submit,
)
from catalog.rtstruct import RT_STRUCTURE_SET

Stored = Callable[..., tuple[Archive, str]]
SPLEEN = ("SCT", "78961009", "Spleen")
THEIRS = LabelSet(
    "theirs",
    (
        Structure("LIVER", 1, ("SCT", "85756007", "Tissue"), (1, 2, 3)),
        Structure("Milz", 2, SPLEEN, (1, 2, 3)),
        Structure("Segment 3", 3, ("SCT", "85756007", "Tissue"), (1, 2, 3)),
    ),
)


@pytest.fixture
def project(labels: LabelSet) -> Project:
    """Every image series."""
    cohort = "SELECT SeriesInstanceUID, StudyInstanceUID, PatientID FROM series WHERE is_image"
    return Project("p", cohort, labels, {}, Split(0.1, 0.3, "s"), "m", 0.02)


def drawn(shape: tuple[int, ...]) -> np.ndarray:
    """Liver (1) and spleen (7) as the project has them."""
    array = np.zeros(shape, np.uint8)
    array[1:4, 2:6, 3:8] = 1
    array[3, 6:8, 1:3] = 7
    return array


def as_theirs(array: np.ndarray) -> np.ndarray:
    return np.array([0, 1, 3, 0, 0, 0, 0, 2], np.uint8)[array]


def write_seg(
    archive: Archive, uid: str, path: Path, array: np.ndarray, labels: LabelSet = THEIRS, *, author: str = "Curie^Marie"
) -> Path:
    like = archive.geometry(uid)
    told = {"sop_uid": deterministic_uid("theirs", str(path)), "series_uid": deterministic_uid("theirs series", str(path))}
    made = seg.encode(like.with_array(array), archive.sources(uid), labels, **told, description="theirs", author=author)
    made.ContentCreatorName = author
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def write_nifti(volume: "hd.Volume", path: Path, dtype: Any = np.uint8) -> Path:
    """As other tools write it: RAS, axes (column, row, slice)."""
    affine = np.diag([-1.0, -1, 1, 1]) @ volume.affine[:, [2, 1, 0, 3]]
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume.array.transpose(2, 1, 0).astype(dtype), affine), path)
    return path


def only(archive: Archive, project: Project, *paths: Path, **given: Any) -> Imported:
    [one] = import_labels(archive, project, paths, **given).sources
    return one


def label_map(archive: Archive, project: Project, uid: str) -> np.ndarray:
    found: np.ndarray = mask(archive, current(archive, project.key, drafts=True)[uid], project.label_set).array
    return found


def test_a_segmentation_becomes_a_revision(
    stored: Stored, project: Project, affine: np.ndarray, dciodvfy: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    archive, uid = stored(affine)
    array = drawn(archive.geometry(uid).spatial_shape)
    one = only(archive, project, write_seg(archive, uid, tmp_path / "theirs.dcm", as_theirs(array)))
    assert (one.outcome, one.reason, one.series_uid, one.unmatched) == ("added", "", uid, ("Segment 3",))
    np.testing.assert_array_equal(label_map(archive, project, uid), array)
    revision = current(archive, "p")[uid]
    assert (revision.author, revision.role, revision.status) == ("Curie Marie", "imported", "submitted")
    ours = next((archive.home / "volume" / "labels").rglob("*.dcm"))
    assert [segment.SegmentLabel for segment in pydicom.dcmread(ours).SegmentSequence] == ["Liver", "Spleen"]
    assert dciodvfy(ours) == []
    volume = archive.geometry(uid).voxel_volume
    assert one.volumes_ml == pytest.approx({"Liver": 60 * volume / 1000, "Spleen": 4 * volume / 1000})


def test_the_same_source_again_adds_nothing(stored: Stored, project: Project, tmp_path: Path) -> None:
    archive, uid = stored()
    path = write_seg(archive, uid, tmp_path / "theirs.dcm", as_theirs(drawn(archive.geometry(uid).spatial_shape)))
    first = only(archive, project, path)
    versions = archive.objects.version(), archive.labels.version(), archive.features.version()
    again = only(archive, project, path)
    assert (again.outcome, again.label_id, again.states) == ("already", first.label_id, first.states)
    assert (archive.objects.version(), archive.labels.version(), archive.features.version()) == versions
    other = only(archive, project, path, mapping={"segment 3": "Spleen"})
    assert other.outcome == "added"
    assert current(archive, "p")[uid].parent == first.label_id


def test_what_the_source_does_not_say_is_not_annotated_and_what_is_empty_is_absent(
    stored: Stored, project: Project, tmp_path: Path
) -> None:
    archive, uid = stored()
    array = drawn(archive.geometry(uid).spatial_shape)
    lone = LabelSet("lone", THEIRS.structures[:1])
    one = only(archive, project, write_seg(archive, uid, tmp_path / "lone.dcm", (array == 1).astype(np.uint8), lone))
    assert one.states == {"Liver": "present", "Spleen": "not_annotated"}
    path = write_seg(archive, uid, tmp_path / "empty.dcm", np.zeros(array.shape, np.uint8))
    assert only(archive, project, path).states == {"Liver": "absent", "Spleen": "absent"}


def test_those_of_the_catalog_are_found(stored: Stored, project: Project, tmp_path: Path) -> None:
    """Not our own labels, and not those of series outside the cohort."""
    archive, uid = stored()
    _, other = stored(case="two", patient="P2")
    array = drawn(archive.geometry(uid).spatial_shape)
    theirs = [write_seg(archive, one, tmp_path / f"{one}.dcm", as_theirs(array)) for one in (uid, other)]
    archive.store([pydicom.dcmread(path) for path in theirs], folder="stow", writer="theirs")
    narrow = replace(project, cohort=project.cohort + f" AND SeriesInstanceUID = '{uid}'")
    [one] = import_labels(archive, narrow).sources
    assert (one.series_uid, one.outcome) == (uid, "added")
    done = import_labels(archive, project)
    assert sorted((one.series_uid, one.outcome) for one in done.sources) == sorted([(uid, "already"), (other, "added")])
    ours = next((archive.home / "volume" / "labels").rglob("*.dcm"))
    assert "a label of this home" in only(archive, project, ours).reason


def test_a_readers_work_is_not_hidden(stored: Stored, project: Project, tmp_path: Path) -> None:
    archive, uid = stored()
    like = archive.geometry(uid)
    empty = like.with_array(np.zeros(like.spatial_shape, np.uint8))
    reader = submit(archive, "p", project.label_set, Submission(uid, empty, {"Liver": "absent", "Spleen": "absent"}, "Anna"))
    path = write_seg(archive, uid, tmp_path / "theirs.dcm", as_theirs(drawn(like.spatial_shape)))
    one = only(archive, project, path)
    assert one.outcome == "refused" and "label by Anna" in one.reason and "--status draft" in one.reason
    assert only(archive, project, path, status="draft").outcome == "added"
    assert current(archive, "p")[uid] == reader


def test_overlap_is_refused_unless_it_is_one_structure(stored: Stored, project: Project, tmp_path: Path) -> None:
    archive, uid = stored()
    shape = archive.geometry(uid).spatial_shape
    frames = np.zeros((*shape, 2), np.uint8)
    frames[2, 2:6, 2:6, 0] = 1
    frames[2, 4:8, 4:8, 1] = 1
    path = write_own(archive, uid, tmp_path / "overlap.dcm", frames, "BINARY", ("Liver", "Milz"))
    one = only(archive, project, path)
    assert one.outcome == "refused" and "'Liver' and 'Milz' overlap in 4 voxels" in one.reason
    assert only(archive, project, path, mapping={"Milz": "Liver"}).outcome == "added"
    assert np.count_nonzero(label_map(archive, project, uid)) == 16 + 16 - 4


def test_a_fractional_segmentation_counts_from_a_threshold(stored: Stored, project: Project, tmp_path: Path) -> None:
    archive, uid = stored()
    shape = archive.geometry(uid).spatial_shape
    share = np.zeros((*shape, 1), np.float32)
    share[2, 2, 2:6, 0] = (0.2, 0.4, 0.6, 1.0)
    path = write_own(archive, uid, tmp_path / "fractional.dcm", share, "FRACTIONAL", ("Liver",))
    assert only(archive, project, path).volumes_ml["Liver"] == pytest.approx(2 * archive.geometry(uid).voxel_volume / 1000)
    assert only(archive, project, path, threshold=0.3, mapping={}).outcome == "added"
    assert np.count_nonzero(label_map(archive, project, uid)) == 3


def test_shares_below_the_threshold_are_not_absent(stored: Stored, project: Project, tmp_path: Path) -> None:
    archive, uid = stored()
    share = np.zeros((*archive.geometry(uid).spatial_shape, 2), np.float32)
    share[1:4, 2:6, 2:6, 0] = 0.4
    path = write_own(archive, uid, tmp_path / "faint.dcm", share, "FRACTIONAL", ("Liver", "Milz"), omit_empty_frames=False)
    one = only(archive, project, path)
    assert one.states == {"Liver": "not_annotated", "Spleen": "absent"}
    assert one.notes == ("Liver is outlined and has no voxel: not annotated, rather than absent",)


def test_contours_without_a_voxel_are_not_absent(stored: Stored, project: Project, tmp_path: Path) -> None:
    archive, uid = stored()
    speck = np.array([[2, 3.1, 3.1], [2, 3.1, 3.9], [2, 3.9, 3.9], [2, 3.9, 3.1]])
    square = np.array([[2, 1.5, 2.5], [2, 1.5, 7.5], [2, 5.5, 7.5], [2, 5.5, 2.5]])
    path = write_rtstruct(archive, uid, tmp_path / "rt.dcm", {"Liver": [square, square[::-1]], "Spleen": [speck]})
    one = only(archive, project, path)
    assert one.states == {"Liver": "present", "Spleen": "not_annotated"}
    assert one.notes == ("Spleen is outlined and has no voxel: not annotated, rather than absent",)
    assert np.count_nonzero(label_map(archive, project, uid)) == 4 * 5


def test_a_label_map_segmentation_is_read(stored: Stored, project: Project, tmp_path: Path) -> None:
    archive, uid = stored()
    array = drawn(archive.geometry(uid).spatial_shape)
    numbered = np.array([0, 1, 0, 0, 0, 0, 0, 2], np.uint8)[array]
    path = write_own(archive, uid, tmp_path / "labelmap.dcm", numbered, "LABELMAP", ("Liver", "Milz"))
    one = only(archive, project, path)
    assert (one.kind, one.outcome, one.unmatched) == ("SEG LABELMAP", "added", ())
    np.testing.assert_array_equal(label_map(archive, project, uid), array)


def write_own(
    archive: Archive, uid: str, path: Path, frames: np.ndarray, kind: str, names: tuple[str, ...], **given: Any
) -> Path:
    """As highdicom writes it, ``frames`` (slices, rows, columns[, segments])."""
    codes = {"Milz": hd.sr.CodedConcept("78961009", "SCT", "Spleen")}
    tissue = hd.sr.CodedConcept("85756007", "SCT", "Tissue")
    described = [
        hd.seg.SegmentDescription(number, name, tissue, codes.get(name, tissue), hd.seg.SegmentAlgorithmTypeValues.MANUAL)
        for number, name in enumerate(names, 1)
    ]
    sources = archive.sources(uid)
    sources[0].PatientName = "Doe^Jane"  # highdicom warns of names without a caret
    made = hd.seg.Segmentation(
        sources,
        frames,
        hd.seg.SegmentationTypeValues(kind),
        described,
        hd.UID(),
        1,
        hd.UID(),
        1,
        "Theirs",
        "Model",
        "1",
        "1",
        **({"max_fractional_value": 255} if kind == "FRACTIONAL" else {}),
        **given,
    )
    made.save_as(path, enforce_file_format=True)
    return path


def test_a_segmentation_of_some_slices_in_another_order_lies_where_it_was_drawn(
    stored: Stored, project: Project, affine: np.ndarray, tmp_path: Path
) -> None:
    archive, uid = stored(affine)
    like = archive.geometry(uid)
    array = drawn(like.spatial_shape)
    for name, volume in [
        ("flipped", like.with_array(array).flip_spatial([0, 2])),
        ("permuted", like.with_array(array).permute_spatial_axes([2, 0, 1])),
        ("cut", like.with_array(array)[1:4, 1:9]),
    ]:
        path = write_nifti(volume, tmp_path / f"{name}.nii.gz")
        assert only(archive, project, path, series=uid).outcome == "added", name
        np.testing.assert_array_equal(label_map(archive, project, uid), array)


@pytest.mark.parametrize("slices", [[3], [1, 3], [1, 2, 5]])
@pytest.mark.parametrize("spacing", ["said", "not said"])
def test_missing_slices_are_empty(slices: list[int], spacing: str, stored: Stored, project: Project, tmp_path: Path) -> None:
    """Also where the file does not say how far slices lie apart, as most do not, and where one slice has two segments."""
    archive, uid = stored()
    array = np.zeros(archive.geometry(uid).spatial_shape, np.uint8)
    array[slices, 2:5, 3:7] = 1
    array[slices, 6, 3:7] = 7
    path = write_seg(archive, uid, tmp_path / "sparse.dcm", as_theirs(array))
    if spacing == "not said":
        made = pydicom.dcmread(path)
        del made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
        made.save_as(path)
    assert only(archive, project, path).reason == ""
    np.testing.assert_array_equal(label_map(archive, project, uid), array)


def test_what_does_not_fit_is_refused_and_the_others_go_on(stored: Stored, project: Project, tmp_path: Path) -> None:
    archive, uid = stored()
    like = archive.geometry(uid)
    array = drawn(like.spatial_shape)
    write_seg(archive, uid, tmp_path / "in" / "good.dcm", as_theirs(array))
    reasons = {
        "coarse": (lambda a: a @ np.diag([2.0, 1, 1, 1]), "its spacing is 5 × 0.9 × 0.781235 mm, the image's 2.5"),
        "moved": (lambda a: a + np.array([[0, 0, 0, 0.3]] + [[0] * 4] * 3), "lie between the image's"),
        "away": (lambda a: a + np.outer([0, 0, 5.0, 0], [0, 0, 0, 1]), "voxels lie beyond the image"),
        "turned": (lambda a: np.array([[1, 0.1, 0, 0], [-0.1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ a, "turned against"),
    }
    for name, (change, _) in reasons.items():
        other = hd.Volume(array, change(like.affine), "PATIENT")
        write_nifti(other, tmp_path / "in" / f"{name}.nii.gz")
    write_nifti(like.with_array(array * 0.3), tmp_path / "in" / "shares.nii.gz", np.float32)
    elsewhere = pydicom.dcmread(tmp_path / "in" / "good.dcm")
    elsewhere.FrameOfReferenceUID = "9.9.9"
    elsewhere.save_as(tmp_path / "in" / "elsewhere.dcm")
    strange = pydicom.dcmread(tmp_path / "in" / "good.dcm")
    strange.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"
    strange.save_as(tmp_path / "in" / "strange.dcm")
    (tmp_path / "in" / "broken.dcm").write_bytes((tmp_path / "in" / "good.dcm").read_bytes()[:3000])
    (tmp_path / "in" / "notes.txt").write_text("not DICOM " * 100)
    with_csv = [["series_uid", "label"], *([uid, f"in/{name}.nii.gz"] for name in [*reasons, "shares"])]
    with (tmp_path / "nifti.csv").open("w", newline="") as file:
        csv.writer(file).writerows(with_csv)
    done = import_labels(archive, project, [tmp_path / "nifti.csv", tmp_path / "in"])
    said = {Path(one.source).name: one.reason for one in done.sources}
    for name, (_, why) in reasons.items():
        assert any(why in one.reason for one in done.sources if Path(one.source).name == f"{name}.nii.gz"), said
    assert any("not those of a label map" in one.reason for one in done.sources)
    assert "FrameOfReferenceUID is 9.9.9" in said["elsewhere.dcm"]
    assert "no case of the project" in said["strange.dcm"]
    assert said["broken.dcm"]
    assert (done.count("added"), done.passed_over) == (1, 1)
    np.testing.assert_array_equal(label_map(archive, project, uid), array)
    assert len(list((archive.home / "volume" / "labels").rglob("*.dcm"))) == 1


def test_a_broken_object_is_named_and_the_others_go_on(stored: Stored, project: Project, tmp_path: Path) -> None:
    archive, uid = stored()
    array = as_theirs(drawn(archive.geometry(uid).spatial_shape))
    whole = write_seg(archive, uid, tmp_path / "whole.dcm", array)
    broken = pydicom.dcmread(whole)
    del broken.SOPInstanceUID
    pydicom.dcmwrite(tmp_path / "broken.dcm", broken)
    first, second = import_labels(archive, project, [tmp_path / "broken.dcm", whole]).sources
    assert (first.outcome, second.outcome) == ("refused", "added")
    assert "broken.dcm" in first.reason


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1"])
def test_a_spreadsheets_file_is_read_or_refused_by_name(
    stored: Stored, project: Project, tmp_path: Path, encoding: str
) -> None:
    archive, uid = stored()
    write_seg(archive, uid, tmp_path / "müller.dcm", as_theirs(drawn(archive.geometry(uid).spatial_shape)))
    (tmp_path / "list.csv").write_text(f"series_uid,label\n{uid},müller.dcm\n", encoding=encoding)
    if encoding == "latin-1":
        with pytest.raises(CatalogError, match=r"list.csv: not a CSV file in UTF-8"):
            import_labels(archive, project, [tmp_path / "list.csv"])
    else:
        assert only(archive, project, tmp_path / "list.csv").outcome == "added"


def test_nothing_that_is_no_structure_is_guessed(stored: Stored, project: Project, tmp_path: Path) -> None:
    archive, uid = stored()
    shape = archive.geometry(uid).spatial_shape
    array = np.zeros(shape, np.uint8)
    array[2, 2, 2] = 1
    path = write_own(archive, uid, tmp_path / "unnamed.dcm", array, "BINARY", ("Segment_1",))
    one = only(archive, project, path)
    assert one.outcome == "refused" and "--map 'Segment_1'='Liver'" in one.reason
    assert only(archive, project, path, mapping={"segment_1": "spleen"}).states["Spleen"] == "present"
    with pytest.raises(CatalogError, match="'Lung' is no structure"):
        import_labels(archive, project, [path], mapping={"Segment_1": "Lung"})
    for given in ({"threshold": 0.0}, {"status": "final"}, {"series": "1.2.3"}):
        with pytest.raises(CatalogError):
            import_labels(archive, project, [path], **given)  # type: ignore[arg-type]
    with pytest.raises(CatalogError, match="no such file"):
        import_labels(archive, project, [tmp_path / "nowhere"])


def test_a_segment_with_a_side_is_not_matched_by_its_code(stored: Stored, project: Project, tmp_path: Path) -> None:
    archive, uid = stored()
    array = np.zeros(archive.geometry(uid).spatial_shape, np.uint8)
    array[2, 2, 2] = 1
    made = pydicom.dcmread(write_own(archive, uid, tmp_path / "sided.dcm", array, "BINARY", ("Milz",)))
    side = Dataset()
    side.CodeValue, side.CodingSchemeDesignator, side.CodeMeaning = "7771000", "SCT", "Left"
    segment = made.SegmentSequence[0]
    segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [side]
    made.save_as(tmp_path / "sided.dcm")
    assert "no structure of abdomen: 'Milz'" in only(archive, project, tmp_path / "sided.dcm").reason


def write_rtstruct(archive: Archive, uid: str, path: Path, rois: dict[str, list[np.ndarray]]) -> Path:
    """ROI → contours, points (slice, row, column)."""
    grid, source = archive.geometry(uid), archive.sources(uid)[0]
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID, made.Modality = RT_STRUCTURE_SET, hd.UID(), "RTSTRUCT"
    made.StudyInstanceUID, made.SeriesInstanceUID = source.StudyInstanceUID, hd.UID()
    made.PatientID, made.OperatorsName, made.StructureSetLabel = source.PatientID, "Planner^Pat", "plan"
    made.StructureSetDate, made.StructureSetTime = "20200102", "101500"
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = uid
    study.RTReferencedSeriesSequence, frame.RTReferencedStudySequence = [series], [study]
    frame.FrameOfReferenceUID = grid.frame_of_reference_uid
    made.ReferencedFrameOfReferenceSequence = [frame]
    made.StructureSetROISequence, made.ROIContourSequence = [], []
    for number, (name, outlines) in enumerate(rois.items(), 1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, grid.frame_of_reference_uid
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for points in outlines:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            contour.ContourData = np.round(grid.map_indices_to_reference(points), 3).ravel().tolist()
            drawn.ContourSequence.append(contour)
        made.StructureSetROISequence.append(roi)
        made.ROIContourSequence.append(drawn)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    made.save_as(path, enforce_file_format=True)
    return path


def test_a_structure_set_becomes_a_revision(stored: Stored, project: Project, affine: np.ndarray, tmp_path: Path) -> None:
    archive, uid = stored(affine)
    square = np.array([[2, 1.5, 2.5], [2, 1.5, 7.5], [2, 5.5, 7.5], [2, 5.5, 2.5]])
    hole = np.array([[2, 2.5, 3.5], [2, 2.5, 5.5], [2, 4.5, 5.5], [2, 4.5, 3.5]])
    path = write_rtstruct(archive, uid, tmp_path / "rt.dcm", {"liver": [square, hole], "Spleen": [], "BODY": [square]})
    archive.store([pydicom.dcmread(path)], folder="stow", writer="rt")
    [one] = import_labels(archive, project).sources
    assert (one.kind, one.outcome, one.unmatched) == ("RTSTRUCT", "added", ("BODY",)), one.reason
    assert one.states == {"Liver": "present", "Spleen": "not_annotated"}
    expected = np.zeros(archive.geometry(uid).spatial_shape, np.uint8)
    expected[2, 2:6, 3:8] = 1
    expected[2, 3:5, 4:6] = 0
    np.testing.assert_array_equal(label_map(archive, project, uid), expected)
    assert current(archive, "p")[uid].author == "Planner Pat"
    between = write_rtstruct(archive, uid, tmp_path / "between.dcm", {"Liver": [square + np.array([0.5, 0, 0])]})
    assert "between the slices, at 3.50" in only(archive, project, between).reason


def test_the_first_series_that_it_fits_is_taken(stored: Stored, project: Project, tmp_path: Path) -> None:
    """Of two that it names, one of which is no regular volume."""
    archive, irregular = stored()
    _, uid = stored(case="two")
    square = np.array([[2, 1.5, 2.5], [2, 1.5, 7.5], [2, 5.5, 7.5], [2, 5.5, 2.5]])
    path = write_rtstruct(archive, uid, tmp_path / "rt.dcm", {"Liver": [square]})
    made, first = pydicom.dcmread(path), Dataset()
    first.SeriesInstanceUID = irregular
    made.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence.insert(0, first)
    made.save_as(path)
    file = sorted(Path(one) for one in archive.series_files(irregular))[2]
    moved = pydicom.dcmread(file)
    moved.ImagePositionPatient[2] += 0.7
    moved.save_as(file)
    with pytest.raises(CatalogError, match="not one regular volume"):
        archive.geometry(irregular)
    one = only(archive, project, path)
    assert (one.outcome, one.series_uid) == ("added", uid), one.reason


def test_nifti_is_matched_by_value_name_or_file(stored: Stored, project: Project, tmp_path: Path) -> None:
    archive, uid = stored()
    like = archive.geometry(uid)
    array = drawn(like.spatial_shape)
    by_patient = write_nifti(like.with_array(array), tmp_path / "P1.nii.gz")
    one = only(archive, project, by_patient)
    assert (one.outcome, one.series_uid) == ("added", uid)
    assert one.states == {"Liver": "present", "Spleen": "present"}
    np.testing.assert_array_equal(label_map(archive, project, uid), array)
    by_file = write_nifti(like.with_array((array == 7).astype(np.uint8)), tmp_path / "Spleen.nii")
    assert only(archive, project, by_file, series=uid).states == {"Liver": "not_annotated", "Spleen": "present"}
    np.testing.assert_array_equal(label_map(archive, project, uid), np.where(array == 7, 7, 0))
    (tmp_path / "cohort" / "labels").mkdir(parents=True)
    (tmp_path / "cohort" / "dataset.json").write_text('{"labels": {"background": 0, "spleen": 1, "liver": 2}}')
    named = write_nifti(like.with_array((array == 7).astype(np.uint8)), tmp_path / "cohort" / "labels" / f"{uid}.nii.gz")
    assert only(archive, project, named).states == {"Liver": "absent", "Spleen": "present"}
    foreign = write_nifti(like.with_array(np.where(array == 1, 5, array)), tmp_path / "x.nii.gz")
    one = only(archive, project, foreign, series=uid)
    assert (one.unmatched, one.states["Liver"]) == (("value 5",), "not_annotated")
    assert "name the series" in only(archive, project, foreign).reason


@pytest.mark.slow
def test_real_segmentations_have_their_volumes(
    data: Callable[[str], Path], home: Path, dciodvfy: Callable[[Path], list[str]]
) -> None:
    """The three SEGs of a PET-CT study, its images in JPEG-LS; highdicom's own reading of each segment is the measure."""
    folder, archive = data("acrin_nsclc_petct_seg"), Archive(home)
    images = [*(folder / "CT_CT-IMAGES_94858561").glob("*.dcm"), *(folder / "PT_PET-AC_61081015").glob("*.dcm")]
    paths = sorted(folder.glob("SEG*/*.dcm"))
    archive.store(map(pydicom.dcmread, [*images, *paths]), folder="stow", writer="test")
    names = ("Segment_1", "Segment_2", "pt_segment_1")
    tissue = ("SCT", "85756007", "Tissue")
    structures = tuple(Structure(name, value, tissue, (1, 2, 3)) for value, name in enumerate(names, 1))
    cohort = "SELECT SeriesInstanceUID, StudyInstanceUID, PatientID FROM series WHERE is_image"
    project = Project("acrin", cohort, LabelSet("acrin", structures), {}, Split(0.1, 0.3, "s"), "m", 0.02)
    done = import_labels(archive, project)
    assert [one.reason for one in done.sources] == ["", "", ""]
    expected = {}
    for theirs in map(hd.seg.segread, paths):
        volumes = expected.setdefault(str(theirs.SOPInstanceUID), {})
        for number in theirs.segment_numbers:
            volume = theirs.get_volume(segment_numbers=[number])
            name = theirs.get_segment_description(number).segment_label
            volumes[name] = pytest.approx(np.count_nonzero(volume.array) * np.prod(volume.spacing) / 1000, rel=1e-4)
    assert {Path(one.source).stem: one.volumes_ml for one in done.sources} == expected
    query = "SELECT structure, value FROM features WHERE label_id = '{}' AND name = 'volume' AND value > 0"
    for one in done.sources:
        rows = archive.sql(query.format(one.label_id)).to_pylist()
        assert {row["structure"]: row["value"] for row in rows} == pytest.approx(dict(one.volumes_ml))
    for path in (archive.home / "volume" / "labels").rglob("*.dcm"):
        assert dciodvfy(path) == []
    again = import_labels(archive, project)
    assert [one.outcome for one in again.sources] == ["already"] * 3
