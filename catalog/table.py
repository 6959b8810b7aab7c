"""Append-only tables: Delta Lake on disk without a JVM, and one in memory that behaves the same."""

import json
import os
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from catalog._query import stream
from catalog.disk import full_disk
from catalog.errors import CatalogError

__all__ = ["Conflict", "DeltaTable", "MemoryTable", "Part", "Table", "write_part"]

_SETTINGS = {
    # Receipts point at versions for as long as the home exists: Delta's own defaults forget after 30 and 7 days.
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
    "delta.enableExpiredLogCleanup": "false",
    "delta.appendOnly": "true",
}


_GROUP = 2000
"""Rows of a group in a file: what a reader with a condition skips or reads."""


class Table(Protocol):
    """Rows that are only ever added, in versions that stay readable."""

    def version(self) -> int:
        """The latest version, -1 before the first append."""
        ...

    def append(self, rows: pa.Table, *, writer: str, batch: int) -> int:
        """Add ``rows`` once per (writer, batch) and return a version that has them.

        The batches of a writer ascend: one that is not above the writer's last is taken for a repeat and adds nothing.
        """
        ...

    def scan(self, columns: Sequence[str], *, where: str = "", version: int | None = None) -> pa.RecordBatchReader:
        """``columns`` of the rows for which ``where`` (SQL over all columns) holds, at ``version`` or the latest.

        No order is promised. CatalogError where the SQL does not fit or the version is not there.
        """
        ...


class Conflict(Exception):
    """Another writer committed after the version that was read."""


@dataclass(frozen=True)
class Part:
    """A parquet file inside a table's folder that no version names yet."""

    name: str
    size: int
    rows: int


def write_part(rows: pa.Table, folder: str | Path) -> Part:
    """Write ``rows`` into a table's folder; they are nowhere to be seen until ``DeltaTable.commit`` names the part."""
    name = f"part-{uuid.uuid4()}.parquet"
    path = Path(folder) / name
    with full_disk(path), path.open("wb") as file:
        pq.write_table(rows, file, compression="zstd", row_group_size=_GROUP)
        file.flush()
        os.fsync(file.fileno())
    return Part(name, path.stat().st_size, rows.num_rows)


