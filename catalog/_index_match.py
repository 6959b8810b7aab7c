"""Attribute matching of PS3.4 §C.2.2.2 as SQL conditions over the index. Every value is bound, none is part of the SQL."""

import re
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from catalog._index_follow import LONGEST, folded
from catalog._index_schema import GROUPS, MODALITIES, PERSONS, SERIES, STUDIES
from catalog.errors import CatalogError

__all__ = ["condition", "listed"]

_Column = sa.ColumnElement[Any]
_Condition = sa.ColumnElement[bool]

_DATE = re.compile(r"(\d{8})?(-)?(\d{8})?")
_CLOCK = r"(\d\d(?:\d\d(?:\d\d(?:\.\d{1,6})?)?)?)?"
_TIME = re.compile(f"{_CLOCK}(-)?{_CLOCK}")
_LONGEST_VALUE = 4096
_MOST_UIDS = 10_000
_MOST_MODALITIES = 100
"""What databases take in one condition."""

_OF_STUDY = SERIES.alias()
_NAMES = sa.table("index_names", sa.column("rowid"))


def condition(name: str, column: _Column, value: str, *, sqlite: bool) -> _Condition | None:
    """Whether ``column``, which holds the attribute ``name``, matches ``value``; None where all do, empty or not.

    CatalogError where the attribute cannot be matched by such a value.
    """
    value = value.replace("\0", "").encode("utf-8", "replace").decode("utf-8").strip(" ")
    if not value.strip("*"):
        return None
    if len(value) > _LONGEST_VALUE and _vr(name) != "UI":
        raise CatalogError("too long to be matched", about=name, remedy=f"give {_LONGEST_VALUE} characters at most")
    if name in MODALITIES:
        return _modality(name, column, value)
    if name in PERSONS:
        return _person(name, value, sqlite)
    return _BY_VR.get(_vr(name), _text)(name, column, value)


def _vr(name: str) -> str:
    from pydicom.datadict import dictionary_VR

    return str(dictionary_VR(name))


def _text(_: str, column: _Column, value: str) -> _Condition:
    """The same, or with ``*`` and ``?`` (§C.2.2.2.4): from an index where the value begins with neither."""
    prefix = re.split(r"[*?]", value, maxsplit=1)[0]
    if prefix == value:
        return column == value[:LONGEST]
    conditions = []
    if prefix:
        conditions.append(column >= prefix)
        end = _after(prefix)
        conditions += [column < end] if end else []
    if value != f"{prefix}*":
        pattern = re.sub(r"([/%_])", r"/\1", value).replace("*", "%").replace("?", "_")
        conditions.append(column.like(pattern, escape="/"))
    return sa.and_(*conditions)


def _modality(name: str, column: _Column, value: str) -> _Condition | None:
    """One of a list, as of UIDs; a study has those of its series."""
    wanted = list(dict.fromkeys(filter(None, listed(value))))
    if len(wanted) > _MOST_MODALITIES:
        raise CatalogError("too many modalities", about=name, remedy=f"give {_MOST_MODALITIES} at most")
    if not all(one.strip("*") for one in wanted):
        return None
    if name == "Modality":
        return sa.or_(sa.false(), *(_text(name, column, one) for one in wanted))
    of_study = _OF_STUDY.c.StudyInstanceUID == STUDIES.c.StudyInstanceUID
    return sa.exists().where(of_study, sa.or_(sa.false(), *(_text(name, _OF_STUDY.c.Modality, one) for one in wanted)))


def listed(value: str) -> list[str]:
    """The values of a list, by comma (PS3.18 §8.3.4.1) or backslash (§C.2.2.2.2)."""
    return [one.strip(" ") for one in re.split(r"[,\\]", value)]


def _person(name: str, value: str, sqlite: bool) -> _Condition | None:
    """Without regard to case; of ``alphabetic=ideographic=phonetic`` each group that is given is one of the name's."""
    groups = value.split("=", len(GROUPS))[: len(GROUPS)]
    patterns = [folded(group, pattern=True) for group in groups if group.strip("*")]
    return sa.and_(*(_folded(name, pattern, sqlite) for pattern in patterns)) if patterns else None


def _folded(name: str, pattern: str, sqlite: bool) -> _Condition:
    found = sa.or_(*(_text(name, STUDIES.c[f"{name}_{group}"], pattern) for group in GROUPS))
    words = [word for word in re.split(r"[*?]+", pattern) if len(word) > 2]
    if not sqlite or name != "PatientName" or pattern[0] not in "*?" or not words:
        return found
    # Postgres finds its trigram index by itself; SQLite's is a table, asked for the words without regard to their order.
    match = " AND ".join('"' + word.replace('"', '""') + '"' for word in words)
    candidates = sa.select(_NAMES.c.rowid).where(sa.literal_column("index_names").op("MATCH", is_comparison=True)(match))
    return sa.and_(STUDIES.c.id.in_(candidates), found)


def _uid(name: str, column: _Column, value: str) -> _Condition:
    """One of a list."""
    uids = [uid[:LONGEST] for uid in listed(value)]
    if len(uids) > _MOST_UIDS:
        raise CatalogError("too many UIDs", about=name, remedy=f"give {_MOST_UIDS} at most")
    if "*" in value or "?" in value:
        raise CatalogError("a UID is matched without wildcards", about=f"{name}={value[:64]}", remedy="give UIDs, by comma")
    return column.in_([uid for uid in uids if uid])


def _date(name: str, column: _Column, value: str) -> _Condition:
    return _range(_DATE, "YYYYMMDD", name, column, value)


def _time(name: str, column: _Column, value: str) -> _Condition:
    """To the precision given: 1015 is the whole minute, also as the end of a range."""
    return _range(_TIME, "HHMMSS.FFFFFF, or its beginning", name, column, value)


def _range(form: "re.Pattern[str]", said: str, name: str, column: _Column, value: str) -> _Condition:
    """From, to, or both, each included (§C.2.2.2.5)."""
    found = form.fullmatch(value)
    first, dash, last = found.groups() if found else (None, None, None)
    if not (first or last) or (last and not dash):
        remedy = f"give one as {said}, or a range: FROM-TO, FROM-, -TO"
        raise CatalogError(
            f"not a {'date' if form is _DATE else 'time'} to match by", about=f"{name}={value[:64]}", remedy=remedy
        )
    last = last if dash else first
    if first and form is _TIME:  # what is stored may end earlier: 10 is 1000
        first = first[:2] + re.sub(r"(00)+$", "", re.sub(r"\.?0*$", "", first[2:]) if "." in first else first[2:])
    conditions = [column >= first] if first else []
    end = _after(last) if last else ""
    return sa.and_(*conditions, *([column < end] if end else []))


def _number(name: str, column: _Column, value: str) -> _Condition:
    try:
        number = int(value)
    except ValueError:
        raise CatalogError("not a whole number", about=f"{name}={value[:64]}", remedy="give one number") from None
    return column == number if abs(number) < 2**63 else sa.false()


def _after(prefix: str) -> str:
    """The first text, by code points, after all that begin with ``prefix``; empty where there is none."""
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return ""
    code = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if code == 0xD800 else code)


_BY_VR: dict[str, Callable[[str, _Column, str], _Condition]] = {
    "UI": _uid,
    "DA": _date,
    "TM": _time,
    "IS": _number,
    "US": _number,
}
