"""Several files of one SOPInstanceUID: a copy, a conflict, a decision."""

import os
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pyarrow as pa
import pydicom
import pytest

from catalog import Archive, CatalogError, LabelSet, Submission, resolve, submit
from catalog.conflicts import Settler
from catalog.files import listed
from catalog.objects import commit_absent, rows
from catalog.table import write_part

Stored = Callable[..., tuple[Archive, str]]


def ingest_one(archive: Archive, path: Path) -> int:
    """What ingest does with one file, in this process; how many conflicts that made."""
    settler = Settler(archive)
    part = write_part(rows([listed(path)], path.parent), archive.objects.path)
    commit_absent(archive.objects, [part], writer=os.urandom(8).hex(), read=archive.objects.version(), settle=settler.settle)
    return settler.conflicts


def other(path: str, target: Path, *, pixels: int = 0, **header: str) -> Path:
    """A file of the same object, with ``pixels`` added to each and another ``header``."""
    dataset = pydicom.dcmread(path)
    dataset.PixelData = (dataset.pixel_array + pixels).astype(dataset.pixel_array.dtype).tobytes()
    for name, value in header.items():
        setattr(dataset, name, value)
    target.parent.mkdir(exist_ok=True)
    dataset.save_as(target, enforce_file_format=True)
    return target


def row(archive: Archive, path: Path) -> dict[str, object]:
    columns = ("status", "error", "notes", "pixel_hash")
    (found,) = archive.objects.scan(columns, where=f"path = '{path}'").read_all().to_pylist()
    return dict(found)


@pytest.fixture
def labelled(stored: Stored, labels: LabelSet) -> tuple[Archive, str]:
    """A series with a label."""
    archive, uid = stored()
    mask = np.zeros(archive.volume(uid).spatial_shape, np.uint8)
    mask[1:3, 2:5, 2:5] = 1
    volume = hd.Volume(mask, archive.geometry(uid).affine, "PATIENT")
    submit(archive, "p", labels, Submission(uid, volume, {"Liver": "present", "Spleen": "absent"}, "Anna"))
    return archive, uid


def test_equal_pixels_are_a_copy_whatever_the_header_says(labelled: tuple[Archive, str], tmp_path: Path) -> None:
    archive, uid = labelled
    first = archive.series_files(uid)[0]
    copy = other(first, tmp_path / "elsewhere" / "copy", SeriesDescription="renamed")
    assert ingest_one(archive, copy) == 0
    assert row(archive, copy)["status"] == "ok" and row(archive, copy)["pixel_hash"]
    assert str(copy) in archive.series_files(uid) and first not in archive.series_files(uid)


def test_other_pixels_under_a_label_are_a_conflict_and_the_first_stays(labelled: tuple[Archive, str], tmp_path: Path) -> None:
    archive, uid = labelled
    before = archive.series_files(uid)
    changed = other(before[0], tmp_path / "elsewhere" / "changed", pixels=1)
    assert ingest_one(archive, changed) == 1
    assert row(archive, changed)["status"] == "conflict" and before[0] in str(row(archive, changed)["error"])
    assert archive.series_files(uid) == before
    assert archive.sql("SELECT count(*) n FROM instances WHERE Modality <> 'SEG'")["n"].to_pylist() == [len(before)]


@pytest.mark.parametrize(
    "header", [{"PatientID": "P9"}, {"FrameOfReferenceUID": "1.2.99"}, {"Units": "GML"}, {"RescaleType": "US"}]
)
def test_equal_pixels_of_something_else_are_a_conflict(
    labelled: tuple[Archive, str], tmp_path: Path, header: dict[str, str]
) -> None:
    archive, uid = labelled
    before = archive.series_files(uid)
    assert ingest_one(archive, other(before[0], tmp_path / "elsewhere" / "changed", **header)) == 1
    assert archive.series_files(uid) == before


def test_other_pixels_without_a_label_count_and_leave_a_note(stored: Stored, tmp_path: Path) -> None:
    archive, uid = stored()
    first = archive.series_files(uid)[0]
    changed = other(first, tmp_path / "elsewhere" / "changed", pixels=1)
    assert ingest_one(archive, changed) == 0
    assert row(archive, changed)["status"] == "ok" and first in str(row(archive, changed)["notes"])
    assert str(changed) in archive.series_files(uid)


