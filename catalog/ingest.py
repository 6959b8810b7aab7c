"""A folder of files into ``object_catalog``: the driver lists and commits, Spark's workers read headers and write parquet."""

import math
import pickle
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow.parquet as pq

from catalog.archive import Archive
from catalog.conflicts import Settler
from catalog.disk import FULL, disk_full
from catalog.errors import CatalogError
from catalog.files import Key, Listed, list_files, located
from catalog.listing import opened
from catalog.objects import SHALLOW, commit_absent, known, rows
from catalog.parse import Done, parse
from catalog.progress import Progress
from catalog.schemas import USABLE

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["IngestReport", "collected", "ingest"]

FILES_A_COMMIT = 20_000
"""How many files the driver holds: they are listed, parsed and committed before the next are looked at."""
FILES_A_PART = 2000
"""How many headers a task parses at most; all of them become one parquet file."""

T = TypeVar("T")


@dataclass(frozen=True)
class IngestReport:
    """Counts of files: ``found`` on disk, ``added`` as rows, ``unchanged`` since an earlier ingest and not opened,
    ``growing`` while they were looked at and left for the next run; ``bad`` are those of the catalogued that are not usable
    (their rows say why), of which ``conflicts`` wait for ``voxloop catalog resolve``; ``archives`` those that hold others;
    ``version`` is the table's that has them all."""

    found: int = 0
    added: int = 0
    unchanged: int = 0
    growing: int = 0
    bad: int = 0
    conflicts: int = 0
    archives: int = 0
    version: int = -1

    def as_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def ingest(
    spark: "SparkSession",
    archive: Archive,
    path: str | Path,
    *,
    pattern: str = "*",
    recurse: bool = True,
    deep: bool = False,
    extract: bool = False,
    progress: Progress | None = None,
) -> IngestReport:
    """Add a row for every file under ``path`` (a folder, a file or a URL) that ``object_catalog`` does not have as it is now.

    A file is the same while path, modification time and length are; what is not DICOM or cannot be read gets a row with
    its reason. Two ingests of one folder at once add each file once. FILES_A_COMMIT files are one commit: an interrupted
    ingest is simply run again, and opens nothing that is committed. ``deep`` reads the pixels too; ``extract`` takes in what
    zip and tar archives hold as well. The query index follows when it is next asked. CatalogError where ``path`` is not there.
    """
    work = _Ingest(spark, archive, located(path), deep, progress)
    files = list_files(path, skip=archive.own_folders(), pattern=pattern, recurse=recurse)
    while batch := list(islice(files, FILES_A_COMMIT)):
        archives = work.take(batch)
        if extract and archives:
            files = chain(work.unpack(archives), files)
    return work.report


