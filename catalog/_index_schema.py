"""The tables of the query index, the same in SQLite and Postgres.

index_files     a row a path: the latest of its rows in ``object_catalog``; ``current`` marks one file of each SOPInstanceUID
index_headers   a row each combination of study and series attributes that files have, with how many current files have it
index_series    a row a series, index_studies a row a study: what lists and searches read, counts included
index_state     the version of ``object_catalog`` that is in it, and the shape of these tables

Columns that are DICOM attributes have their keywords.
"""

from typing import Any

import sqlalchemy as sa

from catalog.schemas import TYPED, TYPED_LATER

__all__ = [
    "ATTRIBUTES",
    "CHANGED",
    "FILES",
    "FILE_ATTRIBUTES",
    "GROUPS",
    "HEADERS",
    "HEADER_ATTRIBUTES",
    "INCOMING",
    "MODALITIES",
    "PERSONS",
    "SERIES",
    "SHAPE",
    "STATE",
    "STUDIES",
    "TEMPORARY",
    "TOUCHED",
    "create",
    "drop",
]

_REVISION = 1
"""Raise it when the tables stay as they are and what is put into them changes: every index is then built anew."""

_STUDY = (
    *("StudyInstanceUID", "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("StudyID", "StudyDescription", "AccessionNumber", "ReferringPhysicianName"),
)
_SERIES = (
    *("SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDescription", "BodyPartExamined", "FrameOfReferenceUID"),
    *("SeriesDate", "SeriesTime", "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime"),
    *("Manufacturer", "ManufacturerModelName", "StationName", "InstitutionName", "ProtocolName"),
)
_INSTANCE = (
    *("SOPInstanceUID", "SOPClassUID", "TransferSyntaxUID", "InstanceNumber"),
    *("Rows", "Columns", "NumberOfFrames", "BitsAllocated"),
)
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "studies": (*_STUDY, "ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
    "series": (*_SERIES, "NumberOfSeriesRelatedInstances"),
    "instances": _INSTANCE,
}
"""The attributes of each level, by keyword (PS3.18 §10.6.1.2, PS3.4 §C.6). Those of the levels above belong to it too."""

MODALITIES = ("ModalitiesInStudy", "Modality")
"""Attributes that are matched by a list, as UIDs are: viewers let their users choose several."""

HEADER_ATTRIBUTES = (*_STUDY, *_SERIES)
FILE_ATTRIBUTES = ("StudyInstanceUID", "SeriesInstanceUID", *_INSTANCE)
PERSONS = ("PatientName", "ReferringPhysicianName")
GROUPS = ("alphabetic", "ideographic", "phonetic")
"""Attributes that are names. Each has a column for each of its groups (PS3.5 §6.2), ``…_alphabetic`` and so on, that is what it
is compared by."""

METADATA = sa.MetaData()
_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")  # ranges of a prefix follow the code points in both


def _columns(names: tuple[str, ...], *, key: tuple[str, ...] = ()) -> "list[sa.Column[Any]]":
    types = {**TYPED, **TYPED_LATER}

    def column(name: str) -> "sa.Column[Any]":
        whole = name.startswith("NumberOf") or (name in types and str(types[name][1]) == "int64")
        return sa.Column(name, sa.BigInteger if whole else _TEXT, primary_key=name in key)

    return [column(name) for name in names]


STATE = sa.Table(
    "index_state",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("shape", _TEXT, nullable=False),
    sa.Column("followed", _TEXT, nullable=False),
)


def _file_columns() -> "list[sa.Column[Any]]":
    return [
        sa.Column("key", sa.LargeBinary, primary_key=True),  # a digest of the path, which may be too long for an index
        sa.Column("path", _TEXT, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("seen", "modified", "length")),
        sa.Column("current", sa.Boolean, nullable=False),
        sa.Column("header", sa.LargeBinary),
        *_columns(FILE_ATTRIBUTES),
    ]


FILES = sa.Table(
    "index_files",
    METADATA,
    *_file_columns(),
    sa.Index("index_files_by_series", "SeriesInstanceUID", "InstanceNumber", "SOPInstanceUID"),
    sa.Index("index_files_by_sop", "SOPInstanceUID"),
)
"""A file that is not usable has no header and no UIDs: its row only says what the path's earlier rows are no more."""

HEADERS = sa.Table(
    "index_headers",
    METADATA,
    sa.Column("id", sa.LargeBinary, primary_key=True),
    sa.Column("instances", sa.BigInteger, nullable=False),
    sa.Column("latest", sa.BigInteger),
    *_columns(HEADER_ATTRIBUTES),
    sa.Index("index_headers_by_study", "StudyInstanceUID"),
)
SERIES = sa.Table(
    "index_series",
    METADATA,
    *_columns(("StudyInstanceUID", *ATTRIBUTES["series"]), key=("StudyInstanceUID", "SeriesInstanceUID")),
    sa.Index("index_series_by_uid", "SeriesInstanceUID"),
)
STUDIES = sa.Table(
    "index_studies",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    *_columns((*ATTRIBUTES["studies"], *(f"{name}_{group}" for name in PERSONS for group in GROUPS))),
    sa.Index("index_studies_by_uid", "StudyInstanceUID", unique=True),
    *(sa.Index(f"index_studies_by_{group}", f"PatientName_{group}", "StudyDate") for group in GROUPS),
    sa.Index("index_studies_by_patient", "PatientID"),
    sa.Index("index_studies_by_accession", "AccessionNumber"),
)
# SQLite's DESC puts nulls last by itself and cannot say so in an index.
_newest = [STUDIES.c.StudyDate.desc(), STUDIES.c.StudyTime.desc()]
sa.Index("index_studies_newest", *_newest, STUDIES.c.StudyInstanceUID).ddl_if(dialect="sqlite")
_newest = [column.nulls_last() for column in _newest]
sa.Index("index_studies_newest_last", *_newest, STUDIES.c.StudyInstanceUID).ddl_if(dialect="postgresql")


TEMPORARY = sa.MetaData()
INCOMING = sa.Table("index_incoming", TEMPORARY, *_file_columns(), prefixes=["TEMPORARY"])
TOUCHED = sa.Table("index_touched", TEMPORARY, sa.Column("uid", _TEXT, primary_key=True), prefixes=["TEMPORARY"])
CHANGED = sa.Table("index_changed", TEMPORARY, sa.Column("id", sa.LargeBinary, primary_key=True), prefixes=["TEMPORARY"])
"""For the time of one follow: the rows that come in, the SOPInstanceUIDs and the headers whose files change."""

SHAPE = f"{_REVISION} " + " ".join(f"{table.name}({','.join(table.columns.keys())})" for table in METADATA.sorted_tables)

_SEARCHED = [f"PatientName_{group}" for group in GROUPS]
_NAMES, _NEW, _OLD = (", ".join(f'{row}"{name}"' for name in _SEARCHED) for row in ("", "new.", "old."))
_TRIGRAMS = (
    f"""CREATE VIRTUAL TABLE index_names USING fts5(
    {_NAMES}, content='index_studies', content_rowid='id', tokenize='trigram')""",
    f"""CREATE TRIGGER index_names_insert AFTER INSERT ON index_studies BEGIN
    INSERT INTO index_names(rowid, {_NAMES}) VALUES (new.id, {_NEW}); END""",
    f"""CREATE TRIGGER index_names_delete AFTER DELETE ON index_studies BEGIN
    INSERT INTO index_names(index_names, rowid, {_NAMES})
    VALUES ('delete', old.id, {_OLD}); END""",
)
"""SQLite's trigram index on names; rows of index_studies are replaced, never updated."""


def create(connection: sa.Connection) -> None:
    """Make the tables, empty, at version -1."""
    METADATA.create_all(connection)
    connection.execute(STATE.insert().values(id=1, version=-1, shape=SHAPE, followed=""))
    if connection.dialect.name == "sqlite":
        for statement in _TRIGRAMS:
            connection.exec_driver_sql(statement)
    else:
        _trigrams(connection)


def drop(connection: sa.Connection) -> None:
    """Remove the tables, of whatever shape."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("DROP TABLE IF EXISTS index_names")
    METADATA.drop_all(connection)


def _trigrams(connection: sa.Connection) -> None:
    """A trigram index on names, where this server has the extension and lets us use it; else a search reads all names."""
    try:
        with connection.begin_nested():
            connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS pg_trgm")
    except sa.exc.DBAPIError:
        return
    place = "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'pg_trgm'"
    schema = connection.dialect.identifier_preparer.quote(connection.exec_driver_sql(place).scalar_one())
    columns = ", ".join(f'"{name}" {schema}.gin_trgm_ops' for name in _SEARCHED)
    connection.exec_driver_sql(f"CREATE INDEX index_names ON index_studies USING gin ({columns})")