class DeltaTable:
    """A Delta Lake table in the folder ``path``, created by its first append; safe to share and to pickle.

    Raises CatalogError where the folder holds a table that needs more than Delta's first reader protocol (deletion
    vectors, column mapping): a plain parquet reader would show it wrongly; or where Delta's library would take the path for
    another, since it decodes ``%20`` and turns a backslash.
    """

    def __init__(self, path: str | Path, schema: pa.Schema) -> None:
        self.path = Path(path)
        self.schema = schema

    def __repr__(self) -> str:
        return f"DeltaTable({str(self.path)!r})"

    def version(self) -> int:
        """As Table.version."""
        delta = self._open()
        return -1 if delta is None else int(delta.version())

    def identity(self) -> str:
        """What no other table has, nor this one once it is removed and made anew; empty where there is none."""
        delta = self._open()
        return "" if delta is None else str(delta.metadata().id)

    def create(self) -> None:
        """Make the empty table, version 0, where there is none."""
        self._open(create=True)

    def grow(self, columns: Sequence[pa.Field]) -> None:
        """Give the table those of ``columns`` that it lacks; the rows that are there have null in them."""
        from deltalake import Schema

        delta = self._open(create=True)
        there = {field.name for field in delta.schema().fields}
        if lacking := [column for column in columns if column.name not in there]:
            delta.alter.add_columns(list(Schema.from_arrow(pa.schema(lacking)).fields))

    def append(self, rows: pa.Table, *, writer: str, batch: int) -> int:
        """As Table.append; two processes may append at once."""
        delta = self._open(create=True)
        if _done(delta, writer, batch):
            return int(delta.version())
        part = write_part(rows.select(self.schema.names).cast(self.schema), self.path)
        return self.commit([part], writer=writer, batch=batch)

    def commit(self, parts: Sequence[Part], *, writer: str, batch: int, read: int | None = None) -> int:
        """Make ``parts`` a version, once per (writer, batch); where ``read`` is given, only directly after that version.

        Raises Conflict where another version was committed since ``read``.
        """
        from deltalake.exceptions import CommitFailedError

        self.grow(list(self.schema))
        while True:
            delta = self._open(create=True)
            if _done(delta, writer, batch):
                return int(delta.version())
            if read is not None and delta.version() != read:
                raise Conflict(f"{self.path}: version {delta.version()}, read {read}")
            try:
                return self._commit_after(delta, parts, writer, batch)
            except CommitFailedError:
                if self.version() == delta.version():
                    raise
                time.sleep(random.uniform(0.001, 0.02))

    def scan(self, columns: Sequence[str], *, where: str = "", version: int | None = None) -> pa.RecordBatchReader:
        """As Table.scan."""
        return _select(self.dataset(version), self.schema, columns, where, str(self.path))

    def added(self, columns: Sequence[str], *, since: int, version: int) -> pa.RecordBatchReader:
        """``columns`` of the rows appended after version ``since``, up to ``version``."""
        return _batches(self._read(self._parts(since, version)), columns)

    def dataset(self, version: int | None = None) -> Any:
        """The rows at ``version`` as an Arrow dataset, nothing read yet; the table's own columns, then those it has grown."""
        return self._read(self.files(version))

    def files(self, version: int | None = None) -> list[str]:
        """The parquet files that hold the rows at ``version``."""
        delta = None if version == -1 else self._open(version=version)
        if delta is None:
            return []
        live = [unquote(uri) for uri in delta.file_uris()]
        if version is None or all(map(os.path.exists, live)):
            return live
        return self._parts(-1, version)  # what merged them has been cleared away since; the parts themselves stay

    def optimize(self, order: Sequence[str] = ()) -> int:
        """Merge small files; with ``order`` lay all rows anew, those near in all of its columns near each other (Z-order, which
        holds the table in memory, and sees the first characters of a text: dates, not UIDs). The version after it.

        Rows and earlier versions stay as they are. Writers need not wait. CatalogError where a column is not there.
        """
        from deltalake import WriterProperties
        from deltalake.exceptions import DeltaError

        delta = self._open(create=True)
        unknown = [column for column in order if column not in self._grown().names]
        if unknown:
            raise CatalogError(f"no column {', '.join(unknown)}", about=str(self.path), remedy="name columns of the table")
        laid = WriterProperties(max_row_group_size=_GROUP, compression="ZSTD")
        try:
            with full_disk(self.path):
                delta.optimize.z_order(list(order), writer_properties=laid) if order else delta.optimize.compact(
                    writer_properties=laid
                )
                delta.create_checkpoint()
        except DeltaError as problem:
            remedy = "nothing was changed; run it again"
            raise CatalogError(
                f"cannot be optimized: {str(problem).splitlines()[0]}", about=str(self.path), remedy=remedy
            ) from None
        return self.version()

    def vacuum(self, *, hours: int = 24) -> list[str]:
        """Remove files older than ``hours`` that hold no row of any version: what a killed writer left, and what an earlier
        ``optimize`` merged and a later one merged again. Their paths."""
        delta = self._open(create=True)
        unused = delta.vacuum(retention_hours=hours, dry_run=True, enforce_retention_duration=False, full=True)
        parts = set(self._parts(-1, int(delta.version())))
        found = sorted(path for name in unused if (path := str(self.path / unquote(name))) not in parts)
        for path in found:
            Path(path).unlink(missing_ok=True)
        return found

    def _parts(self, since: int, version: int) -> list[str]:
        """The files that appends after ``since``, up to ``version``, added: every row once, whatever was merged later."""
        found = []
        for number in range(since + 1, version + 1):
            for line in self._logged(number).splitlines():
                added = json.loads(line).get("add")
                if added and added["dataChange"]:
                    found.append(str(self.path / unquote(added["path"])))
        return found

    def _logged(self, version: int) -> str:
        try:
            return (self.path / "_delta_log" / f"{version:020d}.json").read_text()
        except FileNotFoundError:
            remedy = "bring the file back from a copy: the log of this table must not be cleaned"
            raise CatalogError(f"the log lacks version {version}", about=str(self.path), remedy=remedy) from None

    def _read(self, files: Sequence[str]) -> Any:
        if not files:
            return self._grown().empty_table()
        return pyarrow.dataset.dataset(list(files), schema=self._grown(), format="parquet")

    def _grown(self) -> pa.Schema:
        delta = self._open()
        own = () if delta is None else pa.schema(delta.schema().to_arrow())
        return pa.schema([*self.schema, *(field for field in own if field.name not in self.schema.names)])

    def _open(self, *, version: int | None = None, create: bool = False) -> Any:
        import deltalake
        from deltalake.exceptions import DeltaError, TableNotFoundError

        if unquote(str(self.path)) != str(self.path) or "\\" in str(self.path):
            problem = "Delta tables cannot lie under a folder with a backslash or a percent-encoded character in its name"
            raise CatalogError(problem, about=str(self.path), remedy="choose another home")
        if create and not (self.path / "_delta_log").exists():
            self.path.mkdir(parents=True, exist_ok=True)
            deltalake.DeltaTable.create(self.path, self.schema, mode="ignore", configuration=_SETTINGS)
        try:
            delta = deltalake.DeltaTable(self.path, version=version)
        except TableNotFoundError:
            if create:
                deltalake.DeltaTable.create(self.path, self.schema, mode="ignore", configuration=_SETTINGS)
                return self._open(version=version)
            return None
        except DeltaError as problem:
            raise CatalogError(str(problem).splitlines()[0], about=f"{self.path}, version {version}") from None
        if delta.protocol().min_reader_version > 1:
            remedy = "rewrite it without deletion vectors and column mapping"
            raise CatalogError("the table uses Delta features that are not read here", about=str(self.path), remedy=remedy)
        return delta

    def _commit_after(self, delta: Any, parts: Sequence[Part], writer: str, batch: int) -> int:
        from deltalake import CommitProperties, Transaction
        from deltalake.transaction import AddAction

        now = int(time.time() * 1000)
        adds = [AddAction(p.name, p.size, {}, now, True, f'{{"numRecords":{p.rows}}}') for p in parts]
        # Without retries a commit is a compare-and-swap on the version: it fails where the next one is taken.
        properties = CommitProperties(app_transactions=[Transaction(writer, batch, now)], max_commit_retries=0)
        with full_disk(self.path):
            delta.create_write_transaction(adds, mode="append", schema=delta.schema(), commit_properties=properties)
        return int(delta.version()) + 1


