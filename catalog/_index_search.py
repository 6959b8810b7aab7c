"""A search of the index as SQL: which tables it needs, what it asks of them, in which order."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from catalog._index_match import condition
from catalog._index_schema import ATTRIBUTES, FILE_ATTRIBUTES, FILES, SERIES, STUDIES
from catalog.errors import CatalogError

__all__ = ["Search"]

_ABOVE = {"studies": (STUDIES,), "series": (SERIES, STUDIES), "instances": (FILES, SERIES, STUDIES)}
_HELD = {
    STUDIES: ATTRIBUTES["studies"],
    SERIES: ("StudyInstanceUID", *ATTRIBUTES["series"]),
    FILES: FILE_ATTRIBUTES,
}
_ORDER = {
    "studies": (STUDIES.c.StudyDate.desc().nulls_last(), STUDIES.c.StudyTime.desc().nulls_last(), STUDIES.c.StudyInstanceUID),
    "series": (SERIES.c.StudyInstanceUID, SERIES.c.SeriesNumber.nulls_last(), SERIES.c.SeriesInstanceUID),
    "instances": (FILES.c.SeriesInstanceUID, FILES.c.InstanceNumber.nulls_last(), FILES.c.SOPInstanceUID),
}


class Search:
    """What matches ``match`` at a level, with its own attributes and those in ``include``.

    Only tables that are asked for something are joined: the instances of a series come from theirs alone.
    """

    def __init__(self, level: str, match: Mapping[str, str], include: Sequence[str], *, sqlite: bool) -> None:
        if level not in _ABOVE:
            raise CatalogError("no such level", about=level, remedy=f"there are {', '.join(_ABOVE)}")
        self.level, self.match, self.sqlite = level, match, sqlite
        self.tables = {_ABOVE[level][0]}
        own = _HELD[_ABOVE[level][0]]
        self.columns = [self._column(name) for name in dict.fromkeys((*own, *include))]
        found = (condition(name, self._column(name), value, sqlite=sqlite) for name, value in match.items())
        self.conditions = [one for one in found if one is not None]
        if level == "instances":
            self.conditions.append(FILES.c.current)

    def rows(self, limit: int | None, offset: int) -> "sa.Select[Any]":
        """The answers, in the level's order."""
        query = sa.select(*self.columns).select_from(self._joined()).where(*self.conditions).order_by(*_ORDER[self.level])
        return query.limit(limit).offset(offset) if limit is not None or offset else query

    def count(self) -> "sa.Select[Any]":
        """How many answers there are; of instances by what their series count, where nothing is asked of the instances."""
        if self.level == "instances" and not set(self.match) & set(ATTRIBUTES["instances"]):
            series = Search("series", self.match, (), sqlite=self.sqlite)
            total = sa.func.sum(SERIES.c.NumberOfSeriesRelatedInstances)
            return sa.select(total).select_from(series._joined()).where(*series.conditions)
        return sa.select(sa.func.count()).select_from(self._joined()).where(*self.conditions)

    def _column(self, name: str) -> "sa.Column[Any]":
        for table in _ABOVE[self.level]:
            if name in _HELD[table]:
                self.tables.add(table)
                return table.c[name]
        known = dict.fromkeys(name for table in _ABOVE[self.level] for name in _HELD[table])
        raise CatalogError(f"no attribute of {self.level} in the index", about=name, remedy=f"there are {', '.join(known)}")

    def _joined(self) -> sa.FromClause:
        own, *above = _ABOVE[self.level]
        joined: sa.FromClause = own
        for table in above:
            if table in self.tables:
                shared = [uid for uid in ("StudyInstanceUID", "SeriesInstanceUID") if uid in table.c and uid in own.c]
                joined = joined.join(table, sa.and_(*(own.c[uid] == table.c[uid] for uid in shared)))
        return joined
