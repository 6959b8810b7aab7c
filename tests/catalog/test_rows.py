"""The rows of a series, found by the footers of parquet files, are those that a scan finds."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog import DeltaTable
from catalog.rows import SeriesRows
from catalog.schemas import OBJECTS
from catalog.table import _GROUP, Part, write_part

COLUMNS = ["path", "length", "frame_offsets"]


def rows(start: int, count: int, *, series: int = 7) -> pa.Table:
    """Files of ``series`` series in turn."""
    numbers = range(start, start + count)
    made = [{"path": f"/a/{n:06d}", "SeriesInstanceUID": f"1.2.{n % series}", "length": n, "meta": f"{n}"} for n in numbers]
    return pa.Table.from_pylist(made, schema=OBJECTS)


@pytest.fixture
def table(tmp_path: Path) -> DeltaTable:
    """Two files of several row groups each, and one that was written before the table had its later columns."""
    table = DeltaTable(tmp_path / "object_catalog", OBJECTS)
    table.create()
    parts = [write_part(rows(start, 3 * _GROUP), table.path) for start in (0, 3 * _GROUP)]
    pq.write_table(rows(6 * _GROUP, 20).select(OBJECTS.names[:20]), table.path / "old.parquet")
    old = Part("old.parquet", (table.path / "old.parquet").stat().st_size, 20)
    table.commit([*parts, old], writer="test", batch=0)
    return table


def found(table: DeltaTable, paths: list[str]) -> list[dict[str, Any]]:
    """What is read of a series' rows."""
    return _sorted(SeriesRows(table).read("1.2.3", paths, COLUMNS, version=table.version()))


def _sorted(rows: pa.Table) -> list[dict[str, Any]]:
    return list(rows.sort_by("path").to_pylist())


@pytest.mark.parametrize("merged", [False, True])
def test_are_those_that_a_scan_finds(table: DeltaTable, merged: bool) -> None:
    if merged:
        table.optimize()
    scanned = _sorted(table.scan(COLUMNS, where="SeriesInstanceUID = '1.2.3'").read_all())
    paths = [row["path"] for row in scanned]
    assert len(paths) == len(range(3, 6 * _GROUP + 20, 7))
    assert found(table, paths) == scanned
    assert [row["path"] for row in found(table, paths[5:9])] == paths[5:9]
    assert found(table, ["/elsewhere"]) == []


def test_follow_the_table(table: DeltaTable) -> None:
    reader, before = SeriesRows(table), table.version()
    assert reader.read("1.2.3", ["/a/900003"], ["path"], version=before).num_rows == 0
    after = table.append(rows(900_003, 1, series=900_000), writer="more", batch=0)
    assert reader.read("1.2.3", ["/a/900003"], ["path"], version=after).to_pylist() == [{"path": "/a/900003"}]
