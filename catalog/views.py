"""SQL over the tables of a home, read-only: by DuckDB here, by Spark in ``catalog.sparksql``, the same views in both.

object_catalog, labels, predictions, scores, splits, features    the tables, every row
files        the latest row of each path, whatever its status
instances    the latest good row of each SOPInstanceUID, of files as they were last ingested: one may have gone since
studies      a row a StudyInstanceUID
series       a row a SeriesInstanceUID; ``is_image`` is false for segmentations, reports and the like

dicom_tag(meta, name)     the first value of an attribute as text: of a person's name the alphabetic part, of a sequence its
                          first item as DICOM JSON; null where it is absent or empty. ``name`` is a keyword or a tag
dicom_tags(meta, name)    all of its values, a list

In ``studies`` and ``series`` an attribute on which the instances differ has the greatest of its values.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from catalog._query import quoted
from catalog.dictionary import addresses
from catalog.errors import CatalogError

if TYPE_CHECKING:
    from catalog.archive import Archive

__all__ = ["TABLES", "VIEWS", "definitions", "query", "refused"]

TABLES = ("object_catalog", "labels", "predictions", "scores", "splits", "features")
VIEWS = ("files", "instances", "series", "studies", *TABLES)
MEMORY = "2GB"
"""What DuckDB keeps in memory before it spills to disk."""

# The keys are chosen first and the rows fetched after, so that no sort ever holds headers. A decided conflict repeats a key.
_FILES = """
SELECT * FROM object_catalog SEMI JOIN (
    SELECT path, modificationTime, length, ingested_at FROM (
        SELECT path, modificationTime, length, ingested_at,
            row_number() OVER (PARTITION BY path ORDER BY ingested_at DESC, modificationTime DESC) AS age
        FROM object_catalog
    ) AS every WHERE age = 1
) AS latest USING (path, modificationTime, length, ingested_at)
"""
_INSTANCES = """
SELECT * FROM object_catalog SEMI JOIN (
    SELECT path, modificationTime, length, ingested_at FROM (
        SELECT *, row_number() OVER (PARTITION BY SOPInstanceUID ORDER BY ingested_at DESC, path DESC) AS copy FROM (
            SELECT path, modificationTime, length, ingested_at, status, SOPInstanceUID,
                row_number() OVER (PARTITION BY path ORDER BY ingested_at DESC, modificationTime DESC) AS age
            FROM object_catalog
        ) AS every WHERE age = 1 AND status = 'ok' AND SOPInstanceUID IS NOT NULL
    ) AS good WHERE copy = 1
) AS current USING (path, modificationTime, length, ingested_at)
"""
_SERIES = """
SELECT SeriesInstanceUID, max(StudyInstanceUID) AS StudyInstanceUID, max(PatientID) AS PatientID,
    max(Modality) AS Modality, max(SeriesNumber) AS SeriesNumber, max(SeriesDescription) AS SeriesDescription,
    max(BodyPartExamined) AS BodyPartExamined, max(StudyDate) AS StudyDate, max(SeriesDate) AS SeriesDate,
    max(SeriesTime) AS SeriesTime, max(Manufacturer) AS Manufacturer, max(ManufacturerModelName) AS ManufacturerModelName,
    max(ProtocolName) AS ProtocolName, max({quote}Rows{quote}) AS {quote}Rows{quote},
    max({quote}Columns{quote}) AS {quote}Columns{quote},
    count(*) AS instances, CAST(sum(coalesce(NumberOfFrames, 1)) AS BIGINT) AS frames,
    bool_and({quote}Rows{quote} IS NOT NULL
        AND coalesce(Modality, '') NOT IN ('SEG', 'RTDOSE', 'PR', 'KO', 'SR')) AS is_image
FROM instances GROUP BY SeriesInstanceUID
"""
_STUDIES = """
SELECT StudyInstanceUID, max(PatientID) AS PatientID, max(PatientName) AS PatientName, max(PatientSex) AS PatientSex,
    max(PatientBirthDate) AS PatientBirthDate, max(StudyDate) AS StudyDate, max(StudyTime) AS StudyTime,
    max(StudyID) AS StudyID, max(StudyDescription) AS StudyDescription, max(AccessionNumber) AS AccessionNumber,
    {modalities} AS ModalitiesInStudy, count(DISTINCT SeriesInstanceUID) AS series, count(*) AS instances
FROM instances GROUP BY StudyInstanceUID
"""
_MACROS = r"""
CREATE MACRO dicom_address(name) AS coalesce(
    getvariable('dicom_addresses')[name],
    nullif(regexp_replace(upper(name), '^\(?([0-9A-F]{4}),?([0-9A-F]{4})\)?$', '\1\2'), upper(name)),
    CASE WHEN regexp_full_match(name, '[0-9A-Fa-f]{8}') THEN upper(name) END,
    CASE WHEN name IS NOT NULL THEN error('no DICOM attribute ' || name) END);
