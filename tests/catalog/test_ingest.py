import errno
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import highdicom as hd
import pyarrow as pa
import pydicom
import pytest

from catalog import Archive, CatalogError
from catalog.files import list_files, listed
from catalog.ingest import ingest
from catalog.objects import rows
from catalog.parse import parse
from catalog.schemas import OBJECTS
from catalog.series import write_series

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(folder: Path) -> Path:
    """Two series, a text and a truncated file."""
    (folder / "cut.dcm").write_bytes((folder / "a" / "0001.dcm").read_bytes()[:-9])
    os.utime(folder / "cut.dcm", (0, 0))  # written long ago
    return folder


def test_every_file_gets_a_row_once(spark: "SparkSession", home: Path, folder: Path) -> None:
    archive, seen = Archive(home), []
    report = ingest(spark, archive, folder, progress=lambda done, total: seen.append((done, total)))
    counts = {"found": 14, "added": 14, "unchanged": 0, "growing": 0, "bad": 2, "conflicts": 0, "archives": 0}
    assert report.as_json() == {**counts, "version": report.version}
    assert seen[0] == (0, 14) and seen[-1] == (14, 14)
    bad = archive.sql("SELECT relative_path, status, error FROM object_catalog WHERE status <> 'ok' ORDER BY 1").to_pylist()
    assert [row["relative_path"] for row in bad] == ["cut.dcm", "readme.txt"] and all(row["error"] for row in bad)
    series = archive.sql("SELECT SeriesInstanceUID, PatientID, instances FROM series ORDER BY PatientID").to_pylist()
    assert [(row["PatientID"], row["instances"]) for row in series] == [("a", 6), ("b", 6)]
    assert archive.volume(series[0]["SeriesInstanceUID"]).spatial_shape == (6, 9, 11)
    again = ingest(spark, archive, folder)
    assert (again.added, again.unchanged, again.bad, again.version) == (0, 14, 2, report.version)


def test_a_second_ingest_opens_only_what_changed(spark: "SparkSession", home: Path, folder: Path) -> None:
    archive = Archive(home)
    ingest(spark, archive, folder)
    same = folder / "b" / "0001.dcm"
    before = same.stat()
    same.write_bytes(b"x" * before.st_size)
    os.utime(same, ns=(before.st_atime_ns, before.st_mtime_ns))  # unchanged by its key: to open it would show
    shutil.copy(folder / "a" / "0001.dcm", folder / "cut.dcm")
    report = ingest(spark, archive, folder)
    assert (report.added, report.unchanged, report.bad) == (1, 13, 1)
    assert archive.sql("SELECT count(*) n FROM instances")["n"].to_pylist() == [12]


def test_a_path_through_a_parent_folder_is_the_same_folder(
    spark: "SparkSession", home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / "b")
    assert ingest(spark, Archive(home), "../a").added == 6
    assert ingest(spark, Archive("../../home"), Path("../a")).added == 0
    assert ingest(spark, Archive(home), folder / "b" / ".." / "a").added == 0


def test_what_stops_a_worker_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = list(list_files(folder))
    done = parse(files, str(folder), str(tmp_path / "gone"), deep=False, report=lambda _: None)
    assert re.search(r"gone: cannot be written: No such file .*run the same command again", str(done.failed))
    assert "\n" not in str(done.failed)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)  # the disk is played: no test fills the machine's
    full_disk = parse(files, str(folder), str(tmp_path), deep=False, report=lambda _: None).failed
    assert full_disk and full_disk.problem == "the disk is full" and "free some space" in str(full_disk.remedy)


def test_two_ingests_at_once_add_each_file_once(spark: "SparkSession", home: Path, folder: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda _: ingest(spark, Archive(home), folder), range(2)))
    assert sum(report.added for report in reports) == 14
    (counted,) = Archive(home).sql("SELECT count(*) n, count(DISTINCT path) paths FROM object_catalog").to_pylist()
    assert counted == {"n": 14, "paths": 14}
    assert len(Archive(home).sql("SELECT * FROM series")) == 2


def test_stored_and_ingested_rows_are_alike(spark: "SparkSession", home: Path, folder: Path) -> None:
    """A file that ``store`` put in place is known to an ingest of its folder."""
    import pydicom

    archive = Archive(home)
    archive.store([pydicom.dcmread(file) for file in (folder / "a").iterdir()], folder="stow", writer="t")
    report = ingest(spark, archive, home / "volume")
    assert (report.found, report.added) == (6, 0)


