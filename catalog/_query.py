"""DuckDB over Arrow data: in memory, without access to files or network."""

from collections.abc import Mapping
from typing import Any

import duckdb
import pyarrow as pa

from catalog.errors import CatalogError

__all__ = ["connect", "quoted", "stream"]


def connect(tables: Mapping[str, Any]) -> duckdb.DuckDBPyConnection:
    """A connection that sees ``tables`` (Arrow tables or datasets by name) and nothing else of this machine."""
    connection = duckdb.connect(config={"enable_external_access": "false"})
    connection.execute("SET TimeZone = 'UTC'")
    for name, table in tables.items():
        connection.register(name, table)
    connection.execute("SET lock_configuration = true")
    return connection


def stream(source: Any, query: str, schema: pa.Schema, *, about: str) -> pa.RecordBatchReader:
    """The rows of ``query`` over ``source``, named ``rows`` in it, as batches of ``schema``."""
    connection = connect({"rows": source})
    try:
        found = connection.sql(query).to_arrow_reader()
    except duckdb.Error as problem:
        connection.close()
        raise CatalogError(str(problem).splitlines()[0], about=about) from None

    def batches() -> Any:
        with connection:
            for batch in found:
                yield batch.cast(schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def quoted(text: str) -> str:
    """``text`` as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"
