"""What a worker does with its share of a listing: headers read, one parquet file written into the table's folder."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from catalog.errors import CatalogError
from catalog.files import Listed
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


def parse(files: Sequence[Listed], root: str, table: str, *, deep: bool, report: Callable[[int], None]) -> Done:
    """Write the rows of ``files`` into the folder ``table`` as one part, which no version names yet.

    What keeps it from writing is returned: an exception would reach the driver as a page of Java's.
    """
    gc.freeze()  # Spark's worker searches for garbage after each task: in what was imported, as long as 500 headers take
    tables = []
    for start in range(0, len(files), _ROWS):
        share = files[start : start + _ROWS]
        tables.append(rows(share, root, deep=deep))
        report(len(share))
    parsed = pa.concat_tables(tables)
    if not parsed.num_rows:
        return Done(growing=len(files))
    states = parsed["status"].to_pylist()
    archives = [path for path, status in zip(parsed["path"].to_pylist(), states, strict=True) if status == "archive"]
    bad = sum(status not in USABLE for status in states)
    try:
        part = write_part(parsed, table)
    except CatalogError as failed:
        return Done(failed=failed)
    except OSError as failed:
        remedy = "make the home writable, then run the same command again"
        return Done(failed=CatalogError(f"cannot be written: {failed.strerror}", about=table, remedy=remedy))
    return Done(part, bad, len(files) - parsed.num_rows, tuple(archives))
