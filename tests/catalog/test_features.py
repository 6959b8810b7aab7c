"""Every label leaves what was measured of it, once, whatever happens in between."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog import Archive, LabelSet, Submission, features, submit
from catalog.schemas import FEATURES
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
