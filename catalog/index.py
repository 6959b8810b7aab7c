"""The query index: a relational copy of what ``object_catalog`` says of each path, for look-ups by UID.

Never truth: it follows the table by version, catches up after a crash, and can be dropped and rebuilt.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import sqlalchemy as sa

from catalog.table import Table

__all__ = ["Index", "Indexed"]

_METADATA = sa.MetaData()
_FILES = sa.Table(
    "files",
    _METADATA,
    sa.Column("path", sa.Text, primary_key=True),
    sa.Column("seen", sa.BigInteger, nullable=False),
    sa.Column("ok", sa.Boolean, nullable=False),
    sa.Column("sop", sa.Text),
    sa.Column("sop_class", sa.Text),
    sa.Column("series", sa.Text),
    sa.Column("study", sa.Text),
    sa.Column("patient", sa.Text),
    sa.Column("instance", sa.BigInteger),
    sa.Index("files_by_series", "series"),
    sa.Index("files_by_sop", "sop"),
)
_STATE = sa.Table("state", _METADATA, sa.Column("id", sa.Integer, primary_key=True), sa.Column("version", sa.BigInteger))
_COLUMNS = {
    "path": "path",
    "ingested_at": "seen",
    "status": "ok",
    "SOPInstanceUID": "sop",
    "SOPClassUID": "sop_class",
    "SeriesInstanceUID": "series",
    "StudyInstanceUID": "study",
    "PatientID": "patient",
    "InstanceNumber": "instance",
}


class Followed(Table, Protocol):
    """A table that can say what came after a version."""

    def added(self, columns: Sequence[str], *, since: int, version: int) -> pa.RecordBatchReader:
        """The rows appended after ``since`` up to ``version``."""
        ...


class Indexed(NamedTuple):
    """Where a current object lies."""

    sop_uid: str
    path: str
    sop_class: str
    series_uid: str
    study_uid: str
    patient_id: str


class Index:
    """The index at a SQLAlchemy ``url`` (SQLite or Postgres), created when first used."""

    def __init__(self, url: str | sa.URL) -> None:
        self.url = url
        self._opened: sa.Engine | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_opened": None}

    def follow(self, objects: Followed) -> int:
        """Take in what the table has and the index has not; the version followed to. Safe to call from many processes."""
        version = objects.version()
        with self._engine().begin() as connection:
            since = self._followed(connection)
            if version <= since:
                return since
            for batch in objects.added(list(_COLUMNS), since=since, version=version):
                self._upsert(connection, batch)
            connection.execute(_STATE.update().values(version=version))
        return version

    def rebuild(self, objects: Followed) -> int:
        """Forget everything and follow the table from its beginning."""
        engine = self._engine()
        _METADATA.drop_all(engine)
        self._prepare(engine)
        return self.follow(objects)

    def files(self, series_uid: str) -> list[Indexed]:
        """The current objects of a series, one a SOPInstanceUID, by InstanceNumber; empty where the series is unknown.

        Of several files of one object the latest good one counts, an earlier one where that has gone.
        """
        return self._current(_FILES.c.series == series_uid)

    def instance(self, sop_uid: str) -> Indexed | None:
        """The current object with this SOPInstanceUID."""
        found = self._current(_FILES.c.sop == sop_uid)
        return found[0] if found else None

    def _current(self, condition: sa.ColumnElement[bool]) -> list[Indexed]:
        """Of each SOPInstanceUID the latest good file that is still there, or the latest where none is, if it fits."""
        meant = sa.select(_FILES.c.sop).where(condition, _FILES.c.ok)
        columns = [_FILES.c[name] for name in ("sop", "path", "sop_class", "series", "study", "patient")]
        fits = sa.case((condition, 1), else_=0)
        query = sa.select(fits, *columns).where(_FILES.c.sop.in_(meant), _FILES.c.ok)
        query = query.order_by(_FILES.c.instance, _FILES.c.sop, _FILES.c.seen.desc(), _FILES.c.path.desc())
        copies: dict[str, list[tuple[bool, Indexed]]] = {}
        with self._engine().connect() as connection:
            for fit, *row in connection.execute(query):
                found = Indexed(*(value or "" for value in row))
                copies.setdefault(found.sop_uid, []).append((bool(fit), found))
        chosen = [next((copy for copy in known if os.path.exists(copy[1].path)), known[0]) for known in copies.values()]
        return [found for fit, found in chosen if fit]

    def _followed(self, connection: sa.Connection) -> int:
        return int(connection.execute(sa.select(_STATE.c.version).with_for_update()).scalar_one())

    def _upsert(self, connection: sa.Connection, batch: pa.RecordBatch) -> None:
        rows = batch.rename_columns(list(_COLUMNS.values())).to_pylist()
        for row in rows:
            row["seen"] = int(row["seen"].timestamp() * 1_000_000)
            row["ok"] = row["ok"] == "ok"
        statement = _insert(connection)(_FILES)
        changed = {name: statement.excluded[name] for name in _COLUMNS.values() if name != "path"}
        newer = statement.excluded.seen >= _FILES.c.seen
        connection.execute(statement.on_conflict_do_update(index_elements=["path"], set_=changed, where=newer), rows)

    def _engine(self) -> sa.Engine:
        if self._opened is None:
            engine = sa.create_engine(self.url)
            if engine.dialect.name == "sqlite":
                sa.event.listen(engine, "connect", _sqlite)
                sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
            self._prepare(engine)
            self._opened = engine
        return self._opened

    def _prepare(self, engine: sa.Engine) -> None:
        with engine.begin() as connection:
            _METADATA.create_all(connection)
            connection.execute(_insert(connection)(_STATE).values(id=1, version=-1).on_conflict_do_nothing())


def _sqlite(connection: Any, _record: Any) -> None:
    """Writers wait for each other, and take the lock before they read what they are about to change."""
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout = 60000")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def _insert(connection: sa.Connection) -> Any:
    from sqlalchemy.dialects import postgresql, sqlite

    return postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
