"""Which volumes a series holds, and which of a study's make a case."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian

from catalog import Archive, Case, CatalogError, Project, Study, case_volumes, deterministic_uid, examine
from catalog.files import list_files
from catalog.objects import commit_absent, rows
from catalog.series import as_series
from catalog.table import write_part
from catalog.volumes import parse

AXIAL = np.array([[0, 0, 1.0, -20], [0, 1.0, 0, -30], [3.0, 0, 0, 40], [0, 0, 0, 1]])
Change = Callable[[Dataset, int], None]
Store = Callable[..., str]

PROJECT = """
key: t
cohort: select SeriesInstanceUID, StudyInstanceUID, PatientID from series{where}
label_set:
  name: t
  structures: [{{name: lesion, value: 1, code: [SCT, "52988006", Lesion], color: [200, 80, 60]}}]
model: t
{channels}
"""


def volume(value: float, affine: np.ndarray = AXIAL, shape: tuple[int, int, int] = (4, 6, 5)) -> hd.Volume:
    return hd.Volume(np.full(shape, value, np.float32), affine, "PATIENT")


@pytest.fixture
def archive(home: Path) -> Archive:
    return Archive(home)


@pytest.fixture
def store(archive: Archive) -> Store:
    """Put slices of one study into the archive as one series; its SeriesInstanceUID.

    Each of ``parts`` is a volume, with what is to be set in its headers: attributes, or a function of (header, slice).
    """

    def put(name: str, *parts: tuple[hd.Volume, dict[str, Any] | Change], **common: Any) -> str:
        uid = deterministic_uid("test", name)
        common = {"StudyInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.4", "SeriesDescription": name, **common}
        made: list[Dataset] = []
        for image, told in parts:
            series = as_series(image, patient_id="P", case=name)
            for number, (header, pixels) in enumerate(zip(series.headers, series.pixels, strict=True)):
                _set(header, {**common, "SeriesInstanceUID": uid, "InstanceNumber": len(made) + 1})
                told(header, number) if callable(told) else _set(header, told)
                header.SOPInstanceUID = deterministic_uid("test", name, str(len(made)))
                made.append(_whole(header, pixels))
        archive.store(made[::-1], folder="stow", writer=name)
        return uid

    return put


def _set(header: Dataset, told: dict[str, Any]) -> None:
    for keyword, value in told.items():
        setattr(header, keyword, value)


def _whole(header: Dataset, pixels: np.ndarray) -> Dataset:
    header.PixelData = pixels.astype("<i2").tobytes()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    return header


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., Project]:
    def load(channels: str = "", where: str = "") -> Project:
        path = tmp_path / "project.yaml"
        path.write_text(PROJECT.format(channels=f"channels: [{channels}]" if channels else "", where=where))
        return Project.load(path)

    return load


def refs(archive: Archive, uid: str) -> list[str]:
    """The references that the refusal to read a whole series names."""
    with pytest.raises(CatalogError, match=r"holds \d+ volumes") as caught:
        archive.volume(uid)
    return [part.strip("'").replace("\\\\", "\\") for part in caught.value.remedy.removeprefix("ask for one of ").split(", ")]


def values(archive: Archive, found: Sequence[str]) -> list[float]:
    """The one value of each volume."""
    volumes = [archive.volume(ref) for ref in found]
    assert all(volume.array.min() == volume.array.max() for volume in volumes)
    return [float(volume.array[0, 0, 0]) for volume in volumes]


def _private(creator: str, group: int, element: int, vr: str, *told: Any) -> list[Change]:
    """A function a value that sets a private attribute."""

    def setter(value: Any) -> Change:
        return lambda header, _: header.private_block(group, creator, create=True).add_new(element, vr, value)

    return [setter(value) for value in told]


SERIES: dict[str, tuple[list[dict[str, Any] | Change], list[str]]] = {
    "echoes": ([{"EchoTime": 9.2}, {"EchoTime": 4.6}], ["EchoTime=4.6", "EchoTime=9.2"]),
    "echo numbers": ([{"EchoNumbers": 1}, {"EchoNumbers": 2}], ["EchoNumbers=1", "EchoNumbers=2"]),
    "b-values": ([{"DiffusionBValue": b} for b in (0.0, 50.0, 1000.0)], [f"DiffusionBValue={b}" for b in (0, 50, 1000)]),
    "no b-value": ([{}, {"DiffusionBValue": 800.0}], ["DiffusionBValue=", "DiffusionBValue=800"]),
    "Siemens": (
        [*_private("SIEMENS MR HEADER", 0x0019, 0x0C, "IS", 50, 1000)],
        ["DiffusionBValue=50", "DiffusionBValue=1000"],
    ),
    "Siemens, unknown": (
        [*_private("SIEMENS MR HEADER", 0x0019, 0x0C, "UN", b"50", b"1000")],
        ["DiffusionBValue=50", "DiffusionBValue=1000"],
    ),
    "GE": (
        [*_private("GEMS_PARM_01", 0x0043, 0x39, "IS", [1_000_000_050, 8, 0, 0], [1_000_001_000, 8, 0, 0])],
        ["DiffusionBValue=50", "DiffusionBValue=1000"],
    ),
    "Philips": (
        [*_private("Philips Imaging DD 001", 0x2001, 0x03, "FL", 50.0, 1000.0)],
        ["DiffusionBValue=50", "DiffusionBValue=1000"],
    ),
    "Dixon": (
        [{"ImageType": ["DERIVED", "PRIMARY", "DIXON", kind]} for kind in ("WATER", "FAT")],
        [f"ImageType=DERIVED\\PRIMARY\\DIXON\\{kind}" for kind in ("FAT", "WATER")],
    ),
    "time": (
        [{"TemporalPositionIdentifier": t, "AcquisitionNumber": 1} for t in (2, 1, 10)],
        [f"TemporalPositionIdentifier={t}" for t in (1, 2, 10)],
    ),
    "acquisitions": ([{"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}], ["AcquisitionNumber=1", "AcquisitionNumber=2"]),
    "dynamic PET": ([{"FrameReferenceTime": t} for t in (500.0, 15.5)], ["FrameReferenceTime=15.5", "FrameReferenceTime=500"]),
    "cine": (
        [lambda header, n, t=t: _set(header, {"TriggerTime": t + 0.3 * n}) for t in (0, 40, 80)],  # type: ignore[misc]
        ["TriggerTime=@1", "TriggerTime=@2", "TriggerTime=@3"],
    ),
    "echoes and types": (
        [{"EchoTime": e, "ImageType": ["ORIGINAL", "PRIMARY", k]} for k in "MP" for e in (2, 4)],
        [f"ImageType=ORIGINAL\\PRIMARY\\{k}&EchoTime={e}" for k in "MP" for e in (2, 4)],
    ),
}


@pytest.mark.parametrize("name", list(SERIES))
def test_a_series_of_several_volumes_is_split(name: str, store: Store, archive: Archive) -> None:
    told, criteria = SERIES[name]
    uid = store(name, *((volume(number), change) for number, change in enumerate(told)))
    found = refs(archive, uid)
    assert found == [f"{uid}#{criterion}" for criterion in criteria]
    assert sorted(values(archive, found)) == list(range(len(told)))
    one = archive.volume(found[0])
    assert one.spatial_shape == (4, 6, 5) and one.geometry_equal(archive.geometry(found[0]))
    assert [float(h.ImagePositionPatient[2]) for h in archive.sources(found[0])] == [
        one.affine[2, 3] + i * one.affine[2, 0] for i in range(4)
    ]


def test_what_differs_from_slice_to_slice_splits_nothing(store: Store, archive: Archive) -> None:
    alone = store("alone", (volume(3), lambda h, n: _set(h, {"AcquisitionNumber": n, "EchoTime": n % 2, "TriggerTime": n})))
    assert values(archive, [alone]) == [3]

    def each(offset: int) -> Change:
        return lambda h, n: _set(h, {"AcquisitionNumber": 10 * offset + n, "TemporalPositionIdentifier": offset})

    twice = store("twice", (volume(0), each(1)), (volume(1), each(2)))
    assert refs(archive, twice) == [f"{twice}#TemporalPositionIdentifier={n}" for n in (1, 2)]


def test_slices_that_nothing_tells_apart_are_refused(store: Store, archive: Archive) -> None:
    uid = store("doubled", (volume(0), {}), (volume(1), {}))
    with pytest.raises(CatalogError, match="not one regular volume"):
        archive.volume(uid)
    with pytest.raises(CatalogError, match="2 slices lie at one position, and nothing in their headers tells them apart"):
        archive.volume(f"{uid}#Modality=MR")


def test_a_missing_slice_is_refused_and_the_other_volume_read(store: Store, archive: Archive) -> None:
    def gap(header: Dataset, number: int) -> None:
        _set(header, {"EchoTime": 1})
        if number == 3:
            header.ImagePositionPatient = [-20, -30, 90]

    uid = store("gap", (volume(0), gap), (volume(1), {"EchoTime": 2}))
    assert values(archive, [f"{uid}#EchoTime=2"]) == [1]
    with pytest.raises(CatalogError, match="missing or unevenly spaced"):
        archive.volume(f"{uid}#EchoTime=1")


def test_other_orientations_and_sizes_are_parted(store: Store, archive: Archive) -> None:
    sagittal = np.array([[3.0, 0, 0, 0], [0, 0, 1.0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1]])
    planes = store("planes", (volume(1), {}), (volume(2, sagittal), {}))
    assert refs(archive, planes) == [
        f"{planes}#ImageOrientationPatient=0\\1\\0\\0\\0\\-1",
        f"{planes}#ImageOrientationPatient=1\\0\\0\\0\\1\\0",
    ]
    assert values(archive, refs(archive, planes)) == [2, 1]
    sizes = store("sizes", (volume(1), {}), (volume(2, shape=(4, 8, 5)), {}))
    assert refs(archive, sizes) == [f"{sizes}#Rows=6", f"{sizes}#Rows=8"]


def test_a_reference_says_enough_and_names_attributes(store: Store, archive: Archive) -> None:
    told = SERIES["echoes and types"][0]
    uid = store("both", *((volume(number), change) for number, change in enumerate(told)))
    assert values(archive, [f"{uid}#EchoTime=4.0&ImageType=ORIGINAL\\PRIMARY\\P"]) == [3]
    with pytest.raises(CatalogError, match=r"holds 4 volumes, and 2 of them fit .*EchoTime=2'"):
        archive.volume(f"{uid}#EchoTime=2")
    with pytest.raises(CatalogError, match="none of them fit"):
        archive.volume(f"{uid}#EchoTime=7")
    with pytest.raises(CatalogError, match=r"EchoTyme: no such DICOM attribute \(EchoTime\?\)"):
        archive.volume(f"{uid}#EchoTyme=2")
    whole = store("whole", (volume(5), {"EchoTime": 3}))
    assert values(archive, [f"{whole}#EchoTime=3", f"{whole}#00180081=3.0"]) == [5, 5]
    assert parse("1.2#ImageComments=a%26b%3Dc") == ("1.2", (("ImageComments", "a&b=c"),))


@pytest.mark.parametrize("objects", [1, 2])
def test_frames_of_enhanced_objects_are_told_apart_by_their_groups(objects: int, archive: Archive) -> None:
    """Two b-values of three slices, in one object or an object each."""
    frames = [(b, z) for b in (0.0, 1000.0) for z in (6.0, 0.0, 3.0)]
    each = len(frames) // objects
    made = [_enhanced(number, frames[number * each :][:each]) for number in range(objects)]
    archive.store(made, folder="stow", writer="w")
    assert refs(archive, "1.9") == ["1.9#DiffusionBValue=0", "1.9#DiffusionBValue=1000"]
    for b in (0, 1000):
        found = archive.volume(f"1.9#DiffusionBValue={b}")
        heights = found.affine[2, 3] + found.affine[2, 0] * np.arange(3)
        np.testing.assert_array_equal(found.array, np.broadcast_to((b + 2 * heights)[:, None, None], (3, 4, 5)))
        assert archive.sources(f"1.9#DiffusionBValue={b}")[0].SeriesInstanceUID == "1.9"


def _enhanced(number: int, frames: Sequence[tuple[float, float]]) -> Dataset:
    """An enhanced MR object; a frame's value is its b-value and twice its height."""
    header = Dataset()
    _set(header, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4.1", "SOPInstanceUID": f"1.9.{number + 1}", "Modality": "MR"})
    _set(header, {"StudyInstanceUID": "1.8", "SeriesInstanceUID": "1.9", "FrameOfReferenceUID": "1.7", "PatientID": "P"})
    _set(header, {"Rows": 4, "Columns": 5, "NumberOfFrames": len(frames), "SamplesPerPixel": 1, "BitsAllocated": 16})
    _set(header, {"BitsStored": 16, "HighBit": 15, "PixelRepresentation": 0, "PhotometricInterpretation": "MONOCHROME2"})
    shared, measures, orientation, rescale = Dataset(), Dataset(), Dataset(), Dataset()
    _set(measures, {"PixelSpacing": [1, 1], "SliceThickness": 3})
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    _set(rescale, {"RescaleSlope": 2, "RescaleIntercept": 0, "RescaleType": "US"})
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Items([measures]), Items([orientation])
    shared.PixelValueTransformationSequence = Items([rescale])
    header.SharedFunctionalGroupsSequence = Items([shared])
    header.PerFrameFunctionalGroupsSequence = Items(_frame(b, z) for b, z in frames)
    pixels = np.stack([np.full((4, 5), (b + 2 * z) / 2, np.uint16) for b, z in frames])
    return _whole(header, pixels)


def _frame(b: float, z: float) -> Dataset:
    group, position, diffusion = Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient, diffusion.DiffusionBValue = [0, 0, z], b
    group.PlanePositionSequence, group.MRDiffusionSequence = Items([position]), Items([diffusion])
    return group


T2_ADC = "{name: T2, where: {SeriesDescription: 't2*'}}, {name: ADC, where: {Modality: MR, SeriesDescription: '*adc'}}"


def only(archive: Archive, project: Project) -> Study:
    (study,) = examine(archive, project)
    return study


def test_a_study_is_a_case_of_ordered_channels(store: Store, archive: Archive, project: Callable[..., Project]) -> None:
    adc, t2 = store("an ADC", (volume(1), {})), store("T2 TSE", (volume(2), {}))
    other = store("other", (volume(3), {}))
    study = only(archive, project(T2_ADC))
    assert study.cases == (Case(t2, "1.2.3", "P", (t2, adc)),) == tuple(project(T2_ADC).cases(archive))
    assert {v.ref: v.channel for v in study.verdicts} == {adc: "ADC", t2: "T2", other: ""}
    (left,) = (v.reason for v in study.verdicts if v.ref == other)
    assert left == "T2: SeriesDescription is other, not t2*; ADC: SeriesDescription is other, not *adc"
    assert [float(v.array.mean()) for v in case_volumes(archive, study.cases[0])] == [2, 1]


def test_a_channel_may_be_a_volume_of_a_split_series(store: Store, archive: Archive, project: Callable[..., Project]) -> None:
    uid = store("dwi", *((volume(b), {"DiffusionBValue": float(b)}) for b in (0, 50, 800)))
    rules = project("{name: low, where: {DiffusionBValue: [0, 25]}}, {name: high, where: {DiffusionBValue: '>= 500'}}")
    (case,) = only(archive, rules).cases
    assert case == Case(uid, "1.2.3", "P", (f"{uid}#DiffusionBValue=0", f"{uid}#DiffusionBValue=800"))
    assert [float(v.array.mean()) for v in case_volumes(archive, case)] == [0, 800]


REFUSALS: dict[str, tuple[list[tuple[str, hd.Volume, dict[str, Any]]], str]] = {
    "a channel is missing": ([("t2", volume(1), {})], "no volume fits channel ADC"),
    "two fit": ([("t2", volume(1), {}), ("t2 b", volume(1), {}), ("adc", volume(2), {})], "2 volumes fit channel T2; narrow"),
    "one fits two": ([("t2 adc", volume(1), {})], "one volume fits the channels T2 and ADC"),
    "another frame of reference": (
        [("t2", volume(1), {}), ("adc", volume(2), {"FrameOfReferenceUID": "1.2.5"})],
        "the channels T2 and ADC are not in one FrameOfReferenceUID",
    ),
    "no frame of reference": (
        [(name, volume(1), {"FrameOfReferenceUID": ""}) for name in ("t2", "adc")],
        "the channels T2 and ADC are not in one FrameOfReferenceUID",
    ),
    "elsewhere": (
        [("t2", volume(1), {}), ("adc", volume(2, AXIAL + np.eye(4)[:, [3]] * 0 + np.outer([0, 0, 500, 0], [0, 0, 0, 1])), {})],
        "the channels T2 and ADC do not overlap",
    ),
    "only a localizer": (
        [("t2", volume(1), {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}), ("adc", volume(2), {})],
        "no volume fits channel T2",
    ),
}


@pytest.mark.parametrize("name", list(REFUSALS))
def test_a_study_is_refused_with_the_reason(name: str, store: Store, archive: Archive, project: Callable[..., Project]) -> None:
    told, reason = REFUSALS[name]
    for description, image, attributes in told:
        store(description, (image, attributes), **attributes)
    study = only(archive, project(T2_ADC))
    assert study.cases == () and study.reason.startswith(reason)
    assert all(verdict.reason and not verdict.channel for verdict in study.verdicts)
    assert project(T2_ADC).cases(archive) == []


@pytest.mark.parametrize(("prefer", "winner"), [("largest", "t2 b"), ("latest", "t2 c"), ("first", "t2 a")])
def test_a_rule_says_which_of_several(
    prefer: str, winner: str, store: Store, archive: Archive, project: Callable[..., Project]
) -> None:
    told = {
        "t2 a": store("t2 a", (volume(1), {}), SeriesNumber=2, SeriesDate="20240101", SeriesTime="1000"),
        "t2 b": store("t2 b", (volume(1, shape=(5, 6, 5)), {}), SeriesNumber=3, SeriesDate="20240101", SeriesTime="1100"),
        "t2 c": store("t2 c", (volume(1), {}), SeriesNumber=10, SeriesDate="20240102", SeriesTime="0900"),
    }
    study = only(archive, project(f"{{name: T2, where: {{Modality: MR}}, prefer: {prefer}}}"))
    assert study.cases[0].channels == (told[winner],)
    assert [v.reason for v in study.verdicts if not v.channel] == ["T2: fits, as 2 more do"] * 2
    store("t2 d", (volume(1, shape=(5, 6, 5)), {}), SeriesNumber=1, SeriesDate="20240102", SeriesTime="0900")
    if prefer != "first":
        tied = only(archive, project(f"{{name: T2, where: {{Modality: MR}}, prefer: {prefer}}}"))
        assert tied.reason == f"2 volumes fit channel T2, and none is the {prefer} alone"


@pytest.mark.parametrize(
    ("condition", "fits"),
    [
        ("EchoTime: 4.60", True),
        ("EchoTime: '< 5'", True),
        ("EchoTime: '> 4.6'", False),
        ("ImageType: AXIAL", True),
        ("ImageType: 'original*axial'", True),
        ("ImageType: '!AXIAL'", False),
        ("SeriesDescription: ['*AC*', '!*NAC*']", True),
        ("SeriesDescription: ['*x*', '*y*']", False),
        ("ContrastBolusAgent: ''", True),
        ("ContrastBolusAgent: '?*'", False),
        ("'(0018,0081)': 4.6", True),
        ("SeriesDescription: '< 5'", False),
    ],
)
def test_conditions(condition: str, fits: bool, store: Store, archive: Archive, project: Callable[..., Project]) -> None:
    store("PET AC", (volume(1), {"EchoTime": 4.6, "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}))
    assert bool(project(f"{{name: a, where: {{{condition}}}}}").cases(archive)) is fits


@pytest.mark.parametrize(
    ("channels", "field"),
    [
        ("{name: a, where: {Modalty: MR}}", r"channels\.0\.where: .*Modalty: no such DICOM attribute \(Modality\?\)"),
        ("{name: a, where: {}}", r"channels\.0\.where"),
        ("{name: a, where: {Modality: []}}", r"channels\.0\.where"),
        ("{name: a, where: {Modality: MR}, prefer: best}", r"channels\.0\.prefer"),
        ("{name: a b, where: {Modality: MR}}", r"channels\.0\.name"),
        ("{name: a, where: {Modality: MR}}, {name: a, where: {Modality: CT}}", "two channels have one name"),
    ],
)
def test_a_rule_that_cannot_be_is_named(channels: str, field: str, project: Callable[..., Project]) -> None:
    with pytest.raises(CatalogError, match=field):
        project(channels)


def test_without_channels_each_series_that_is_one_volume_is_a_case(
    store: Store, archive: Archive, project: Callable[..., Project]
) -> None:
    one = store("one", (volume(1), {}))
    two = store("two", (volume(1), {"EchoTime": 1}), (volume(1), {"EchoTime": 2}))
    out = store("out", (volume(1), {}))
    study = only(archive, project(where=" where SeriesDescription <> 'out'"))
    assert study.cases == (Case(one, "1.2.3", "P"),) and study.reason == ""
    reasons = {verdict.ref: verdict.reason for verdict in study.verdicts}
    assert reasons[one] == "" and reasons[out] == "not in the project's cohort"
    assert "one of several volumes" in reasons[f"{two}#EchoTime=1"]


class Held:
    """A source of the volumes that it is given, by number."""

    def __init__(self, *volumes: hd.Volume) -> None:
        self.volumes = volumes

    def volume(self, ref: str) -> hd.Volume:
        return self.volumes[int(ref)]


def ramp(affine: np.ndarray, shape: tuple[int, int, int]) -> hd.Volume:
    """A volume whose value is x + 10 y + 100 z in mm: linear, so that linear resampling gives it back."""
    points = np.einsum("ij,jabc->iabc", affine[:3, :3], np.indices(shape)) + affine[:3, 3, None, None, None]
    return hd.Volume(np.tensordot([1.0, 10.0, 100.0], points, 1).astype(np.float32), affine, "PATIENT")


def test_channels_lie_on_the_grid_of_the_first() -> None:
    angle = np.radians(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    oblique = np.eye(4)
    oblique[:3, :3] = turn @ np.diag([2.0, 0.7, 1.1])
    oblique[:3, 3] = [-30, -60, 30]
    first, other = ramp(AXIAL, (10, 8, 9)), ramp(oblique, (40, 110, 70))
    on_first = case_volumes(Held(first, other), Case("", "", "", ("0", "1")))[1]
    assert on_first.geometry_equal(first.get_geometry()) and on_first.array.dtype == np.float32
    np.testing.assert_allclose(on_first.array, first.array, atol=0.02)


def test_outside_stands_the_lowest_value_and_the_faces_are_inside() -> None:
    coarse = hd.Volume(np.arange(5, 13, dtype=np.float32).reshape(2, 2, 2), np.diag([4.0, 4, 4, 1]), "PATIENT")
    fine_affine = np.eye(4)
    fine_affine[:3, 3] = -2.5
    fine = hd.Volume(np.zeros((10, 10, 10), np.float32), fine_affine, "PATIENT")
    found = case_volumes(Held(fine, coarse), Case("", "", "", ("0", "1")))[1].array
    np.testing.assert_array_equal(found[0], 5)  # centres at -2.5 mm: outside the face at -2 mm
    assert found[9, 9, 9] == 5 and found[8, 8, 8] == 12 and found[1, 1, 1] == 5
    inner = np.zeros((10, 10, 10), bool)
    inner[1:9, 1:9, 1:9] = True
    assert found[~inner].max() == 5 and found[inner].max() == 12


def test_a_channel_on_the_same_grid_keeps_its_values() -> None:
    first = volume(0)
    noise = np.random.default_rng(0).normal(size=first.spatial_shape).astype(np.float32)
    moved = first.affine.copy()
    moved[:3, 3] += 1e-6
    found = case_volumes(Held(first, hd.Volume(noise, moved, "PATIENT")), Case("", "", "", ("0", "1")))
    np.testing.assert_array_equal(found[1].array, noise)
    assert found[1].geometry_equal(first.get_geometry())


PET_CT = "{name: PET, where: {Modality: PT}}, {name: CT, where: {Modality: CT}, prefer: largest}"


@pytest.fixture
def petct(archive: Archive, data: Callable[[str], Path]) -> Iterator[Archive]:
    folder = data("acrin_nsclc_petct_seg")
    archive.objects.create()
    part = write_part(rows(list(list_files(folder)), folder), archive.objects.path)
    commit_absent(archive.objects, [part], writer="w", read=archive.objects.version())
    return archive


def test_a_real_pet_ct(petct: Archive, project: Callable[..., Project]) -> None:
    study = only(petct, project(PET_CT))
    (case,) = study.cases
    taken = {verdict.modality: verdict.channel for verdict in study.verdicts}
    assert taken == {"PT": "PET", "CT": "CT", "SEG": "", "RWV": ""}
    assert {v.reason for v in study.verdicts if not v.channel} == {"no image: SEG", "no image: RWV"}
    pet, ct = case_volumes(petct, case)
    assert pet.spatial_shape == ct.spatial_shape == (135, 128, 128) and ct.geometry_equal(pet.get_geometry())
    alone = petct.volume(case.refs[1])
    assert ct.array.min() == alone.array.min() and ct.array.max() <= alone.array.max()
    # Where the PET sees a body, the CT does: soft tissue, not air.
    body = pet.array > np.percentile(pet.array, 99)
    assert -300 < np.median(ct.array[body]) < 300
    assert study.cases == tuple(replace(c, patient_id=case.patient_id) for c in project(PET_CT).cases(petct))


def test_a_comparison_without_a_number_is_refused(project: Callable[..., Project]) -> None:
    with pytest.raises(CatalogError, match=r"SliceThickness '<= five': <= needs a number"):
        project('{name: CT, where: {Modality: CT, SliceThickness: "<= five"}}')
