"""Rows of ``object_catalog`` into the tables of the index, within one transaction and by batches.

A follow touches what came: files by path, then which file of each SOPInstanceUID is current, then how many current files each
header has, then the series and studies of those headers, which are written anew from their headers.
"""

import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import groupby, zip_longest
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from catalog._index_schema import (
    ATTRIBUTES,
    CHANGED,
    FILE_ATTRIBUTES,
    FILES,
    GROUPS,
    HEADER_ATTRIBUTES,
    HEADERS,
    INCOMING,
    PERSONS,
    SERIES,
    STUDIES,
    TEMPORARY,
    TOUCHED,
)
from catalog.schemas import TYPED

__all__ = ["COLUMNS", "LONGEST", "cleaned", "folded", "insert", "take_in"]

_BATCH = 10_000
"""Rows taken in at once: what a follow holds in memory, whatever it has to catch up with."""

_STUDIES_AT_ONCE = 200
_MANY = 10_000
"""So many rows change a table enough for the planner to look at it again."""

LONGEST = 256
"""Characters kept of a value. The longest that DICOM allows in these attributes is a name of three times 64; Postgres would
refuse an index entry of more than 2,700 bytes, and with it the whole follow."""

_KEY = ("path", "ingested_at", "modificationTime", "length", "status")
COLUMNS = (*_KEY, *dict.fromkeys((*FILE_ATTRIBUTES, *HEADER_ATTRIBUTES)), "meta")
"""What is read of ``object_catalog``."""

_SEVERAL = '"Ideographic"'
"""What stands in a header with a name of several groups: its column has the first of them only."""

_ORDER, _HEADER = slice(2, 5), 6
"""Where a row of FILES says which of a path's rows came last, and what header it has."""

_Row = tuple[Any, ...]


def take_in(connection: sa.Connection, batches: Iterable[pa.RecordBatch], *, fresh: bool) -> None:
    """Put the rows of ``batches`` (COLUMNS of ``object_catalog``) into the index, which is empty where it is ``fresh``."""
    TEMPORARY.create_all(connection, checkfirst=False)
    indexes = sorted(FILES.indexes, key=lambda index: str(index.name)) if fresh else []
    for index in indexes:  # made once, at the end, they cost a fraction
        index.drop(connection)
    taken, known = 0, set[bytes]()
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH):
            taken += _stage(connection, batch.slice(start, _BATCH), known)
            if not fresh:
                _note_touched(connection)
            _upsert(connection)
    for index in indexes:
        index.create(connection)
    if fresh:
        _note_all(connection)
    _settle(connection)
    if not fresh:
        touched = FILES.c.SOPInstanceUID.in_(sa.select(TOUCHED.c.uid))
        _note(connection, CHANGED, sa.select(FILES.c.header).where(touched).distinct())
    _count(connection)
    for studies in _changed_studies(connection):
        _write(connection, studies)
    TEMPORARY.drop_all(connection, checkfirst=False)
    if taken > _MANY:
        for table in (FILES, HEADERS, SERIES, STUDIES):
            connection.exec_driver_sql(f"ANALYZE {table.name}")


def folded(name: str, *, pattern: bool = False) -> str:
    """What a group of a person's name is compared by: without regard to case and to components that are empty at its end.

    It ends with one ``^``, so that ``Doe``, ``Doe^`` and, as a ``pattern``, ``Doe^*`` fit a name without further components.
    """
    text = unicodedata.normalize("NFC", name.casefold())
    return text if pattern and text.endswith("*") else f"{text.rstrip('^ ')}^"


def cleaned(value: str) -> str:
    """A text as it is in the index: without NUL, which Postgres does not take, and not too long for an index of it."""
    return value.replace("\0", "")[:LONGEST]


def _stage(connection: sa.Connection, batch: pa.RecordBatch, known: set[bytes]) -> int:
    """The rows of a batch into INCOMING, one a path, and their headers into HEADERS; how many rows."""
    headers: dict[bytes, _Row] = {}
    rows: dict[bytes, _Row] = {}
    for row, header in _rows(batch):
        key, digest = row[0], row[_HEADER]
        if digest is not None and digest not in known:
            headers[digest] = header
        if key not in rows or rows[key][_ORDER] < row[_ORDER]:
            rows[key] = row
    connection.execute(INCOMING.delete())
    _fill(connection, INCOMING, list(rows.values()))
    if headers:
        names = ("id", "instances", *HEADER_ATTRIBUTES)
        new = [dict(zip(names, (digest, 0, *header), strict=True)) for digest, header in headers.items()]
        connection.execute(insert(connection, HEADERS).on_conflict_do_nothing(), new)
        if len(known) > 100_000:
            known.clear()
        known.update(headers)
    return int(batch.num_rows)


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[_Row, _Row]]:
    """Each row as FILES has it, and its header."""
    lists = _lists(batch)
    keys = zip(*(lists[name] for name in _KEY), strict=True)
    files = zip(*(lists[name] for name in FILE_ATTRIBUTES), strict=True)
    headers = zip(*(lists[name] for name in HEADER_ATTRIBUTES), strict=True)
    nothing = (None,) * len(FILE_ATTRIBUTES)
    for (path, *order, status), file, header in zip(keys, files, headers, strict=True):
        usable = status == "ok" and all(file[:3])
        digest = blake2b(orjson.dumps(header), digest_size=16).digest() if usable else None
        key = blake2b(path.encode(), digest_size=16).digest()
        yield (key, path, *order, usable, digest, *(file if usable else nothing)), header


