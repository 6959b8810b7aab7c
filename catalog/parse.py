"""What a worker does with its share of a listing: headers read, one parquet file written into the table's folder."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc

from catalog.errors import CatalogError
from catalog.files import Key, Listed
from catalog.objects import rows
from catalog.schemas import USABLE
from catalog.table import Part, write_part

__all__ = ["Done", "parse"]

_ROWS = 250
"""Headers parsed between two reports of progress."""


@dataclass(frozen=True)
class Done:
    """What came of some files: the part with their rows, how many of these are not usable, how many files were left out
    because they grow, the paths of those that are archives; or what kept the worker from it."""

    part: Part | None = None
    bad: int = 0
    growing: int = 0
    archives: tuple[str, ...] = ()
    failed: CatalogError | None = None


def parse(
    files: Sequence[Listed],
    root: str,
    table: str,
    *,
    deep: bool,
    report: Callable[[int], None],
    again: frozenset[Key] = frozenset(),
) -> Done:
    """Write the rows of ``files`` into the folder ``table`` as one part, which no version names yet.

    Files of ``again`` have a row, to which another one is added unless they still cannot be read. What keeps it from writing
    is returned: an exception would reach the driver as a page of Java's.
    """
    _settle_down()
    tables = []
    for start in range(0, len(files), _ROWS):
        share = files[start : start + _ROWS]
        tables.append(rows(share, root, deep=deep))
        report(len(share))
    parsed = pa.concat_tables(tables)
    states, growing = parsed["status"].to_pylist(), len(files) - parsed.num_rows
    bad = sum(status not in USABLE for status in states)
    if again:
        retried = {key[0] for key in again}
        told = zip(parsed["path"].to_pylist(), states, strict=True)
        parsed = parsed.filter(pa.array([status != "unreadable" or path not in retried for path, status in told]))
    if not parsed.num_rows:
        return Done(bad=bad, growing=growing)
    archives = parsed.filter(pc.equal(parsed["status"], "archive"))["path"].to_pylist()
    try:
        part = write_part(parsed, table)
    except CatalogError as failed:
        return Done(failed=failed)
    except OSError as failed:
        remedy = "make the home writable, then run the same command again"
        return Done(failed=CatalogError(f"cannot be written: {failed.strerror}", about=table, remedy=remedy))
    return Done(part, bad, growing, tuple(archives))


@cache
def _settle_down() -> None:
    """Spark's worker searches for garbage after each task: in what was imported, for as long as 500 headers take."""
    gc.freeze()
