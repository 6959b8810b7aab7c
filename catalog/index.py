"""The query index: a relational copy of what ``object_catalog`` says, for look-ups by UID and the searches of DICOMweb.

Never truth: it follows the table by version, catches up after a crash, and can be dropped and rebuilt. Jobs, labels and other
state are not in it. An index whose tables have an older shape is built anew by the next one that opens it.
"""

import sqlite3
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import pyarrow as pa
import sqlalchemy as sa

from catalog import _index_schema as schema
from catalog._index_follow import COLUMNS, cleaned, take_in
from catalog._index_match import listed
from catalog._index_schema import ATTRIBUTES, FILES, HEADERS, MODALITIES, STATE
from catalog._index_search import Search
from catalog.errors import CatalogError
from catalog.files import Key, exists, is_url
from catalog.table import Table

__all__ = ["ATTRIBUTES", "MODALITIES", "Index", "Indexed", "Level", "listed"]

Level = Literal["studies", "series", "instances"]
_LOCK = 0x766F78  # of Postgres' advisory locks; any number that nobody else uses


class Followed(Table, Protocol):
    """A table that can say which one it is, and what came after a version."""

    def identity(self) -> str:
        """What no other table has, nor this one once it is made anew; empty where it is not there."""
        ...

    def added(self, columns: Sequence[str], *, since: int, version: int) -> pa.RecordBatchReader:
        """The rows appended after ``since`` up to ``version``."""
        ...


class Indexed(NamedTuple):
    """Where a current object lies; ``modified`` (µs since 1970) and ``length`` (bytes) are of its file as it was catalogued."""

    sop_uid: str
    path: str
    sop_class: str
    series_uid: str
    study_uid: str
    patient_id: str
    modified: int = 0
    length: int = 0
    syntax: str = ""

    @property
    def key(self) -> Key:
        """The key of its row in ``object_catalog``."""
        return self.path, self.modified, self.length


