"""The rows of some files in ``object_catalog``, found by what parquet files say of themselves: little else is read."""

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog.table import DeltaTable

__all__ = ["SeriesRows"]

_PATH, _UID = "path", "SeriesInstanceUID"
_Range = tuple[str, str] | None


@dataclass(frozen=True)
class _Footer:
    """A parquet file's footer, and the least and the greatest path and SeriesInstanceUID of each of its row groups."""

    metadata: Any
    paths: Sequence[_Range]
    uids: Sequence[_Range]


class SeriesRows:
    """Reads rows of ``table`` by series, from any thread. Footers are kept: a part of a table never changes."""

    def __init__(self, table: DeltaTable) -> None:
        self._table = table
        self._lock = threading.Lock()
        self._version, self._files = -1, list[str]()
        self._footers: dict[str, _Footer] = {}

    def read(self, series_uid: str, paths: Collection[str], columns: Sequence[str], *, version: int) -> pa.Table:
        """``columns`` of every row with this SeriesInstanceUID and one of ``paths``, at ``version`` or a later one.

        A column that a part was written without is null. Raises OSError.
        """
        schema = pa.schema([self._table.schema.field(name) for name in columns])
        first, last, wanted = min(paths), max(paths), pa.array(list(paths))
        found = [schema.empty_table()]
        for file in self._live(version):
            footer = self._footer(file)
            groups = [
                group
                for group, (uids, names) in enumerate(zip(footer.uids, footer.paths, strict=True))
                if _meets(uids, series_uid, series_uid) and _meets(names, first, last)
            ]
            if groups:
                found += _matching(file, footer.metadata, groups, series_uid, wanted, schema)
        return pa.concat_tables(found)

    def _live(self, version: int) -> list[str]:
        with self._lock:
            if version > self._version:
                self._files, self._version = self._table.files(), version
                self._footers = {file: self._footers[file] for file in self._files if file in self._footers}
            return self._files

    def _footer(self, file: str) -> _Footer:
        known = self._footers.get(file)
        if known is None:
            metadata = pq.read_metadata(file)
            known = self._footers[file] = _Footer(metadata, _ranges(metadata, _PATH), _ranges(metadata, _UID))
        return known


def _meets(span: _Range, first: str, last: str) -> bool:
    return span is None or (span[0] <= last and first <= span[1])


def _ranges(metadata: Any, name: str) -> list[_Range]:
    """Of each row group; None where the writer did not say."""
    schema = metadata.schema
    at = next((n for n in range(len(schema)) if schema.column(n).path == name), None)
    if at is None:
        return [None] * metadata.num_row_groups
    told = [metadata.row_group(group).column(at).statistics for group in range(metadata.num_row_groups)]
    return [(one.min, one.max) if one is not None and one.has_min_max else None for one in told]


def _matching(
    path: str, metadata: Any, groups: Sequence[int], series_uid: str, wanted: pa.Array, schema: pa.Schema
) -> list[pa.Table]:
    """The rows that fit; of a group in which none does only the UIDs are read."""
    found = []
    with pq.ParquetFile(path, metadata=metadata) as file:
        there = [name for name in schema.names if name in file.schema_arrow.names]
        for group in groups:
            fits = pc.equal(file.read_row_group(group, columns=[_UID])[_UID], series_uid)
            if not pc.any(fits).as_py():
                continue
            rows = file.read_row_group(group, columns=list(dict.fromkeys([_PATH, *there]))).filter(fits)
            rows = rows.filter(pc.is_in(rows[_PATH], wanted))
            made = [rows[field.name] if field.name in there else pa.nulls(len(rows), field.type) for field in schema]
            found.append(pa.table(made, names=schema.names).cast(schema))
    return found
