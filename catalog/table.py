"""Append-only tables: Delta Lake on disk without a JVM, and one in memory that behaves the same."""

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
        pq.write_table(rows, file, compression="zstd")
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

    def create(self) -> None:
        """Make the empty table, version 0, where there is none."""
        self._open(create=True)

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
        seen = set(self.files(since))
        return _select(self._read([f for f in self.files(version) if f not in seen]), self.schema, columns, "", str(self.path))

    def dataset(self, version: int | None = None) -> Any:
        """The rows at ``version`` as an Arrow dataset, nothing read yet."""
        return self._read(self.files(version))

    def _read(self, files: Sequence[str]) -> Any:
        if not files:
            return self.schema.empty_table()
        return pyarrow.dataset.dataset(list(files), schema=self.schema, format="parquet")

    def files(self, version: int | None = None) -> list[str]:
        """The paths of the parquet files that hold the rows at ``version``."""
        if version == -1:
            return []
        delta = self._open(version=version)
        return [] if delta is None else [unquote(uri) for uri in delta.file_uris()]

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
        self._versions: list[pa.Table] = []
        self._batches: dict[str, int] = {}

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
        return _select(self._between(since, version), self.schema, columns, "", "memory")

    def _between(self, since: int, version: int) -> pa.Table:
        if version > self.version():
            raise CatalogError(f"there is no version {version}", about="memory")
        return pa.concat_tables([self.schema.empty_table(), *self._versions[since + 1 : version + 1]])


def _done(delta: Any, writer: str, batch: int) -> bool:
    last = delta.transaction_version(writer)
    return last is not None and last >= batch


def _select(source: Any, schema: pa.Schema, columns: Sequence[str], where: str, about: str) -> pa.RecordBatchReader:
    unknown = [column for column in columns if column not in schema.names]
    if unknown:
        raise CatalogError(f"no column {', '.join(unknown)}", about=about, remedy=f"there are {', '.join(schema.names)}")
    listed = ", ".join(f'"{column}"' for column in columns)
    query = f"SELECT {listed} FROM rows" + (f" WHERE {where}" if where else "")
    return stream(source, query, pa.schema([schema.field(column) for column in columns]), about=about)
