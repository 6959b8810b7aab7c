"""What every implementation of this room's seams must do: subclass and give the fixture.

class TestMine(TableTests):
    @pytest.fixture
    def table(self): return MyTable(TableTests.schema)
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from catalog.errors import CatalogError
from catalog.sources import VolumeSource
from catalog.table import Table

__all__ = ["TableTests", "VolumeSourceTests", "serving"]


class TableTests:
    """A ``table`` fixture gives an empty table of ``schema``."""

    schema = pa.schema(
        [
            ("name", pa.string()),
            ("count", pa.int64()),
            ("tags", pa.list_(pa.string())),
            ("states", pa.map_(pa.string(), pa.string())),
            ("at", pa.timestamp("us", "UTC")),
        ]
    )

    def rows(self, *names: str) -> pa.Table:
        """A row a name."""
        at = datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=UTC)
        columns = {
            "name": list(names),
            "count": list(range(len(names))),
            "tags": [["a", "b"]] * len(names),
            "states": [[("liver", "present")]] * len(names),
            "at": [at] * len(names),
        }
        return pa.table(columns, schema=self.schema)

    def names(self, table: Table, where: str = "", version: int | None = None) -> list[str]:
        """The names that a scan gives, sorted."""
        return sorted(table.scan(["name"], where=where, version=version).read_all()["name"].to_pylist())

    def test_is_empty_at_first(self, table: Table) -> None:
        assert table.version() == -1
        assert self.names(table) == []

    def test_gives_back_what_was_appended(self, table: Table) -> None:
        table.append(self.rows("x", "y"), writer="w", batch=0)
        found = table.scan(self.schema.names).read_all()
        assert found.schema == self.schema
        assert found.sort_by("name").to_pylist() == self.rows("x", "y").to_pylist()

    def test_appends_once_per_writer_and_batch(self, table: Table) -> None:
        first = table.append(self.rows("x"), writer="w", batch=0)
        assert table.append(self.rows("x"), writer="w", batch=0) >= first
        assert self.names(table) == ["x"]
        table.append(self.rows("y"), writer="w", batch=1)
        table.append(self.rows("z"), writer="other", batch=0)
        table.append(self.rows("y"), writer="w", batch=0)
        assert self.names(table) == ["x", "y", "z"]

    def test_keeps_every_version(self, table: Table) -> None:
        first = table.append(self.rows("x"), writer="w", batch=0)
        second = table.append(self.rows("y"), writer="w", batch=1)
        assert second > first and table.version() == second
        assert self.names(table, version=first) == ["x"]
        assert self.names(table, version=-1) == []

    def test_filters_by_sql_over_columns_not_asked_for(self, table: Table) -> None:
        table.append(self.rows("x", "y", "it's"), writer="w", batch=0)
        assert self.names(table, where="count >= 1") == ["it's", "y"]
        assert self.names(table, where="name = 'it''s'") == ["it's"]

    def test_refuses_what_does_not_fit(self, table: Table) -> None:
        table.append(self.rows("x"), writer="w", batch=0)
        with pytest.raises(CatalogError):
            table.scan(["no_such_column"])
        with pytest.raises(CatalogError):
            table.scan(["name"], where="this is no SQL")
        with pytest.raises(CatalogError):
            table.scan(["name"], version=10_000)


class VolumeSourceTests:
    """A ``source`` fixture gives the source, ``ref`` a reference that it knows, ``other`` one that it does not."""

    def test_gives_float_voxels_on_a_right_angled_grid_in_mm(self, source: VolumeSource, ref: str) -> None:
        volume = source.volume(ref)
        assert volume.array.dtype == np.float32 and volume.array.ndim == 3
        axes = volume.affine[:3, :3] / volume.spacing
        np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)

    def test_gives_the_same_again(self, source: VolumeSource, ref: str) -> None:
        first, second = source.volume(ref), source.volume(ref)
        np.testing.assert_array_equal(first.array, second.array)
        np.testing.assert_array_equal(first.affine, second.affine)

    def test_refuses_what_it_does_not_know(self, source: VolumeSource, other: str) -> None:
        with pytest.raises(CatalogError):
            source.volume(other)


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """A real server of an ASGI application, in a thread, on a loopback port of its own: its URL. It ends when its requests
    have."""
    import uvicorn

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # who comes before the server is up waits for it
    config = uvicorn.Config(app, log_level="error", lifespan="off", loop="uvloop", http="httptools")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
