"""SQL over the tables of a home by DuckDB.

object_catalog, labels, predictions, scores, splits    the tables, every row
instances    the latest good row of each SOPInstanceUID, of files as they were last ingested: one may have gone since
studies      a row a StudyInstanceUID
series       a row a SeriesInstanceUID; ``is_image`` is false for segmentations, reports and the like
"""

from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from catalog._query import connect
from catalog.errors import CatalogError

if TYPE_CHECKING:
    from catalog.archive import Archive

__all__ = ["VIEWS", "sql"]

_FILES = """
CREATE VIEW files AS
SELECT * FROM object_catalog
QUALIFY row_number() OVER (PARTITION BY path ORDER BY ingested_at DESC, modificationTime DESC) = 1
"""
_INSTANCES = """
CREATE VIEW instances AS
SELECT * FROM files WHERE status = 'ok' AND SOPInstanceUID IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY SOPInstanceUID ORDER BY ingested_at DESC, path DESC) = 1
"""
_SERIES = """
CREATE VIEW series AS
SELECT SeriesInstanceUID, any_value(StudyInstanceUID) AS StudyInstanceUID, any_value(PatientID) AS PatientID,
    any_value(Modality) AS Modality, any_value(SeriesNumber) AS SeriesNumber,
    any_value(SeriesDescription) AS SeriesDescription, any_value(BodyPartExamined) AS BodyPartExamined,
    any_value(StudyDate) AS StudyDate, any_value(Rows) AS Rows, any_value("Columns") AS "Columns",
    count(*) AS instances, sum(coalesce(NumberOfFrames, 1))::BIGINT AS frames,
    bool_and(Rows IS NOT NULL AND Modality NOT IN ('SEG', 'RTDOSE', 'PR', 'KO', 'SR')) AS is_image
FROM instances GROUP BY SeriesInstanceUID
"""
_STUDIES = """
CREATE VIEW studies AS
SELECT StudyInstanceUID, any_value(PatientID) AS PatientID, any_value(PatientName) AS PatientName,
    any_value(PatientSex) AS PatientSex, any_value(PatientBirthDate) AS PatientBirthDate,
    any_value(StudyDate) AS StudyDate, any_value(StudyTime) AS StudyTime, any_value(StudyID) AS StudyID,
    any_value(StudyDescription) AS StudyDescription, any_value(AccessionNumber) AS AccessionNumber,
    list_sort(list_distinct(list(Modality))) AS ModalitiesInStudy,
    count(DISTINCT SeriesInstanceUID) AS series, count(*) AS instances
FROM instances GROUP BY StudyInstanceUID
"""
VIEWS = ("files", "instances", "series", "studies", "object_catalog", "labels", "predictions", "scores", "splits")


def sql(archive: "Archive", query: str) -> pa.Table:
    """The rows of ``query`` over the views named above, as they are now."""
    tables = {name: getattr(archive, name).dataset() for name in VIEWS[5:]}
    with connect({"object_catalog": archive.objects.dataset(), **tables}) as connection:
        for view in (_FILES, _INSTANCES, _SERIES, _STUDIES):
            connection.execute(view)
        try:
            if len(duckdb.extract_statements(query)) != 1:
                raise CatalogError("give exactly one statement", about="query", remedy="select … from instances")
            found = connection.sql(query)
            return pa.table({}) if found is None else found.to_arrow_table()
        except duckdb.Error as problem:
            remedy = f"the views are {', '.join(VIEWS)}"
            raise CatalogError(
                str(problem).splitlines()[0], about=query.strip().splitlines()[0] if query.strip() else "query", remedy=remedy
            ) from None