class Index:
    """The index at a SQLAlchemy ``url`` (SQLite or Postgres), created when first used; safe in any process.

    Searches take DICOM's matching (PS3.4 §C.2.2.2) by keyword: ``{"PatientName": "doe*", "StudyDate": "20200101-"}``. A value
    is text: one value; with ``*`` and ``?``; FROM-TO of dates and times; UIDs or modalities by comma; a name in any case, by
    any of its groups (``alphabetic=ideographic=phonetic``). An empty value or ``*`` matches all, and only that matches what is
    empty. The attributes are those of ATTRIBUTES, of the level and above.
    Each answer is a dict by keyword, None where there is no value, ModalitiesInStudy a list. Objects are those of their latest
    good file (as the view ``instances`` has them), whether or not it is still there.
    """

    def __init__(self, url: str | sa.URL) -> None:
        self.url = url
        self._opened: sa.Engine | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_opened": None}

    def follow(self, objects: Followed) -> int:
        """Take in what the table has and the index has not; the version followed to. Safe to call from many processes.

        One transaction, of as little memory as a batch takes: whoever searches meanwhile sees the index as it was.
        """
        version = objects.version()
        with self._reading() as connection:
            known = connection.execute(sa.select(STATE.c.followed)).scalar_one()
            if _followed(connection) == version and known in ("", objects.identity()):
                return version
        with self._writing() as connection:
            return _follow(connection, objects)

    def rebuild(self, objects: Followed) -> int:
        """Forget everything and follow the table from its beginning; until that is done SQLite answers from the old index,
        and Postgres lets searches wait."""
        with self._writing() as connection:
            schema.drop(connection)
            schema.create(connection)
            return _follow(connection, objects)

    def studies(
        self, match: Mapping[str, str] | None = None, *, limit: int | None = None, offset: int = 0
    ) -> list[dict[str, Any]]:
        """The studies that match, newest first: by StudyDate and StudyTime, those without at the end, then by UID.

        CatalogError where an attribute is none of the level's, or cannot be matched by its value.
        """
        return self._found("studies", match or {}, (), limit, offset)

    def series(
        self,
        match: Mapping[str, str] | None = None,
        *,
        include: Sequence[str] = (),
        limit: int | None = None,
        offset: int = 0,
    ) -> list[dict[str, Any]]:
        """The series that match, by study, then SeriesNumber, those without at the end, then UID.

        With their own attributes, their StudyInstanceUID, and what is in ``include`` of the study's. Raises as ``studies``.
        """
        return self._found("series", match or {}, include, limit, offset)

    def instances(
        self,
        match: Mapping[str, str] | None = None,
        *,
        include: Sequence[str] = (),
        limit: int | None = None,
        offset: int = 0,
    ) -> list[dict[str, Any]]:
        """The instances that match, by series, then InstanceNumber, those without at the end, then SOPInstanceUID.

        With their own attributes, the UIDs of series and study, and what is in ``include`` of theirs. Raises as ``studies``.
        """
        return self._found("instances", match or {}, include, limit, offset)

    def count(self, level: Level, match: Mapping[str, str] | None = None) -> int:
        """How many there are that match, at a level."""
        search = Search(level, match or {}, (), sqlite=self._sqlite())
        with self._reading() as connection:
            return int(connection.execute(search.count()).scalar_one() or 0)

    def files(self, series_uid: str) -> list[Indexed]:
        """The current objects of a series, one a SOPInstanceUID, by InstanceNumber; empty where the series is unknown.

        Of several files of one object the latest good one counts, an earlier one where that has gone.
        """
        return self._current(FILES.c.SeriesInstanceUID == cleaned(series_uid))

    def instance(self, sop_uid: str) -> Indexed | None:
        """The current object with this SOPInstanceUID."""
        found = self._current(FILES.c.SOPInstanceUID == cleaned(sop_uid))
        return found[0] if found else None

    def _current(self, condition: sa.ColumnElement[bool]) -> list[Indexed]:
        """Of each SOPInstanceUID the latest good file that is still there, or the latest where none is, if it fits."""
        sop = FILES.c.SOPInstanceUID
        told = [
            sop,
            FILES.c.path,
            FILES.c.SOPClassUID,
            FILES.c.SeriesInstanceUID,
            FILES.c.StudyInstanceUID,
            HEADERS.c.PatientID,
            FILES.c.modified,
            FILES.c.length,
            FILES.c.TransferSyntaxUID,
        ]
        fits = sa.case((condition, 1), else_=0)
        query = sa.select(fits, *told).join_from(FILES, HEADERS, FILES.c.header == HEADERS.c.id)
        query = query.where(sop.in_(sa.select(sop).where(condition)))
        query = query.order_by(FILES.c.InstanceNumber.nulls_last(), sop, FILES.c.seen.desc(), FILES.c.path.desc())
        copies: dict[str, list[tuple[bool, Indexed]]] = {}
        with self._reading() as connection:
            for fit, *row in connection.execute(query):
                found = Indexed._make("" if value is None else value for value in row)
                copies.setdefault(found.sop_uid, []).append((bool(fit), found))
        chosen = [next(filter(_there, known), known[0]) for known in copies.values()]
        return [found for fit, found in chosen if fit]

    def _found(
        self, level: Level, match: Mapping[str, str], include: Sequence[str], limit: int | None, offset: int
    ) -> list[dict[str, Any]]:
        if offset < 0 or (limit is not None and limit < 0):
            raise CatalogError("limit and offset cannot be negative", about=level, remedy="count from 0")
        search = Search(level, match, include, sqlite=self._sqlite())
        with self._reading() as connection:
            found = connection.execute(search.rows(limit, offset))
            names = list(found.keys())
            rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
        for row in rows:
            if "ModalitiesInStudy" in row:
                row["ModalitiesInStudy"] = (row["ModalitiesInStudy"] or "").split("\\") if row["ModalitiesInStudy"] else []
        return rows

    def _sqlite(self) -> bool:
        return self._engine().dialect.name == "sqlite"

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        """One state of the index, whoever is writing."""
        with self._reachable(), self._engine().connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """All or nothing, one writer at a time, from before it reads what it is about to change."""
        with self._reachable(), self._engine().execution_options(writing=True).begin() as connection:
            yield connection

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.DBAPIError, sqlite3.DatabaseError, ModuleNotFoundError) as problem:
            if isinstance(problem, sa.exc.DBAPIError) and type(problem) not in (sa.exc.OperationalError, sa.exc.DatabaseError):
                raise  # of our own making
            raise self._unusable(str(getattr(problem, "orig", problem)).strip().splitlines()[0]) from problem

    def _unusable(self, why: str) -> CatalogError:
        try:
            about = sa.make_url(self.url).render_as_string(hide_password=True)
        except sa.exc.ArgumentError:
            about = str(self.url)
        remedy = "check VOXLOOP_INDEX_URL; an index in a file can be deleted, the next command builds it anew"
        return CatalogError(f"the query index cannot be used: {why}", about=about, remedy=remedy)

    def _engine(self) -> sa.Engine:
        if self._opened is None:
            try:
                backend = sa.make_url(self.url).get_backend_name()
            except sa.exc.ArgumentError:
                raise self._unusable("not a database's URL") from None
            if backend not in ("sqlite", "postgresql"):
                raise self._unusable("it needs SQLite or Postgres")
            with self._reachable():
                engine = sa.create_engine(self.url)
                if backend == "sqlite":
                    sa.event.listen(engine, "connect", _sqlite)
                sa.event.listen(engine, "begin", _begin)
                weakref.finalize(self, engine.dispose).atexit = False  # a server counts the connections that nobody uses
                _prepare(engine)
            self._opened = engine
        return self._opened