def test_the_pixels_of_what_does_not_recur_are_not_read(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, uid = stored()
    lonely = other(archive.series_files(uid)[0], tmp_path / "elsewhere" / "new", SOPInstanceUID="1.2.3")
    monkeypatch.setattr("catalog.pixels.pixel_facts", lambda _: pytest.fail("pixels were read"))
    assert ingest_one(archive, lonely) == 0 and row(archive, lonely)["pixel_hash"] is None


@pytest.mark.parametrize("accept", [True, False])
def test_a_conflict_is_decided_once(labelled: tuple[Archive, str], tmp_path: Path, accept: bool) -> None:
    archive, uid = labelled
    before = archive.series_files(uid)
    changed = other(before[0], tmp_path / "elsewhere" / "changed", pixels=1)
    ingest_one(archive, changed)
    assert resolve(archive, str(changed), accept=accept) == ("ok" if accept else "rejected")
    assert (str(changed) in archive.series_files(uid)) is accept and (before[0] in archive.series_files(uid)) is not accept
    assert archive.sql("SELECT count(*) n FROM instances WHERE Modality <> 'SEG'")["n"].to_pylist() == [len(before)]
    with pytest.raises(CatalogError, match=r"not in conflict.*catalog conflicts"):
        resolve(archive, str(changed), accept=accept)


def test_what_is_stored_is_judged_as_what_is_ingested(labelled: tuple[Archive, str], tmp_path: Path) -> None:
    archive, uid = labelled
    before = archive.series_files(uid)
    changed = pydicom.dcmread(other(before[0], tmp_path / "elsewhere" / "changed", pixels=1))
    (path,) = archive.store([changed], folder="sent", writer="w")
    assert row(archive, path)["status"] == "conflict" and archive.series_files(uid) == before


def test_equal_bits_that_show_something_else_are_a_conflict(labelled: tuple[Archive, str], tmp_path: Path) -> None:
    archive, _ = labelled
    (seg,) = archive.sql("SELECT path FROM instances WHERE Modality = 'SEG'")["path"].to_pylist()
    moved = pydicom.dcmread(seg)
    for frame in moved.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0]
        position.ImagePositionPatient = [position.ImagePositionPatient[0] + 100, *position.ImagePositionPatient[1:]]
    (tmp_path / "elsewhere").mkdir()
    moved.save_as(tmp_path / "elsewhere" / "seg.dcm")
    assert ingest_one(archive, tmp_path / "elsewhere" / "seg.dcm") == 1


def test_a_moved_file_is_no_conflict_and_says_that_it_was_not_compared(labelled: tuple[Archive, str], tmp_path: Path) -> None:
    archive, uid = labelled
    first = Path(archive.series_files(uid)[0])
    (tmp_path / "moved").mkdir()
    first.rename(tmp_path / "moved" / "file")
    assert ingest_one(archive, tmp_path / "moved" / "file") == 0
    assert f"could not be compared with {first}" in str(row(archive, tmp_path / "moved" / "file")["notes"])
    assert str(tmp_path / "moved" / "file") in archive.series_files(uid)


def test_a_file_written_over_is_a_conflict_where_its_pixels_were_known(labelled: tuple[Archive, str], tmp_path: Path) -> None:
    archive, uid = labelled
    copy = other(archive.series_files(uid)[0], tmp_path / "elsewhere" / "copy")
    ingest_one(archive, copy)  # current now, its pixels hashed
    other(str(copy), copy, pixels=1)
    assert ingest_one(archive, copy) == 1


def test_a_decision_counts_whatever_the_clocks_say(
    labelled: tuple[Archive, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, uid = labelled
    changed = other(archive.series_files(uid)[0], tmp_path / "elsewhere" / "changed", pixels=1)
    with monkeypatch.context() as ahead:
        ahead.setattr("catalog.objects.time.time", lambda: 4_000_000_000.0)
        ingest_one(archive, changed)
    archive.objects.grow([pa.field("mine", pa.string())])
    resolve(archive, str(changed), accept=True)
    assert archive.sql(f"SELECT status, mine FROM files WHERE path = '{changed}'").to_pylist() == [
        {"status": "ok", "mine": None}
    ]
