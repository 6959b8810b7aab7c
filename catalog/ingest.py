"""A folder of files into ``object_catalog``: the driver lists and commits, Spark's workers read headers and write parquet."""

import math
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from catalog.archive import Archive
from catalog.disk import disk_full
from catalog.errors import CatalogError
from catalog.objects import Listed, commit_absent, known, list_files, rows
from catalog.progress import Progress
from catalog.table import Part, write_part

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["IngestReport", "ingest"]

FILES_A_PART = 2000
"""How many headers a task parses at most; all of them become one parquet file."""

_FILES = pa.schema([("path", pa.binary()), ("modified", pa.int64()), ("length", pa.int64()), ("problem", pa.string())])
_FILES_DDL = "path binary, modified bigint, length bigint, problem string"
_PARTS = pa.schema(
    [("name", pa.string()), ("size", pa.int64()), ("rows", pa.int64())]
    + [(name, pa.string()) for name in ("problem", "about", "remedy")]
)
_PARTS_DDL = "name string, size bigint, rows bigint, problem string, about string, remedy string"


@dataclass(frozen=True)
class IngestReport:
    """Counts of files: ``found`` on disk, ``added`` as rows, ``unchanged`` since an earlier ingest and not opened, ``bad``
    those among the found that are not usable (their rows say why); ``version`` is the table's that has them all."""

    found: int
    added: int
    unchanged: int
    bad: int
    version: int

    def as_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def ingest(spark: "SparkSession", archive: Archive, path: str | Path, *, progress: Progress | None = None) -> IngestReport:
    """Add a row for every file under ``path`` that ``object_catalog`` does not have as it is now.

    A file is the same while path, modification time and length are; what is not DICOM or cannot be read gets a row with
    its reason. Two ingests of one folder at once add each file once. Nothing is visible before the one commit at the end,
    so an interrupted ingest is simply run again. CatalogError where ``path`` is not there.
    """
    root = Path(os.path.abspath(path))
    if not root.exists():
        raise CatalogError("no such folder or file", about=str(path), remedy="check the path")
    # A home below ``path`` holds only what is catalogued already; ``path`` may also lie inside the home.
    own = {str((archive.home / name).resolve()) for name in ("", "tables", "journal", "mlflow", "datasets")}
    read = archive.objects.version()
    present = known(archive.objects, read, str(root))
    found = list(list_files(root, skip=own))
    new = [file for file in found if file.key not in present]
    version, added = read, 0
    if new:
        archive.objects.create()
        parts = _parse(spark, new, root, archive.objects.path, progress)
        writer = f"ingest/{uuid.uuid4()}"
        version, added = commit_absent(archive.objects, parts, prefix=str(root), writer=writer, read=max(read, 0))
    archive.index.follow(archive.objects)
    bad = known(archive.objects, version, str(root), where="status <> 'ok'")
    return IngestReport(len(found), added, len(found) - added, sum(file.key in bad for file in found), version)


def _parse(spark: "SparkSession", files: Sequence[Listed], root: Path, table: Path, progress: Progress | None) -> list[Part]:
    """The parts that the workers wrote; CatalogError where one could not."""
    context = spark.sparkContext
    partitions = max(min(context.defaultParallelism, len(files)), math.ceil(len(files) / FILES_A_PART))
    listing = pa.Table.from_pydict(
        {
            "path": [os.fsencode(file.path) for file in files],
            "modified": [file.modified for file in files],
            "length": [file.length for file in files],
            "problem": [file.problem for file in files],
        },
        schema=_FILES,
    )
    done = context.accumulator(0)
    frame = spark.createDataFrame(listing, schema=_FILES_DDL).repartition(partitions)
    with _reported(progress, lambda: int(done.value), len(files)):
        written = _collected(frame.mapInArrow(_worker(str(root), str(table), done), _PARTS_DDL))
    for failed in written:
        if failed.problem:
            raise CatalogError(failed.problem, about=failed.about, remedy=failed.remedy)
    return [Part(part.name, part.size, part.rows) for part in written]


def _collected(frame: Any) -> list[Any]:
    try:
        return list(frame.collect())
    except Exception as problem:  # Spark raises several kinds, which share no base
        if "No space left on device" in str(problem):
            raise disk_full("Spark's scratch folder") from None
        raise


def _worker(root: str, table: str, done: Any) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """What a task does with its share of the listing: one parquet file in the table's folder, not yet committed.

    What keeps it from writing comes back as a row: an exception would reach the driver as a page of Java's.
    """

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        tables = []
        for batch in batches:
            files = [Listed(**{**row, "path": os.fsdecode(row["path"])}) for row in batch.to_pylist()]
            for start in range(0, len(files), 250):
                tables.append(rows(files[start : start + 250], root))
                done.add(tables[-1].num_rows)
        if sum(found.num_rows for found in tables):
            yield pa.RecordBatch.from_pylist([_written(pa.concat_tables(tables), table)], schema=_PARTS)

    return work


def _written(parsed: pa.Table, table: str) -> dict[str, Any]:
    try:
        return asdict(write_part(parsed, table))
    except CatalogError as failed:
        return {"problem": failed.problem, "about": failed.about, "remedy": failed.remedy}
    except OSError as failed:
        remedy = "make the home writable, then run the same command again"
        return {"problem": f"cannot be written: {failed.strerror}", "about": table, "remedy": remedy}


@contextmanager
def _reported(progress: Progress | None, count: Callable[[], int], total: int) -> Iterator[None]:
    """Report ``count`` while the block runs; Spark shows what a task counted once the task has ended."""
    if progress is None:
        yield
        return
    progress(0, total)
    ended = threading.Event()

    def report() -> None:
        last = 0
        while not ended.wait(0.5):
            if (now := min(count(), total)) != last:
                last = now
                progress(now, total)

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        ended.set()
        reporter.join()
    progress(total, total)