def test_a_home_inside_the_folder_is_not_ingested(spark: "SparkSession", folder: Path) -> None:
    archive = Archive(folder / "home")
    ingest(spark, archive, folder)
    assert (archive.home / "tables").is_dir() and ingest(spark, archive, folder).added == 0
    with pytest.raises(CatalogError, match="check the path"):
        ingest(spark, archive, folder / "nowhere")


def test_a_file_on_its_way_is_left_for_the_next_run(spark: "SparkSession", home: Path, folder: Path) -> None:
    archive, whole = Archive(home), (folder / "a" / "0001.dcm").read_bytes()
    (folder / "arriving.dcm").write_bytes(whole[:-9])
    first = ingest(spark, archive, folder)
    assert (first.found, first.added, first.growing) == (15, 14, 1)
    (folder / "arriving.dcm").write_bytes(whole)
    second = ingest(spark, archive, folder)
    assert (second.added, second.growing, second.bad) == (1, 0, 2)


def test_a_truncated_file_is_read_again_when_it_changes(spark: "SparkSession", home: Path, folder: Path) -> None:
    archive = Archive(home)
    ingest(spark, archive, folder)
    whole = (folder / "a" / "0001.dcm").read_bytes()
    (folder / "cut.dcm").write_bytes(whole)
    report = ingest(spark, archive, folder)
    assert (report.added, report.bad) == (1, 1)
    query = "SELECT status FROM object_catalog WHERE path LIKE '%cut.dcm' ORDER BY ingested_at"
    assert archive.sql(query)["status"].to_pylist() == ["broken", "ok"]


def test_frames_lie_where_their_row_says(spark: "SparkSession", home: Path, folder: Path) -> None:
    archive = Archive(home)
    ingest(spark, archive, folder / "a", deep=True)
    columns = "path, meta, file_meta, pixel_offset, pixel_length, frame_offsets, frame_lengths, pixel_min, pixel_shape"
    for row in archive.sql(f"SELECT {columns} FROM instances").to_pylist():
        pixels = pydicom.dcmread(row["path"]).pixel_array
        stored = Path(row["path"]).read_bytes()[row["frame_offsets"][0] :][: row["frame_lengths"][0]]
        assert stored == pixels.tobytes() and row["pixel_offset"] == row["frame_offsets"][0]
        assert row["pixel_min"] == pixels.min() and row["pixel_shape"] == [*pixels.shape]
        assert '"00020010"' in row["file_meta"] and '"0002' not in row["meta"]


def test_many_commits_are_one_ingest(spark: "SparkSession", home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["catalog.ingest"], "FILES_A_COMMIT", 5)
    archive, seen = Archive(home), []
    report = ingest(spark, archive, folder, progress=lambda done, total: seen.append((done, total)))
    assert (report.found, report.added, report.version) == (14, 14, 3) and seen[-1] == (14, 14)
    assert ingest(spark, archive, folder).unchanged == 14


KILLED = """
import os, sys
from pathlib import Path
from catalog import Archive, ingest
from catalog.table import DeltaTable
from voxloop.spark import session

home, folder = sys.argv[1:]
sys.modules["catalog.ingest"].FILES_A_COMMIT = 5
committed, commits = DeltaTable.commit, []

def commit(table, parts, **options):
    commits.append(parts)
    if len(commits) == 2:
        os.kill(os.getpid(), 9)
    return committed(table, parts, **options)

DeltaTable.commit = commit
ingest(session(scratch=Path(home) / "spark", warm=False), Archive(home), folder)
"""