class _Ingest:
    """One ingest as it goes: batch by batch, counting."""

    def __init__(self, spark: "SparkSession", archive: Archive, root: str, deep: bool, progress: Progress | None) -> None:
        self.spark, self.archive, self.root, self.deep, self.progress = spark, archive, root, deep, progress
        self.report = IngestReport(version=archive.objects.version())
        self.parsed = 0

    def take(self, batch: Sequence[Listed]) -> list[Listed]:
        """Parse and commit what is new of ``batch``; the archives in it."""
        objects, read = self.archive.objects, self.archive.objects.version()
        present = known(objects, read, batch, *([SHALLOW] if self.deep else []))
        again = frozenset(key for key, status in present.items() if status in ("unreadable", "shallow"))
        new = [file for file in batch if file.key not in present or file.key in again] if present else batch
        done = self._parse(new, again) if new else []
        settler = Settler(self.archive, self.spark)
        parts = [share.part for share in done if share.part]
        writer = f"ingest/{uuid.uuid4()}"
        version, committed = commit_absent(objects, parts, writer=writer, read=max(read, 0), settle=settler.settle)
        there = [status for key, status in present.items() if key not in again]
        conflicts = sum(_conflicts(objects.path / part.name) for part in committed) if settler.conflicts else 0
        self._count(len(batch), there, done, sum(part.rows for part in committed), conflicts, version)
        archives = {path for share in done for path in share.archives}
        archives |= {key[0] for key, status in present.items() if status == "archive"}
        return [file for file in batch if file.key[0] in archives and not file.original] if archives else []

    def unpack(self, archives: Sequence[Listed]) -> Iterator[Listed]:
        """The files that ``archives`` hold, unpacked where that was not done before; one that cannot be is marked broken."""
        from catalog.unpack import unpacked

        into = self.archive.volume_folder / "unzipped"
        tried = collected(self.spark, [[file] for file in archives], lambda share: _unpack(share[0], into))
        failed = {file.key: problem for file, problem in zip(archives, tried, strict=True) if problem}
        if FULL in failed.values():
            raise disk_full(str(into))
        if failed:
            broken = [replace(file, problem=failed[file.key]) for file in archives if file.key in failed]
            self.archive.objects.append(rows(broken, self.root), writer=f"ingest/{uuid.uuid4()}", batch=0)
            self.report = replace(self.report, bad=self.report.bad + len(broken))
        for file in archives:
            if file.key not in failed:
                yield from unpacked(file, into)

    def _parse(self, files: Sequence[Listed], again: frozenset[Key]) -> list[Done]:
        self.archive.objects.create()
        context = self.spark.sparkContext
        count = max(min(context.defaultParallelism, len(files)), math.ceil(len(files) / FILES_A_PART))
        shares = [files[i * len(files) // count : (i + 1) * len(files) // count] for i in range(count)]
        counter, before = context.accumulator(0), self.parsed
        root, table, deep = self.root, str(self.archive.objects.path), self.deep

        def work(share: Sequence[Listed]) -> Done:
            mine = again.intersection(file.key for file in share)
            return parse(share, root, table, deep=deep, again=mine, report=counter.add)

        self.parsed += len(files)
        with _reported(self.progress, lambda: before + int(counter.value), before, self.parsed):
            done = collected(self.spark, shares, work)
        for share in done:
            if share.failed:
                raise share.failed
        return done

    def _count(self, found: int, there: Sequence[str], done: Sequence[Done], added: int, conflicts: int, version: int) -> None:
        """Add a batch: ``there`` are the states of the files that were not opened."""
        so_far, growing = self.report, sum(share.growing for share in done)
        bad = sum(status not in USABLE for status in there) + sum(share.bad for share in done) + conflicts
        self.report = IngestReport(
            found=so_far.found + found,
            added=so_far.added + added,
            unchanged=so_far.unchanged + found - added - growing,
            growing=so_far.growing + growing,
            bad=so_far.bad + bad,
            conflicts=so_far.conflicts + conflicts + there.count("conflict"),
            archives=so_far.archives + there.count("archive") + sum(len(share.archives) for share in done),
            version=version,
        )


def _conflicts(part: Path) -> int:
    """How many rows of a part wait for a decision; another writer may have had some of those that were judged."""
    return int(pq.read_table(part, columns=["status"])["status"].to_pylist().count("conflict"))


def _unpack(file: Listed, into: Path) -> str:
    """Unpack an archive; why that cannot be done, empty where it was."""
    try:
        return opened(file, into)[0].problem
    except CatalogError as problem:  # a full disk, which is no fault of the archive
        return problem.problem


def collected(spark: "SparkSession", shares: Sequence[Sequence[Listed]], work: Callable[[Sequence[Listed]], T]) -> list[T]:
    """What ``work`` makes of each share, a Spark task each."""

    def task(held: Iterator[bytes]) -> Iterator[T]:
        return (work(pickle.loads(share)) for share in held)

    pickled = [pickle.dumps(share) for share in shares]  # Spark's own pickler is written in Python
    try:
        return list(spark.sparkContext.parallelize(pickled, len(shares)).mapPartitions(task).collect())
    except Exception as problem:  # Spark raises several kinds, which share no base
        if "No space left on device" in str(problem):
            raise disk_full("Spark's scratch folder") from None
        raise


@contextmanager
def _reported(progress: Progress | None, count: Callable[[], int], start: int, total: int) -> Iterator[None]:
    """Report ``count`` while the block runs; Spark shows what a task counted once the task has ended."""
    if progress is None:
        yield
        return
    progress(start, total)
    ended = threading.Event()

    def report() -> None:
        last = start
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
