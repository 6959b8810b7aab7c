import errno
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import highdicom as hd
import pytest

from catalog import Archive, CatalogError
from catalog.files import list_files
from catalog.ingest import _parse, _written, ingest
from catalog.objects import rows
from catalog.series import write_series

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.slow
Noise = Callable[..., hd.Volume]


@pytest.fixture
def folder(noise: Noise, tmp_path: Path) -> Path:
    """Two series, a text and a truncated file."""
    for case in ("a", "b"):
        write_series(noise(), tmp_path / "in" / case, patient_id=case, case=case)
    (tmp_path / "in" / "readme.txt").write_text("hello" * 100)
    (tmp_path / "in" / "cut.dcm").write_bytes((tmp_path / "in" / "a" / "0001.dcm").read_bytes()[:-9])
    os.utime(tmp_path / "in" / "cut.dcm", (0, 0))  # written long ago
    return tmp_path / "in"


def test_every_file_gets_a_row_once(spark: "SparkSession", home: Path, folder: Path) -> None:
    archive, seen = Archive(home), []
    report = ingest(spark, archive, folder, progress=lambda done, total: seen.append((done, total)))
    counts = {"found": 14, "added": 14, "unchanged": 0, "growing": 0, "bad": 2, "conflicts": 0}
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


def test_what_stops_a_worker_is_one_line(
    spark: "SparkSession", folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = list(list_files(folder))
    with pytest.raises(CatalogError, match=r"gone: cannot be written: No such file .*run the same command again") as caught:
        _parse(spark, files, folder, tmp_path / "gone", None)
    assert "\n" not in str(caught.value)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)  # the disk is played: no test fills the machine's
    told = _written(rows(files, folder), str(tmp_path))
    assert told["problem"] == "the disk is full" and "free some space" in told["remedy"]


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
    assert (archive.home / "index.db").exists() and ingest(spark, archive, folder).added == 0
    with pytest.raises(CatalogError, match="check the path"):
        ingest(spark, archive, folder / "nowhere")


def test_odd_files_are_all_there(spark: "SparkSession", home: Path, data: Callable[[str], Path]) -> None:
    folder = data("odd_dicom")
    report = ingest(spark, Archive(home), folder)
    assert report.added == report.found == sum(len(files) for _, _, files in os.walk(folder))