def test_a_killed_ingest_is_run_again(spark: "SparkSession", home: Path, folder: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(home), str(folder)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr[-2000:]
    archive = Archive(home)
    assert archive.sql("SELECT count(*) n FROM object_catalog")["n"].to_pylist() == [5]
    report = ingest(spark, archive, folder)
    assert (report.found, report.added, report.unchanged) == (14, 9, 5)
    assert archive.sql("SELECT count(DISTINCT path) n FROM object_catalog")["n"].to_pylist() == [14]
    assert archive.objects.vacuum(hours=0), "what the killed one wrote and never committed"


def test_what_could_not_be_read_is_tried_again(
    spark: "SparkSession", home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, file = Archive(home), folder / "a" / "0001.dcm"
    ingest(spark, archive, folder / "b")
    refused = rows([listed(file)], folder).to_pylist()[0] | {"status": "unreadable", "error": "Input/output error"}
    archive.objects.append(pa.Table.from_pylist([refused], schema=OBJECTS), writer="w", batch=0)
    report = ingest(spark, archive, folder / "a")
    assert (report.found, report.added, report.bad) == (6, 6, 0)
    assert ingest(spark, archive, folder / "a").added == 0


def test_pixels_can_be_read_later(spark: "SparkSession", home: Path, folder: Path) -> None:
    archive = Archive(home)
    ingest(spark, archive, folder)
    assert ingest(spark, archive, folder, deep=True).added == 12
    assert archive.sql("SELECT count(pixel_hash) n, count(*) m FROM instances").to_pylist() == [{"n": 12, "m": 12}]
    assert ingest(spark, archive, folder, deep=True).added == 0


def test_many_copies_are_compared_by_the_workers(
    spark: "SparkSession", home: Path, noise: Callable[..., hd.Volume], tmp_path: Path
) -> None:
    archive = Archive(home)
    write_series(noise(shape=(20, 9, 11)), tmp_path / "in" / "first", patient_id="p", case="c")
    assert ingest(spark, archive, tmp_path / "in").added == 20
    shutil.copytree(tmp_path / "in" / "first", tmp_path / "in" / "second")
    report = ingest(spark, archive, tmp_path / "in")
    assert (report.added, report.conflicts) == (20, 0)
    current = archive.sql("SELECT path, pixel_hash FROM instances").to_pylist()
    assert len(current) == 20 and all("/second/" in row["path"] and row["pixel_hash"] for row in current)


def test_a_link_to_itself_is_a_row(spark: "SparkSession", home: Path, folder: Path) -> None:
    (folder / "loop").symlink_to(folder / "loop")
    report = ingest(spark, Archive(home), folder)
    assert (report.found, report.bad) == (15, 3)


def test_archives_are_unpacked_once_and_their_files_have_rows(spark: "SparkSession", home: Path, folder: Path) -> None:
    archive, inner = Archive(home), io.BytesIO()
    with zipfile.ZipFile(inner, "w") as zipped:
        zipped.write(folder / "b" / "0002.dcm", "deep/0002.dcm")
    with zipfile.ZipFile(folder / "study", "w") as zipped:  # whatever its name
        zipped.write(folder / "b" / "0001.dcm", "x/0001.dcm")
        zipped.writestr("notes.txt", "hello")
        zipped.writestr("inner.zip", inner.getvalue())
    (folder / "damaged.zip").write_bytes((folder / "study").read_bytes()[:-200])
    shutil.rmtree(folder / "b")
    plain = ingest(spark, archive, folder)
    assert (plain.found, plain.bad) == (10, 2), "both archives are rows"
    report = ingest(spark, archive, folder, extract=True)
    assert (report.found, report.added, report.bad) == (14, 4, 4)
    again = ingest(spark, archive, folder, extract=True)
    assert (again.found, again.added, again.bad) == (14, 0, 4)
    rows = archive.sql("SELECT original_path, status, error FROM files ORDER BY 1").to_pylist()
    found = {row["original_path"].removeprefix(f"{folder}/"): (row["status"], row["error"]) for row in rows}
    assert found["study"] == ("archive", None) and found["study!inner.zip"][0] == "archive"
    assert found["study!x/0001.dcm"] == found["study!inner.zip!deep/0002.dcm"] == ("ok", None)
    assert found["damaged.zip"][0] == "broken" and "damaged" in found["damaged.zip"][1]


def test_a_folder_by_url(spark: "SparkSession", home: Path, folder: Path) -> None:
    archive = Archive(home)
    assert ingest(spark, archive, folder.as_uri()).added == 14
    assert ingest(spark, archive, folder).unchanged == 14
    with pytest.raises(CatalogError, match="s3fs"):
        ingest(spark, archive, "s3a://bucket/folder")


def test_all_real_data_is_accounted_for(spark: "SparkSession", home: Path, data: Callable[[str], Path]) -> None:
    folder = data("odd_dicom").parent
    archive = Archive(home)
    report = ingest(spark, archive, folder)
    count = sum(len(files) for _, _, files in os.walk(folder))
    assert report.found == report.added == count > 600
    rows = archive.sql("SELECT file_type, status, error, count(*) n FROM files GROUP BY ALL").to_pylist()
    assert sum(row["n"] for row in rows) == count
    assert all(row["error"] for row in rows if row["status"] not in ("ok", "archive"))
    kinds = {(row["file_type"], row["status"]) for row in rows}
    assert kinds >= {("dicom", "ok"), ("dicom", "incomplete"), ("dicom", "broken"), ("nifti", "ok"), ("other", "not_dicom")}
    again = ingest(spark, archive, folder)
    assert (again.added, again.unchanged, again.bad) == (0, count, report.bad)