def _lists(batch: pa.RecordBatch) -> dict[str, list[Any]]:
    """The columns as lists; times in µs since 1970; texts, but for the path, as ``cleaned``."""
    lists = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name == "meta":
            continue
        if pa.types.is_string(column.type) and name != "path":
            column = pc.utf8_slice_codeunits(pc.replace_substring(column, "\0", ""), 0, LONGEST)
        elif pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        lists[name] = column.to_pylist()
    for row, names in _names_of_several_groups(batch["meta"]):
        for name, value in names.items():
            lists[name][row] = cleaned(value)
    return lists


def _names_of_several_groups(meta: pa.Array) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows with the names whose whole value, ``alphabetic=ideographic=phonetic``, only the header has."""
    texts = meta.buffers()[2]
    if texts is None or _SEVERAL.encode() not in texts.to_pybytes():  # most archives: a look at all of it at once
        return
    for row, text in enumerate(meta.to_pylist()):
        if text and _SEVERAL in text:
            header = json.loads(text)
            found = {name: (header.get(TYPED[name][0], {}).get("Value") or [None])[0] for name in PERSONS}
            yield row, {name: _whole(value) for name, value in found.items() if value}


def _whole(name: Mapping[str, str]) -> str:
    text = "=".join(name.get(group.capitalize(), "") for group in GROUPS).rstrip("=")
    return text.encode("utf-8", "replace").decode("utf-8")


def _fill(connection: sa.Connection, table: sa.Table, rows: Sequence[_Row]) -> None:
    names = ", ".join(f'"{name}"' for name in _names(table))
    if connection.dialect.name == "sqlite":
        places = ", ".join("?" * len(table.columns))
        connection.exec_driver_sql(f"INSERT INTO {table.name} ({names}) VALUES ({places})", list(rows))
        return
    postgres: Any = connection.connection.driver_connection
    with postgres.cursor() as cursor, cursor.copy(f"COPY {table.name} ({names}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def _upsert(connection: sa.Connection) -> None:
    """INCOMING into FILES: of two rows of one path the later one stays."""
    statement = insert(connection, FILES).from_select(_names(INCOMING), sa.select(INCOMING).where(sa.true()))
    order = ("seen", "modified", "length")
    newer = sa.tuple_(*(statement.excluded[name] for name in order)) > sa.tuple_(*(FILES.c[name] for name in order))
    changed = {name: statement.excluded[name] for name in _names(FILES) if name not in ("key", "path")}
    connection.execute(statement.on_conflict_do_update(index_elements=["key"], set_=changed, where=newer))


def _note_touched(connection: sa.Connection) -> None:
    """What INCOMING is about to change: the objects that came, those that their paths held, those paths' headers."""
    replaced = FILES.c.key.in_(sa.select(INCOMING.c.key))
    came = sa.select(INCOMING.c.SOPInstanceUID).where(INCOMING.c.SOPInstanceUID.is_not(None))
    went = sa.select(FILES.c.SOPInstanceUID).where(replaced, FILES.c.SOPInstanceUID.is_not(None))
    _note(connection, TOUCHED, came.union(went))
    _note(connection, CHANGED, sa.select(FILES.c.header).where(replaced, FILES.c.header.is_not(None)).distinct())


def _note_all(connection: sa.Connection) -> None:
    """After a first follow: every header, and the objects of which there are several files."""
    several = sa.select(FILES.c.SOPInstanceUID).where(FILES.c.SOPInstanceUID.is_not(None))
    _note(connection, TOUCHED, several.group_by(FILES.c.SOPInstanceUID).having(sa.func.count() > 1))
    _note(connection, CHANGED, sa.select(HEADERS.c.id))


def _note(connection: sa.Connection, table: sa.Table, found: Any) -> None:
    rows = sa.select(found.subquery()).where(sa.true())
    connection.execute(insert(connection, table).from_select(_names(table), rows).on_conflict_do_nothing())


