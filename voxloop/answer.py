"""The answer to a query as it leaves the house: a table to look at, JSON, CSV or parquet, written as its batches come."""

import base64
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from catalog.disk import atomic_file
from voxloop import console
from voxloop.errors import FrontDoorError

__all__ = ["Format", "show", "write"]

SHOWN = 1_000
"""Rows of a table on the screen."""


class Format(StrEnum):
    """How rows are written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


def show(rows: pa.RecordBatchReader) -> None:
    """The first rows as a table on standard output; a note says how many there were, or that there are more."""
    first: list[dict[str, Any]] = []
    for batch in rows:
        first += batch.slice(0, SHOWN + 1 - len(first)).to_pylist()
        if len(first) > SHOWN:
            break
    console.records(first[:SHOWN])
    if len(first) > SHOWN:
        console.note(f"the first {SHOWN} rows; --format csv (json, parquet) gives them all")
    else:
        console.note(f"{len(first)} row{'' if len(first) == 1 else 's'}")


def write(rows: pa.RecordBatchReader, form: Format, out: Path | None) -> int:
    """Write every row to the file ``out``, which is there whole or not at all, or to standard output; how many there were.

    JSON is one object ``{"rows": [{column: value, …}, …]}`` on one line, times in ISO 8601, bytes in base64. In CSV a list,
    map or struct is JSON text. FrontDoorError where parquet is to go to standard output.
    """
    if form is Format.PARQUET and out is None:
        raise FrontDoorError("parquet is not for the screen", about="--format parquet", remedy="name a file with --out")
    writer = {Format.JSON: _json, Format.CSV: _csv, Format.PARQUET: _parquet}[form]
    with _opened(out) as sink:
        return writer(rows, sink)


@contextmanager
def _opened(out: Path | None) -> Iterator[BinaryIO]:
    if out is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if out.is_dir():
        raise FrontDoorError("is a folder", about=str(out), remedy="name a file")
    with atomic_file(out) as file:
        yield file


def _json(rows: pa.RecordBatchReader, sink: BinaryIO) -> int:
    count = 0
    sink.write(b'{"rows":[')
    for batch in rows:
        for row in batch.to_pylist():
            sink.write((b"," if count else b"") + _encoded(row))
            count += 1
    sink.write(b"]}\n")
    return count


def _csv(rows: pa.RecordBatchReader, sink: BinaryIO) -> int:
    count = 0
    schema = pa.schema([(field.name, _plain(field.type)) for field in rows.schema])
    with pyarrow.csv.CSVWriter(sink, schema) as writer:
        for batch in rows:
            columns = [_as_text(column) if _plain(column.type) != column.type else column for column in batch.columns]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            count += batch.num_rows
    return count


def _parquet(rows: pa.RecordBatchReader, sink: BinaryIO) -> int:
    count = 0
    with pq.ParquetWriter(sink, rows.schema, compression="zstd") as writer:
        for batch in rows:
            writer.write_batch(batch)
            count += batch.num_rows
    return count


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of a column in CSV: what has no text form of its own there is text."""
    types = pa.types
    direct = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_string, types.is_temporal)
    return kind if any(fits(kind) for fits in direct) and not types.is_interval(kind) else pa.string()


def _as_text(column: pa.Array) -> pa.Array:
    texts = [value if value is None or isinstance(value, str) else _text(value) for value in column.to_pylist()]
    return pa.array(texts, pa.string())


def _text(value: Any) -> str:
    encoded = orjson.loads(_encoded(value))
    return encoded if isinstance(encoded, str) else orjson.dumps(encoded).decode()


def _encoded(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS, default=_safe)


def _safe(value: Any) -> Any:
    """What JSON has no type for: bytes as base64, whole decimals as whole numbers, the rest as text."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() and abs(value) < 2**63 else float(value)
    return str(value)