class MemoryTable:
    """A table in this process: for tests and trials."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._id = str(uuid.uuid4())
        self._versions: list[pa.Table] = []
        self._batches: dict[str, int] = {}

    def identity(self) -> str:
        """As DeltaTable.identity."""
        return self._id

    def version(self) -> int:
        """As Table.version."""
        return len(self._versions) - 1

    def append(self, rows: pa.Table, *, writer: str, batch: int) -> int:
        """As Table.append."""
        if batch > self._batches.get(writer, -1):
            self._batches[writer] = batch
            self._versions.append(rows.select(self.schema.names).cast(self.schema))
        return self.version()

    def scan(self, columns: Sequence[str], *, where: str = "", version: int | None = None) -> pa.RecordBatchReader:
        """As Table.scan."""
        return _select(self._between(-1, self.version() if version is None else version), self.schema, columns, where, "memory")

    def added(self, columns: Sequence[str], *, since: int, version: int) -> pa.RecordBatchReader:
        """As DeltaTable.added."""
        return _batches(self._between(since, version), columns)

    def _between(self, since: int, version: int) -> pa.Table:
        if version > self.version():
            raise CatalogError(f"there is no version {version}", about="memory")
        return pa.concat_tables([self.schema.empty_table(), *self._versions[since + 1 : version + 1]])


def _done(delta: Any, writer: str, batch: int) -> bool:
    last = delta.transaction_version(writer)
    return last is not None and last >= batch


def _batches(source: Any, columns: Sequence[str]) -> pa.RecordBatchReader:
    """``columns`` of all rows, read as they are asked for: DuckDB reads ahead by gigabytes."""
    rows = pyarrow.dataset.dataset(source) if isinstance(source, pa.Table) else source
    return rows.scanner(columns=list(columns), batch_size=10_000, batch_readahead=1, fragment_readahead=1).to_reader()


def _select(source: Any, schema: pa.Schema, columns: Sequence[str], where: str, about: str) -> pa.RecordBatchReader:
    unknown = [column for column in columns if column not in schema.names]
    if unknown:
        raise CatalogError(f"no column {', '.join(unknown)}", about=about, remedy=f"there are {', '.join(schema.names)}")
    listed = ", ".join(f'"{column}"' for column in columns)
    query = f"SELECT {listed} FROM rows" + (f" WHERE {where}" if where else "")
    return stream(source, query, pa.schema([schema.field(column) for column in columns]), about=about)