def _there(copy: tuple[bool, Indexed]) -> bool:
    """Whether the file is still there; a URL is not asked."""
    return is_url(copy[1].path) or exists(copy[1].path)


def _prepare(engine: sa.Engine) -> None:
    """Make the tables where there are none, or such of another shape."""
    with engine.connect() as connection:
        if _shape(connection) == schema.SHAPE:
            return
    with engine.execution_options(writing=True).begin() as connection:
        if _shape(connection) != schema.SHAPE:
            schema.drop(connection)
            schema.create(connection)


def _shape(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(STATE.name):
        return None
    return str(connection.execute(sa.select(STATE.c.shape)).scalar_one())


def _followed(connection: sa.Connection) -> int:
    return int(connection.execute(sa.select(STATE.c.version)).scalar_one())


def _follow(connection: sa.Connection, objects: Followed) -> int:
    version, since, table = objects.version(), _followed(connection), objects.identity()
    known = connection.execute(sa.select(STATE.c.followed)).scalar_one()
    if version < since or known not in ("", table):  # not the table that was followed: one does not lose versions
        schema.drop(connection)
        schema.create(connection)
        since = -1
    if version > since:
        take_in(connection, objects.added(COLUMNS, since=since, version=version), fresh=since == -1)
        connection.execute(STATE.update().values(version=version, followed=table))
    return version


def _begin(connection: sa.Connection) -> None:
    """Writers take the lock before they read what they are about to change; readers need none."""
    writing = connection.get_execution_options().get("writing")
    if connection.dialect.name == "postgresql":
        if writing:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        return
    sqlite: Any = connection.connection.driver_connection
    while True:
        try:
            sqlite.execute("BEGIN IMMEDIATE" if writing else "BEGIN")
            return
        except sqlite3.OperationalError as problem:  # another's first follow takes minutes; Ctrl-C gets through in between
            if problem.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise


def _sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says so
    connection.execute("PRAGMA busy_timeout = 5000")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA cache_size = -65536")
    connection.execute("PRAGMA case_sensitive_like = ON")  # as DICOM's matching is, but for names
