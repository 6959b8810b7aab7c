"""The SQL of ``catalog.views`` by Spark: the same views over the live files of each table, read-only.

``object_catalog`` and ``instances`` have a column more, ``meta_variant``: ``meta`` as a VARIANT, for ``variant_get`` and
``meta_variant:`00181210`.Value[0]::string``. In an answer a VARIANT is JSON text.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from catalog.dictionary import addresses
from catalog.errors import CatalogError
from catalog.views import TABLES, definitions, refused

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from catalog.archive import Archive

__all__ = ["query"]

_FUNCTIONS = r"""
CREATE TEMPORARY FUNCTION dicom_address(name STRING) RETURNS STRING RETURN coalesce(
    try_element_at(str_to_map('{known}'), name),
    nullif(regexp_replace(upper(name), r'^\(?([0-9A-F]{{4}}),?([0-9A-F]{{4}})\)?$', '$1$2'), upper(name)),
    CASE WHEN name RLIKE '^[0-9A-Fa-f]{{8}}$' THEN upper(name) END,
    CASE WHEN name IS NOT NULL THEN raise_error('no DICOM attribute ' || name) END);
CREATE TEMPORARY FUNCTION dicom_tag(meta STRING, name STRING) RETURNS STRING RETURN coalesce(
    get_json_object(meta, '$.' || dicom_address(name) || '.Value[0].Alphabetic'),
    get_json_object(meta, '$.' || dicom_address(name) || '.Value[0]'),
    get_json_object(meta, '$.' || dicom_address(name) || '.InlineBinary'));
CREATE TEMPORARY FUNCTION dicom_tags(meta STRING, name STRING) RETURNS ARRAY<STRING> RETURN transform(
    from_json(get_json_object(meta, '$.' || dicom_address(name) || '.Value'), 'array<string>'),
    found -> coalesce(get_json_object(found, '$.Alphabetic'), found))
"""
_CALLS_JAVA = ("reflect", "java_method", "try_reflect")


def query(spark: "SparkSession", archive: "Archive", text: str) -> pa.RecordBatchReader:
    """As ``catalog.views.query``, by Spark's SQL; the driver holds the answer a partition at a time.

    CatalogError where Spark does not take the query, or it is anything but one query: statements and scripts are refused,
    and so are functions that call Java and other files than the tables'.
    """
    from py4j.protocol import Py4JJavaError
    from pyspark.errors import PySparkException

    text = text.strip().removesuffix(";")
    session = spark.newSession()  # its views, functions and settings are its own
    with _quiet():
        try:
            _only_a_query(session, text)
            _views(session, archive)
            if "dicom_" in text.lower():
                _functions(session)
            frame = _without_variants(session.sql(text))
            schema = _arrow_schema(frame)
        except PySparkException as problem:
            raise refused(text, _said(problem)) from None

    def batches() -> Iterator[pa.RecordBatch]:
        with _quiet():
            try:
                for row in frame.mapInArrow(_packed, "batch binary").toLocalIterator():
                    yield from (batch.cast(schema) for batch in pa.ipc.open_stream(row.batch))
            except (PySparkException, Py4JJavaError) as problem:
                raise refused(text, _said(problem)) from None

    return pa.RecordBatchReader.from_batches(schema, batches())


def _views(session: "SparkSession", archive: "Archive") -> None:
    from pyspark.sql.pandas.types import from_arrow_schema

    session.conf.set("spark.sql.session.timeZone", "UTC")
    for name in TABLES:
        table = archive.objects if name == "object_catalog" else getattr(archive, name)
        schema, files = from_arrow_schema(table.schema), table.files()
        # The names are files, not patterns: a home's name may hold a bracket.
        reader = session.read.schema(schema).option("__globPaths__", "false")
        rows = reader.parquet(*files) if files else session.createDataFrame([], schema)
        if name == "object_catalog":
            rows = rows.selectExpr("*", "try_parse_json(meta) AS meta_variant")
        rows.createOrReplaceTempView(name)
    for name, body in definitions(quote="`", modalities="sort_array(collect_set(Modality))").items():
        session.sql(body).createOrReplaceTempView(name)


def _functions(session: "SparkSession") -> None:
    known = ",".join(f"{keyword}:{tag}" for keyword, tag in addresses().items())
    for function in _FUNCTIONS.format(known=known).split(";\n"):
        session.sql(function)


def _only_a_query(session: "SparkSession", text: str) -> None:
    """Spark's grammar knows what a query is; what a query could still reach beyond the views is taken away or refused."""
    from pyspark.errors import ParseException

    state, jvm = session._jsparkSession.sessionState(), session._jvm  # type: ignore[attr-defined]
    session.conf.set("spark.sql.runSQLOnFiles", "false")
    builtin, system = (jvm.scala.Option.apply(part) for part in ("builtin", "system"))
    for function in _CALLS_JAVA:
        state.functionRegistry().dropFunction(jvm.org.apache.spark.sql.catalyst.FunctionIdentifier(function, builtin, system))
    try:
        plan = state.sqlParser().parseQuery(text)
    except ParseException as problem:
        raise refused(text, f"not one query: {_said(problem)}") from None
    if '.ScriptTransformation"' in plan.toJSON():
        raise CatalogError("scripts are not run", about=text.splitlines()[0], remedy="select … from instances")


def _without_variants(frame: "DataFrame") -> "DataFrame":
    from pyspark.sql.functions import col, to_json
    from pyspark.sql.types import VariantType

    if not any(isinstance(field.dataType, VariantType) for field in frame.schema.fields):
        return frame
    fields = frame.schema.fields
    frame = frame.toDF(*(f"_{number}" for number in range(len(fields))))  # a query may give two columns one name
    chosen = [
        (to_json(col(f"_{number}")) if isinstance(field.dataType, VariantType) else col(f"_{number}")).alias(field.name)
        for number, field in enumerate(fields)
    ]
    return frame.select(*chosen)


def _arrow_schema(frame: "DataFrame") -> pa.Schema:
    from pyspark.sql.pandas.types import to_arrow_schema

    return to_arrow_schema(frame.schema, timezone="UTC")


def _packed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """On a worker: each Arrow batch as one row, so that the driver can fetch batches as rows."""
    for batch in batches:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        yield pa.RecordBatch.from_pydict({"batch": [sink.getvalue().to_pybytes()]})


def _said(problem: Any) -> str:
    """What Spark says: of what came through Java the cause at the bottom."""
    cause = getattr(problem, "java_exception", None)
    if cause is None:
        return str(problem).strip()
    while cause.getCause() is not None:
        cause = cause.getCause()
    return str(cause.getMessage()).strip()


@contextmanager
def _quiet() -> Iterator[None]:
    """PySpark logs each refused query, as well as raising it."""
    logger = logging.getLogger("SQLQueryContextLogger")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
