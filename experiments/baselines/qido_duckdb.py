"""Answering QIDO-RS from the Delta table's parquet files with DuckDB: nothing to build, nothing to follow.

It takes every row for a current instance, which holds where no file was ingested twice.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb

__all__ = ["Baseline"]

_STUDIES = """
CREATE VIEW studies AS
SELECT StudyInstanceUID, max(PatientName) AS PatientName, max(PatientID) AS PatientID, max(StudyDate) AS StudyDate,
    max(StudyTime) AS StudyTime, max(AccessionNumber) AS AccessionNumber, max(StudyDescription) AS StudyDescription,
    list_sort(list(DISTINCT Modality)) AS ModalitiesInStudy,
    count(DISTINCT SeriesInstanceUID) AS NumberOfStudyRelatedSeries, count(*) AS NumberOfStudyRelatedInstances
FROM instances GROUP BY StudyInstanceUID
"""
_SERIES = """
CREATE VIEW series AS
SELECT StudyInstanceUID, SeriesInstanceUID, max(Modality) AS Modality, max(SeriesNumber) AS SeriesNumber,
    max(SeriesDescription) AS SeriesDescription, count(*) AS NumberOfSeriesRelatedInstances
FROM instances GROUP BY StudyInstanceUID, SeriesInstanceUID
"""
_ORDER = {
    "studies": "StudyDate DESC NULLS LAST, StudyTime DESC NULLS LAST, StudyInstanceUID",
    "series": "StudyInstanceUID, SeriesNumber NULLS LAST, SeriesInstanceUID",
    "instances": "SeriesInstanceUID, InstanceNumber NULLS LAST, SOPInstanceUID",
}


class Baseline:
    """DuckDB over parquet ``files`` of ``object_catalog``."""

    def __init__(self, files: Sequence[str]) -> None:
        self.connection = duckdb.connect()
        self.connection.read_parquet(list(files)).create_view("instances")
        self.connection.execute(_STUDIES)
        self.connection.execute(_SERIES)

    def search(self, level: str, match: Mapping[str, str], limit: int | None, offset: int) -> list[dict[str, Any]]:
        """What matches, in the order of catalog.index.Index."""
        where, values = ["true"], list[str]()
        for name, value in match.items():
            if name == "PatientName":
                where.append("PatientName ILIKE ?")
                values.append(value.replace("*", "%").replace("?", "_"))
            elif name == "ModalitiesInStudy":
                where.append("list_contains(ModalitiesInStudy, ?)")
                values.append(value)
            elif name == "StudyDate":
                where.append("StudyDate BETWEEN ? AND ?")
                values += value.split("-")
            else:
                where.append(f"{name} = ?")
                values.append(value)
        page = (f" LIMIT {limit}" if limit is not None else "") + f" OFFSET {offset}"
        columns = "SOPInstanceUID, SOPClassUID, InstanceNumber, Rows, Columns" if level == "instances" else "*"
        query = f"SELECT {columns} FROM {level} WHERE {' AND '.join(where)} ORDER BY {_ORDER[level]}{page}"
        found = self.connection.execute(query, values)
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
