"""Every label leaves what was measured of it, once, whatever happens in between."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset, Sequence

from catalog import Archive, LabelSet, Submission, features, mask, submit
from catalog.schemas import FEATURES
from catalog.series import write_series
from catalog.table import DeltaTable

Stored = Callable[..., tuple[Archive, str]]


def handed_in(archive: Archive, uid: str, **states: str) -> Submission:
    """A block of the liver, where it is present; the spleen never has a voxel."""
    like = archive.volume(uid)
    array = np.zeros(like.spatial_shape, np.uint8)
    told = {"Liver": "present", "Spleen": "absent", **states}
    array[2:4, 3:6, 4:8] = told["Liver"] == "present"
    return Submission(uid, like.with_array(array), told, "Anna")  # type: ignore[arg-type]


def measured(archive: Archive) -> dict[tuple[str, str], dict[str, Any]]:
    rows = archive.features.scan(FEATURES.names).read_all().to_pylist()
    found = {(row["structure"], row["name"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_a_label_is_measured(stored: Stored, labels: LabelSet) -> None:
    archive, uid = stored()
    revision = submit(archive, "p", labels, handed_in(archive, uid))
    found, like = measured(archive), archive.volume(uid)
    inside = like.array[2:4, 3:6, 4:8]
    values = {name: row["value"] for (structure, name), row in found.items() if structure == "Liver"}
    assert values["volume"] == pytest.approx(inside.size * np.prod(like.spacing) / 1000)
    assert values["diameter"] == pytest.approx(np.linalg.norm(np.array([2, 3, 4]) * like.spacing))
    assert values["in_plane_diameter"] == pytest.approx(np.linalg.norm(np.array([3, 4]) * like.spacing[1:]))
    expected = {
        "mean": inside.mean(),
        "std": inside.std(),
        "min": inside.min(),
        "max": inside.max(),
        "median": np.median(inside),
    }
    expected |= {"p10": np.percentile(inside, 10), "p90": np.percentile(inside, 90)}
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert len(values) == 10
    row = found["Liver", "volume"]
    assert (row["source_uid"], row["label_id"], row["source"]) == (revision.seg_uid, revision.label_id, "label")
    assert (row["series_uid"], row["patient_id"], row["project"], row["unit"]) == (uid, "P1", "p", "ml")


def test_what_is_absent_has_no_volume_and_what_was_not_looked_for_no_row(stored: Stored, labels: LabelSet) -> None:
    archive, uid = stored()
    submit(archive, "p", labels, handed_in(archive, uid, Liver="not_annotated"))
    found = measured(archive)
    assert list(found) == [("Spleen", "volume")]
    assert found["Spleen", "volume"]["value"] == 0


@pytest.fixture
def changed(home: Path, noise: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[Archive, str]]:
    """A series of so many slices, each with the attributes given; one of None is left out."""

    def put(slices: int, **attributes: Any) -> tuple[Archive, str]:
        archive, folder = Archive(home), tmp_path / "changed"
        uid = write_series(noise(shape=(slices, 9, 11)), folder, patient_id="P1", case="one")
        datasets = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
        for dataset in datasets:
            for keyword, value in attributes.items():
                setattr(dataset, keyword, value)
                if value is None:
                    delattr(dataset, keyword)
        archive.store(datasets, folder="stow", writer="one")
        return archive, uid

    return put


Changed = Callable[..., tuple[Archive, str]]


def square(archive: Archive, uid: str) -> Submission:
    """Two by three voxels of the liver in the first slice."""
    like = archive.geometry(uid)
    array = np.zeros(like.spatial_shape, np.uint8)
    array[0, 2:4, 4:7] = 1
    return Submission(uid, like.with_array(array), {"Liver": "present", "Spleen": "absent"}, "Anna")


@pytest.mark.parametrize("special", [{}, {"PresentationLUTShape": "IDENTITY"}])
def test_one_slice_is_as_thick_as_it_says(changed: Changed, labels: LabelSet, special: dict[str, str]) -> None:
    """Also where its pixels are no plain rescale, and are read in another way."""
    archive, uid = changed(1, SpacingBetweenSlices=None, SliceThickness="5", **special)
    assert archive.geometry(uid).spacing[0] == archive.volume(uid).spacing[0] == 5
    submit(archive, "p", labels, square(archive, uid))
    coarse, fine = archive.geometry(uid).spacing[1:]
    found = measured(archive)
    assert found["Liver", "volume"]["value"] == pytest.approx(6 * 5 * coarse * fine / 1000)
    assert found["Liver", "diameter"]["value"] == pytest.approx(np.linalg.norm([5, 2 * coarse, 3 * fine]))


@pytest.mark.parametrize("said", [None, "", "0"])
def test_one_slice_that_does_not_say_how_thick_it_is_has_no_volume(
    changed: Changed, labels: LabelSet, said: str | None
) -> None:
    archive, uid = changed(1, SpacingBetweenSlices=None, SliceThickness=said)
    submit(archive, "p", labels, square(archive, uid))
    found = measured(archive)
    for name in ("volume", "diameter"):
        assert found["Liver", name]["value"] is None
        assert "SliceThickness" in found["Liver", name]["note"]
    assert found["Liver", "in_plane_diameter"]["value"] > 0 and found["Liver", "mean"]["note"] == ""
    assert found["Spleen", "volume"]["value"] == 0


def test_a_label_of_one_slice_from_when_it_was_taken_for_1_mm_thick_is_read(changed: Changed, labels: LabelSet) -> None:
    archive, uid = changed(1, SpacingBetweenSlices=None, SliceThickness="5")
    given = square(archive, uid)
    revision = submit(archive, "p", labels, given)
    file = next((archive.home / "volume" / "labels").rglob("*.dcm"))
    before = pydicom.dcmread(file)
    measures = before.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SpacingBetweenSlices = measures.SliceThickness = "1"
    before.save_as(file)
    np.testing.assert_array_equal(mask(archive, revision, labels).array, given.mask.array)


def mapping(slope: float, unit: str) -> Sequence:
    """Real world values by ``slope``."""
    code, made = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = unit, "UCUM", unit
    made.MeasurementUnitsCodeSequence = [code]
    made.RealWorldValueFirstValueMapped, made.RealWorldValueLastValueMapped = 0, 65_535
    made.RealWorldValueSlope, made.RealWorldValueIntercept = slope, 0.0
    return Sequence([made])


@pytest.mark.parametrize(("code", "unit"), [("{SUVbw}g/ml", "{SUVbw}g/ml"), ("[hnsf'U]", "HU")])
def test_real_world_values_have_their_own_unit(changed: Changed, labels: LabelSet, code: str, unit: str) -> None:
    archive, uid = changed(3, Modality="PT", Units="BQML", RealWorldValueMappingSequence=mapping(0.001, code))
    submit(archive, "p", labels, square(archive, uid))
    mean, stored = measured(archive)["Liver", "mean"], [pydicom.dcmread(path) for path in archive.series_files(uid)]
    inside = archive.volume(uid).array[0, 2:4, 4:7]
    assert any(np.allclose(inside, one.pixel_array[2:4, 4:7] * 0.001) for one in stored)
    assert (mean["value"], mean["unit"]) == (pytest.approx(inside.mean()), unit)


def test_rescaled_values_have_the_unit_of_the_rescale(changed: Changed, labels: LabelSet) -> None:
    archive, uid = changed(3, Modality="PT", Units="BQML")
    submit(archive, "p", labels, square(archive, uid))
    mean = measured(archive)["Liver", "mean"]
    expected = archive.volume(uid).array[0, 2:4, 4:7].mean()
    assert (mean["value"], mean["unit"]) == (pytest.approx(expected, rel=1e-5), "BQML")


def test_slices_in_different_units_have_no_values(changed: Changed, labels: LabelSet) -> None:
    archive, uid = changed(3, Modality="PT", Units="BQML")
    path = archive.series_files(uid)[1]
    one = pydicom.dcmread(path)
    one.RealWorldValueMappingSequence = mapping(0.001, "{SUVbw}g/ml")
    one.save_as(path)
    submit(archive, "p", labels, square(archive, uid))
    found = measured(archive)
    assert found["Liver", "mean"]["value"] is None
    assert "different units: BQML, {SUVbw}g/ml" in found["Liver", "mean"]["note"]
    assert found["Liver", "volume"]["value"] > 0


def test_they_can_be_joined_in_sql(stored: Stored, labels: LabelSet) -> None:
    archive, uid = stored()
    submit(archive, "p", labels, handed_in(archive, uid))
    query = """select l.author, f.structure, f.value from features f join labels l on f.source_uid = l.seg_uid
        join series s on s.SeriesInstanceUID = f.series_uid where f.name = 'volume' order by 3 desc"""
    rows = archive.sql(query).to_pylist()
    assert [(row["author"], row["structure"]) for row in rows] == [("Anna", "Liver"), ("Anna", "Spleen")]


def test_an_image_that_cannot_be_read_costs_nobody_the_label(stored: Stored, labels: LabelSet) -> None:
    archive, uid = stored()
    given = handed_in(archive, uid)
    path = Path(archive.series_files(uid)[2])
    path.write_bytes(path.read_bytes()[:-50])
    for lost in sorted(path.parent.iterdir()):
        lost.write_bytes(lost.read_bytes()[:-50])
    submit(archive, "p", labels, given)
    found = measured(archive)
    assert found["Liver", "volume"]["value"] > 0 and found["Liver", "diameter"]["value"] > 0
    assert found["Liver", "mean"]["value"] is None
    assert found["Liver", "mean"]["note"]


def test_the_same_label_id_is_measured_once(stored: Stored, labels: LabelSet) -> None:
    archive, uid = stored()
    for _ in range(2):
        submit(archive, "p", labels, handed_in(archive, uid), label_id="L")
    assert len(measured(archive)) == 11


def test_labels_from_before_are_measured_as_if_just_handed_in(
    stored: Stored, labels: LabelSet, affine: np.ndarray, tmp_path: Path
) -> None:
    archive, uid = stored(affine)
    submit(archive, "p", labels, handed_in(archive, uid))
    before = measured(archive)
    archive.features = DeltaTable(tmp_path / "empty", FEATURES)
    assert features.complete(archive) == (1, [])
    after = measured(archive)
    assert features.complete(archive) == (0, [])
    assert before.keys() == after.keys()
    for key, row in before.items():
        told, again = ({name: value for name, value in one.items() if name != "created_at"} for one in (row, after[key]))
        assert told.pop("value") == pytest.approx(again.pop("value"))
        assert told == again


def test_a_segmentation_that_cannot_be_read_is_noted_and_told_of_once(stored: Stored, labels: LabelSet, tmp_path: Path) -> None:
    archive, uid = stored()
    revision = submit(archive, "p", labels, handed_in(archive, uid))
    archive.features = DeltaTable(tmp_path / "empty", FEATURES)
    path = next((archive.home / "volume" / "labels").rglob("*.dcm"))
    path.write_bytes(b"no DICOM")
    count, [note] = features.complete(archive)
    assert count == 1 and note.startswith(revision.seg_uid)
    assert {row["value"] for row in measured(archive).values()} == {None}
    assert features.complete(archive) == (0, [])


def test_what_a_file_out_of_reach_left_out_is_measured_once_it_is_there(
    stored: Stored, labels: LabelSet, tmp_path: Path
) -> None:
    archive, uid = stored()
    revision = submit(archive, "p", labels, handed_in(archive, uid))
    whole = measured(archive)
    archive.features = DeltaTable(tmp_path / "empty", FEATURES)
    segmentation = next((archive.home / "volume" / "labels").rglob("*.dcm"))
    for lost in (segmentation, Path(archive.series_files(uid)[2])):
        lost.rename(tmp_path / "away")
        for _ in range(2):  # it is told of as long as it lasts
            count, [note] = features.complete(archive)
            assert count == 0 and note.startswith(revision.seg_uid) and "gone" in note
            assert measured(archive) == {}
        (tmp_path / "away").rename(lost)
    assert features.complete(archive) == (1, [])
    assert {key: row["value"] for key, row in measured(archive).items()} == {key: row["value"] for key, row in whole.items()}
    assert features.complete(archive) == (0, [])


def test_an_image_that_goes_while_a_label_is_handed_in_is_measured_later(
    stored: Stored, labels: LabelSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    archive, uid = stored()

    def unreachable(*_: object, **__: object) -> None:
        raise TimeoutError("the share does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(features, "read_series", unreachable)
        revision = submit(archive, "p", labels, handed_in(archive, uid))
    assert f"not measured in full: {revision.seg_uid}: the share does not answer" in caplog.text
    assert measured(archive) == {}
    assert features.complete(archive) == (1, [])
    assert len(measured(archive)) == 11


@pytest.mark.slow
def test_finish_measures_what_a_kill_left(stored: Stored, labels: LabelSet) -> None:
    archive, uid = stored()
    process = multiprocessing.get_context("spawn").Process(target=_submit_and_die, args=(archive.home, uid, labels))
    process.start()
    process.join(120)
    assert process.exitcode == -9
    archive = Archive(archive.home)
    assert measured(archive) == {}
    assert any("measured label" in line for line in archive.finish())
    assert len(measured(archive)) == 11
    assert archive.finish() == []


def _submit_and_die(home: Path, uid: str, labels: LabelSet) -> None:
    import os
    import signal

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    features.append = die  # type: ignore[assignment]
    archive = Archive(home)
    submit(archive, "p", labels, handed_in(archive, uid), label_id="L")