CREATE MACRO dicom_tag(meta, name) AS list_filter(
    json_extract_string(json_extract(CAST(meta AS VARCHAR), '$.' || dicom_address(name)),
        ['$.Value[0].Alphabetic', '$.Value[0]', '$.InlineBinary']), lambda found: found IS NOT NULL)[1];
CREATE MACRO dicom_tags(meta, name) AS list_transform(
    CAST(json_extract(json_extract(CAST(meta AS VARCHAR), '$.' || dicom_address(name)), '$.Value') AS JSON[]),
    lambda found: coalesce(found->>'$.Alphabetic', found->>'$'));
"""


def definitions(*, quote: str, modalities: str) -> dict[str, str]:
    """The views as SELECT statements, by name, in the order in which they need each other, in an engine's dialect."""
    told = {"files": _FILES, "instances": _INSTANCES, "series": _SERIES, "studies": _STUDIES}
    return {name: text.format(quote=quote, modalities=modalities) for name, text in told.items()}


def query(archive: "Archive", text: str) -> pa.RecordBatchReader:
    """The rows of one query by DuckDB over the views above as they are now, in batches as they are asked for.

    Only a query is taken, and it sees the tables' files alone. CatalogError where DuckDB does not take it; it may come
    while rows are read.
    """
    opened = ExitStack()
    try:
        connection = opened.enter_context(_connect(archive, text, opened))
        statements = duckdb.extract_statements(text)
        if len(statements) != 1:
            raise CatalogError("give exactly one statement", about="query", remedy="select … from instances")
        if statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
            raise CatalogError(
                "not a query: the catalog is read-only here", about=_line(text), remedy="select … from instances"
            )
        reader = connection.sql(text).to_arrow_reader(10_000)
    except duckdb.Error as problem:
        opened.close()
        raise refused(text, str(problem)) from None
    except BaseException:
        opened.close()
        raise

    def batches() -> Iterator[pa.RecordBatch]:
        with opened:
            try:
                yield from reader
            except (duckdb.Error, OSError) as problem:  # the reader passes DuckDB's on as OSError
                raise refused(text, str(problem)) from None

    return pa.RecordBatchReader.from_batches(reader.schema, batches())


def refused(text: str, problem: str) -> CatalogError:
    """What to raise where an engine does not take the query ``text``."""
    unknown = re.search(r"no DICOM attribute \S+", problem)
    if unknown:
        return CatalogError(unknown[0], about=_line(text), remedy="name it as PS3.6 does, or by its tag, as 00181210")
    return CatalogError(_line(problem), about=_line(text), remedy=f"the views are {', '.join(VIEWS)}")


def _line(text: str) -> str:
    return next((line for line in text.strip().splitlines() if line), "query")


def _connect(archive: "Archive", text: str, opened: ExitStack) -> duckdb.DuckDBPyConnection:
    """A connection with the views, which can reach the files of ``object_catalog`` and nothing else of this machine."""
    scratch = opened.enter_context(tempfile.TemporaryDirectory(prefix="voxloop-sql-"))
    connection = duckdb.connect(config={"temp_directory": scratch, "memory_limit": MEMORY})
    files = archive.objects.files()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET parquet_metadata_cache = true")
    connection.execute(f"SET allowed_paths = {_listed(files)}")
    connection.execute("SET enable_external_access = false")
    if "dicom_" in text.lower():  # the dictionary takes longer than most questions
        named = addresses()
        connection.execute("SET VARIABLE dicom_addresses = MAP(?, ?)", [list(named), list(named.values())])
        connection.execute(_MACROS)
    for name in TABLES[1:]:
        connection.register(name, getattr(archive, name).dataset())
    connection.register("no_objects", archive.objects.schema.empty_table())
    # DuckDB reads these files itself: with headers in them, through Arrow it took four times the time and eight the memory.
    rows = f" UNION ALL BY NAME SELECT * FROM read_parquet({_listed(files)}, union_by_name = true)" if files else ""
    connection.execute(f"CREATE VIEW object_catalog AS SELECT * FROM no_objects{rows}")
    for name, body in definitions(quote='"', modalities="list_sort(list_distinct(list(Modality)))").items():
        connection.execute(f"CREATE VIEW {name} AS {body}")
    connection.execute("SET lock_configuration = true")
    return connection


def _listed(files: list[str]) -> str:
    return "[" + ", ".join(quoted(file) for file in files) + "]"
