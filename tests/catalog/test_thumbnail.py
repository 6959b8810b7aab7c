"""A picture of every DICOM file that holds one, as a viewer would open it; a reason for every other."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate, generate_frames

from catalog import Archive, CatalogError, LabelSet, deterministic_uid, ingest, seg
from catalog.files import listed
from catalog.frames import ImageFile
from catalog.thumbnail import thumbnail

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Data = Callable[[str], Path]
File = Callable[..., Path]

REFERENCES = {
    "CTImage": "ct_one_slice_13_syntaxes/CTImage.dcm",
    **{f"{name}_": f"nema_wg04/{name}_UNC.dcm" for name in ("CT1", "CT2", "MR1", "NM1", "US1")},
    "JPEG-LL": "nema_wg04/NM1_UNC.dcm",
    "emri_small": "ljpeg_jls_rgb/emri_small.dcm",
    "JLSL_RGB": "ljpeg_jls_rgb/JLSL_RGB_ILV0.dcm",
    "JLSN_RGB": "ljpeg_jls_rgb/JLSL_RGB_ILV0.dcm",
    "HTJ2K": "htj2k_jxl_deflated/HTJ2KLossless_08_RGB.dcm",
    "liver_nonbyte": "",
    "liver": "ljpeg_jls_rgb/liver.dcm",
}


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png))).astype(int)


def shown(path: Path) -> np.ndarray:
    return pixels(thumbnail(path))


def test_every_transfer_syntax_gives_the_picture_of_its_reference(data: Data) -> None:
    root = data("transfer_syntaxes")
    outcome: dict[str, list[str]] = {"equal": [], "within the loss": [], "alone": [], "refused": []}
    for path in sorted(root.rglob("*.dcm")):
        reference = next((found for prefix, found in REFERENCES.items() if path.name.startswith(prefix)), "")
        try:
            picture = shown(path)
        except CatalogError as problem:
            outcome["refused"].append(problem.problem)
            continue
        assert np.ptp(picture) > 50
        if not reference:
            outcome["alone"].append(path.name)
            continue
        apart = np.abs(picture - shown(root / reference))
        if ImageFile(path).lossy and apart.any():
            assert apart.mean() < (20 if "_J2KI" in path.name else 5), path.name  # the sharpest compression: 1 bit for 20 to 40
            outcome["within the loss"].append(path.name)
        else:
            assert not apart.any(), path.name
            outcome["equal"].append(path.name)
    assert set(outcome["refused"]) == {"no codec for its transfer syntax is installed: JPEG XL"}
    assert {kind: len(names) for kind, names in outcome.items()} == {
        "equal": 47,
        "within the loss": 19,
        "alone": 8,
        "refused": 3,
    }


def test_the_first_window_is_shown(dicom_file: File) -> None:
    ramp = np.tile(np.arange(0, 2000, 20, dtype=np.int16), (10, 1))
    picture = shown(dicom_file(ramp, RescaleSlope=1, RescaleIntercept=-1000, WindowCenter=[40, 600], WindowWidth=[400, 1]))
    hounsfield = ramp[0] - 1000.0
    exact = np.clip((hounsfield - 39.5) / 399 + 0.5, 0, 1) * 255  # PS3.3 C.11.2.1.2.1
    np.testing.assert_allclose(picture[5], exact, atol=1)


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_window_functions(function: str, dicom_file: File) -> None:
    ramp = np.tile(np.arange(100, dtype=np.uint8), (10, 1))
    picture = shown(dicom_file(ramp, WindowCenter=50, WindowWidth=40, VOILUTFunction=function))
    exact = {"LINEAR_EXACT": np.clip((ramp - 30.0) / 40, 0, 1), "SIGMOID": 1 / (1 + np.exp(-4 * (ramp - 50.0) / 40))}[function]
    np.testing.assert_allclose(picture, exact * 255, atol=1)


def test_a_voi_lut_comes_before_a_window(dicom_file: File) -> None:
    lut = pydicom.Dataset()
    lut.add_new("LUTDescriptor", "US", [1000, 100, 8])
    lut.add_new("LUTData", "OW", (np.arange(1000) * 255 // 999)[::-1].astype("<u2").tobytes())
    ramp = np.tile(np.arange(0, 1200, 12, dtype=np.uint16), (10, 1))
    picture = shown(dicom_file(ramp, VOILUTSequence=[lut], WindowCenter=1, WindowWidth=1))
    np.testing.assert_allclose(picture[0], np.clip(255 - (ramp[0] - 100.0) * 255 / 999, 0, 255), atol=1.5)


@pytest.mark.parametrize("padding", [-2000, 63536])
def test_without_a_window_the_values_spread_and_padding_is_black(padding: int, dicom_file: File) -> None:
    values = np.tile(np.linspace(500, 700, 100).astype(np.int16), (100, 1))
    values[:, :20] = -2000
    path = dicom_file(values)
    header = pydicom.dcmread(path)
    header.add_new("PixelPaddingValue", "SS" if padding < 0 else "US", padding)
    header.save_as(path)
    picture = shown(path)
    assert (picture[:, :20] == 0).all()
    assert picture[50, 21] < 15 and picture[50, 99] == 255
    assert (np.diff(picture[50, 21:]) >= 0).all()


def test_monochrome1_is_turned_over(dicom_file: File) -> None:
    ramp = np.tile(np.arange(100, dtype=np.uint8), (10, 1))
    told = {"WindowCenter": 50, "WindowWidth": 100}
    plain = shown(dicom_file(ramp, "plain.dcm", **told))
    turned = shown(dicom_file(ramp, "turned.dcm", PhotometricInterpretation="MONOCHROME1", **told))
    np.testing.assert_allclose(turned, 255 - plain, atol=1)


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_every_kind_of_number(kind: str, dicom_file: File) -> None:
    ramp = np.tile(np.linspace(0, 100, 64).astype(kind), (16, 1))
    if kind in ("f4", "f8"):
        ramp[0, 0] = np.nan
    picture = shown(dicom_file(ramp))
    assert picture[8, 0] == 0 and picture[8, -1] == 255
    assert (np.diff(picture[8]) >= 0).all()


def test_the_middle_frame_is_shown(dicom_file: File) -> None:
    frames = np.zeros((5, 8, 8), np.uint8)
    frames[2] = np.arange(64).reshape(8, 8)
    for count in (4, 5):
        assert np.ptp(shown(dicom_file(frames[:count], NumberOfFrames=count))) > 200


def test_no_other_frame_is_decoded(data: Data, tmp_path: Path) -> None:
    whole = data("transfer_syntaxes") / "ljpeg_jls_rgb" / "emri_small_RLE.dcm"
    header = pydicom.dcmread(whole)
    frames = list(generate_frames(header.PixelData, number_of_frames=10))
    header.PixelData = encapsulate([frame if number == 5 else b"broken" for number, frame in enumerate(frames)])
    header.save_as(tmp_path / "broken.dcm")
    np.testing.assert_array_equal(shown(tmp_path / "broken.dcm"), shown(whole))
    with pytest.raises(CatalogError, match="cannot be decoded"):
        ImageFile(tmp_path / "broken.dcm").frame(4)


def test_colours(dicom_file: File) -> None:
    rgb = np.zeros((10, 30, 3), np.uint8)
    rgb[:, :10, 0] = rgb[:, 10:20, 1] = rgb[:, 20:, 2] = 255
    np.testing.assert_array_equal(shown(dicom_file(rgb)), rgb)
    ybr = np.array(Image.fromarray(rgb).convert("YCbCr"))
    apart = np.abs(shown(dicom_file(ybr, PhotometricInterpretation="YBR_FULL")) - rgb.astype(int))
    assert apart.max() <= 3


def test_palettes(data: Data) -> None:
    picture = shown(data("odd_dicom") / "fo-dicom" / "TestPattern_Palette.dcm")
    assert picture.shape == (160, 256, 3)
    saturated = picture.max(axis=2) - picture.min(axis=2)
    assert saturated.max() > 150


@pytest.mark.parametrize(
    ("attribute", "value", "size"),
    [
        ("PixelSpacing", [2, 1], (100, 100)),
        ("PixelSpacing", [1, 4], (50, 400)),
        ("PixelAspectRatio", [1, 2], (50, 200)),
        ("PixelSpacing", [0, 0], (50, 100)),
    ],
)
def test_proportions_are_kept_and_nothing_is_made_larger_than_256(
    attribute: str, value: list[int], size: tuple[int, int], dicom_file: File
) -> None:
    picture = shown(dicom_file(np.random.default_rng(0).integers(0, 255, (50, 100), np.uint8), **{attribute: value}))
    scale = min(1.0, 256 / max(size))
    assert picture.shape == tuple(round(side * scale) for side in size)


def test_a_segmentation_shows_every_segment_of_its_middle_slice(
    stored: Callable[..., tuple[Archive, str]], labels: LabelSet, tmp_path: Path
) -> None:
    archive, uid = stored()
    like = archive.volume(uid)
    array = np.zeros(like.spatial_shape, np.uint8)
    array[1:4, :4], array[2, 5:] = 1, 7
    told = {"sop_uid": deterministic_uid("a"), "series_uid": deterministic_uid("b"), "description": "", "author": "x"}
    seg.encode(like.with_array(array), archive.sources(uid), labels, **told).save_as(tmp_path / "seg.dcm")
    picture = shown(tmp_path / "seg.dcm")
    height = round(array.shape[1] * 0.9 / 0.7812345678)
    assert picture.shape == (height, array.shape[2], 3)
    np.testing.assert_allclose(picture[1, 5], labels.structures[0].color, atol=4)
    np.testing.assert_allclose(picture[-2, 5], labels.structures[1].color, atol=4)


def test_what_holds_no_picture_says_what_it_is(data: Data, tmp_path: Path) -> None:
    odd = data("odd_dicom") / "pydicom"
    for name, reason in {"rtplan.dcm": "RTPLAN", "reportsi.dcm": "SR", "MR_truncated.dcm": "cannot be decoded"}.items():
        with pytest.raises(CatalogError, match=f"{name}.*{reason}"):
            thumbnail(odd / name)
    (tmp_path / "text.dcm").write_text("no DICOM at all, however long it is" * 10)
    with pytest.raises(CatalogError, match="not a DICOM file"):
        thumbnail(tmp_path / "text.dcm")
    with pytest.raises(CatalogError, match="has gone"):
        thumbnail(tmp_path / "nowhere.dcm")


def test_every_odd_file_gives_a_picture_or_a_reason(data: Data) -> None:
    files, reasons = [path for path in data("odd_dicom").rglob("*") if path.is_file()], {}
    for path in files:
        try:
            picture = shown(path)
        except CatalogError as problem:
            reasons[problem.about] = problem.problem
            continue
        assert max(picture.shape[:2]) <= 256
    assert set(reasons) < set(map(str, files)) and all(reasons.values())


@pytest.fixture
def archive(spark: "SparkSession", home: Path, dicom_file: File, tmp_path: Path) -> Archive:
    """Two series of three images, one of which is broken, and a report."""
    for number in range(3):
        image = np.full((8, 8), 10 * number, np.uint8)
        image[0] = 255
        told = {"InstanceNumber": number, "StudyInstanceUID": "1"}
        dicom_file(image, f"in/a{number}.dcm", SeriesInstanceUID="1.1", **told)
        dicom_file(image, f"in/b{number}.dcm", SeriesInstanceUID="1.2", **told)
    broken = pydicom.dcmread(tmp_path / "in/b1.dcm")
    broken.PhotometricInterpretation = "HSV"
    broken.save_as(tmp_path / "in/b1.dcm")
    report = pydicom.dcmread(tmp_path / "in/a0.dcm")
    for keyword in ("PixelData", "Rows", "Columns"):
        del report[keyword]
    report.Modality, report.SOPInstanceUID, report.SeriesInstanceUID = "SR", "1.3.1", "1.3"
    report.save_as(tmp_path / "in/report.dcm")
    archive = Archive(home)
    ingest(spark, archive, tmp_path / "in")
    return archive


@pytest.mark.slow
def test_a_series_is_shown_by_its_middle_instance_once(spark: "SparkSession", archive: Archive, tmp_path: Path) -> None:
    from catalog.thumbnail_extractor import make_thumbnails, thumbnail_file

    seen: list[tuple[int, int]] = []
    first = make_thumbnails(spark, archive, progress=lambda done, total: seen.append((done, total)))
    assert (first.wanted, first.made, first.unchanged, first.without_pixels) == (3, 1, 0, 1)
    assert [path for path, _ in first.failed] == [str(tmp_path / "in/b1.dcm")] and "HSV" in first.failed[0][1]
    assert seen == [(2, 2)]
    made = thumbnail_file(first.folder, listed(tmp_path / "in/a1.dcm").key)
    assert made.read_bytes() == thumbnail(tmp_path / "in/a1.dcm")
    again = make_thumbnails(spark, archive, series="1.1")
    assert (again.wanted, again.made, again.unchanged) == (1, 0, 1)
    every = make_thumbnails(spark, archive, every=True)
    assert (every.wanted, every.made, every.unchanged, len(every.failed)) == (7, 4, 1, 1)
    assert len(list(first.folder.rglob("*.png"))) == 5
    with pytest.raises(CatalogError, match="no such series"):
        make_thumbnails(spark, archive, series="9.9")


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_ends_the_work(spark: "SparkSession", archive: Archive) -> None:
    from catalog.thumbnail_extractor import make_thumbnails, thumbnail_folder

    thumbnail_folder(archive).parent.mkdir(exist_ok=True)
    thumbnail_folder(archive).write_text("a file where the folder goes")
    with pytest.raises(CatalogError, match="cannot be written"):
        make_thumbnails(spark, archive)


@pytest.mark.slow
def test_the_transformer_adds_a_picture_to_each_row_and_loses_none(
    spark: "SparkSession", archive: Archive, tmp_path: Path
) -> None:
    from pyspark.ml import Pipeline

    from catalog.thumbnail_extractor import DicomThumbnailExtractor

    rows = [(str(path), number) for number, path in enumerate(sorted((tmp_path / "in").iterdir()))]
    rows += [(str(tmp_path / "gone.dcm"), 98), (None, 99)]
    frame = spark.createDataFrame(rows, "local_path string, number int")
    stage = DicomThumbnailExtractor(archive)
    found = {row.number: row for row in Pipeline(stages=[stage]).fit(frame).transform(frame).collect()}
    assert len(found) == len(rows)
    good = found[0].thumbnail
    assert (good.height, good.width, good.nChannels, good.mode, len(good.data)) == (8, 8, 1, 0, 64)
    assert Path(good.origin).read_bytes() == thumbnail(rows[0][0])
    assert Path(good.origin).is_relative_to(archive.home / "volume" / "thumbnails")
    for number, reason in {4: "HSV", 6: "SR", 98: "No such file", 99: "names no file"}.items():
        assert (found[number].thumbnail.height, found[number].thumbnail.data) == (-1, b"")
        assert reason in found[number].thumbnail.origin


@pytest.mark.slow
def test_the_transformer_without_a_catalog_writes_nothing_and_is_kept_in_a_pipeline(
    spark: "SparkSession", dicom_file: File, tmp_path: Path
) -> None:
    from catalog.thumbnail_extractor import DicomThumbnailExtractor

    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[..., 0] = 200
    path = dicom_file(rgb, "in/red.dcm")
    made = DicomThumbnailExtractor(inputCol="file", outputCol="picture", method="matplotlib", size=4)
    made.save(str(tmp_path / "stage"))
    kept = DicomThumbnailExtractor.load(str(tmp_path / "stage"))
    frame = spark.createDataFrame([(str(path),)], "file string")
    picture = kept.transform(frame).first().picture
    assert (picture.origin, picture.height, picture.width, picture.nChannels, picture.mode) == (str(path), 3, 4, 3, 16)
    assert picture.data[:3] == bytes([0, 0, 200])  # blue, green, red
    with pytest.raises(CatalogError, match="local_path"):
        DicomThumbnailExtractor().transform(frame)