def _settle(connection: sa.Connection) -> None:
    """Mark, of each object in TOUCHED, its latest file as current and no other."""
    touched = FILES.c.SOPInstanceUID.in_(sa.select(TOUCHED.c.uid))
    latest = sa.func.row_number().over(partition_by=FILES.c.SOPInstanceUID, order_by=(FILES.c.seen.desc(), FILES.c.path.desc()))
    ranked = sa.select(FILES.c.key, latest.label("rank")).where(touched).subquery()
    chosen = sa.select(ranked.c.key).where(ranked.c.rank == 1)
    connection.execute(FILES.update().where(touched, FILES.c.current, FILES.c.key.not_in(chosen)).values(current=False))
    connection.execute(FILES.update().where(~FILES.c.current, FILES.c.key.in_(chosen)).values(current=True))


def _count(connection: sa.Connection) -> None:
    """How many current files have each header in CHANGED, and when the latest of them was seen."""
    here = (FILES.c.SeriesInstanceUID == HEADERS.c.SeriesInstanceUID) & (FILES.c.header == HEADERS.c.id) & FILES.c.current
    instances = sa.select(sa.func.count()).select_from(FILES).where(here).scalar_subquery()
    latest = sa.select(sa.func.max(FILES.c.seen)).where(here).scalar_subquery()
    changed = HEADERS.c.id.in_(sa.select(CHANGED.c.id))
    connection.execute(HEADERS.update().where(changed).values(instances=instances, latest=latest))


def _changed_studies(connection: sa.Connection) -> Iterator[list[str]]:
    """The studies of the headers in CHANGED, some at a time."""
    uid, last = HEADERS.c.StudyInstanceUID, ""
    changed = sa.select(uid).where(HEADERS.c.id.in_(sa.select(CHANGED.c.id))).distinct().order_by(uid)
    while found := list(connection.execute(changed.where(uid > last).limit(_STUDIES_AT_ONCE)).scalars()):
        yield found
        last = found[-1]


def _write(connection: sa.Connection, uids: Sequence[str]) -> None:
    """Write these studies and their series anew from their headers."""
    uid = HEADERS.c.StudyInstanceUID
    query = sa.select(HEADERS).where(uid.in_(uids), HEADERS.c.instances > 0)
    headers: Sequence[Any] = connection.execute(query.order_by(uid, HEADERS.c.latest.desc(), HEADERS.c.id)).mappings().all()
    series: list[dict[str, Any]] = []
    studies: list[dict[str, Any]] = []
    for _, group in groupby(headers, key=lambda header: header["StudyInstanceUID"]):
        of_series: dict[str, list[Any]] = {}
        of_study = list(group)
        for header in of_study:
            of_series.setdefault(header["SeriesInstanceUID"], []).append(header)
        found = [_series(among) for among in of_series.values()]
        series += found
        studies.append(_study(of_study, found))
    for table, rows in ((SERIES, series), (STUDIES, studies)):
        connection.execute(table.delete().where(table.c.StudyInstanceUID.in_(uids)))
        if rows:
            connection.execute(table.insert(), rows)


def _series(headers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    row = _merged(headers, _names(SERIES))
    return {**row, "NumberOfSeriesRelatedInstances": sum(header["instances"] for header in headers)}


def _study(headers: Sequence[Mapping[str, Any]], series: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    row = _merged(headers, ATTRIBUTES["studies"])
    return {
        **row,
        "ModalitiesInStudy": "\\".join(sorted({one["Modality"] for one in series if one["Modality"]})) or None,
        "NumberOfStudyRelatedSeries": len(series),
        "NumberOfStudyRelatedInstances": sum(one["NumberOfSeriesRelatedInstances"] for one in series),
        **{column: value for name in PERSONS for column, value in _groups(name, row[name] or "")},
    }


def _groups(name: str, value: str) -> Iterator[tuple[str, str | None]]:
    """The columns that the name is compared by."""
    for group, text in zip_longest(GROUPS, value.split("=", len(GROUPS))[: len(GROUPS)], fillvalue=""):
        yield f"{name}_{group}", folded(text) if text else None


def _merged(headers: Sequence[Mapping[str, Any]], names: Iterable[str]) -> dict[str, Any]:
    """Of each attribute the latest value there is: segmentations and reports often leave out what the images say."""
    known = [name for name in names if name in HEADER_ATTRIBUTES]
    return {name: next((header[name] for header in headers if header[name] is not None), None) for name in known}


def _names(table: sa.Table) -> list[str]:
    return [column.name for column in table.columns]


def insert(connection: sa.Connection, table: sa.Table) -> Any:
    """An INSERT that can say what to do on a conflict."""
    from sqlalchemy.dialects import postgresql, sqlite

    return (postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert)(table)
