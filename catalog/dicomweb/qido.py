"""QIDO-RS (PS3.18 §10.6): searches for studies, series and instances, answered from the query index."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, cast

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from catalog.dicomweb._accept import asked_for, json_type
from catalog.dicomweb._held import Held, checked, unlisted
from catalog.dicomweb._links import instance, root
from catalog.index import ATTRIBUTES, MODALITIES, Level, listed
from catalog.problem import Refused

__all__ = ["MOST", "attributes", "routes"]

MOST = 50_000
"""Answers at once; a search that finds more says so in a Warning header."""

_LEVELS: tuple[Level, ...] = ("studies", "series", "instances")
_UIDS = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID"}
_AVAILABLE = "AvailableTransferSyntaxUID"
"""As what TransferSyntaxUID is told, and may be asked for: group 2 is no part of an answer."""

_CONTROLS = ("includefield", "limit", "offset", "fuzzymatching", "accept")


def routes(held: Held) -> list[Route]:
    """The six searches."""
    search = _Search(held)
    paths: dict[str, Level] = {
        "/studies": "studies",
        "/series": "series",
        "/instances": "instances",
        "/studies/{study}/series": "series",
        "/studies/{study}/instances": "instances",
        "/studies/{study}/series/{series}/instances": "instances",
    }
    return [Route(path, partial(search.answer, level), methods=["GET"]) for path, level in paths.items()]


def attributes(level: Level) -> list[str]:
    """The keywords that a search at ``level`` is matched by: its own, then those of the levels above."""
    above = _LEVELS[: _LEVELS.index(level) + 1]
    return [name for one in reversed(above) for name in ATTRIBUTES[one]]


class _Search:
    def __init__(self, held: Held) -> None:
        self.held = held

    async def answer(self, level: Level, request: Request) -> Response:
        """Match, count off, and tell."""
        kind = json_type(asked_for(request))
        asked = _Asked(level, request.path_params, request.query_params.multi_items())
        body = await run_in_threadpool(self._found, asked, root(request))
        return Response(body, headers=asked.warnings(), media_type=kind)

    def _found(self, asked: "_Asked", base: str) -> bytes:
        self.held.follow()
        index, level = self.held.archive.index, asked.level
        limit = MOST + 1 if asked.limit is None else min(asked.limit, MOST + 1)
        if level == "studies":
            rows = index.studies(asked.match, limit=limit, offset=asked.offset)
        else:
            search: Callable[..., list[dict[str, Any]]] = index.series if level == "series" else index.instances
            rows = search(asked.match, include=asked.include, limit=limit, offset=asked.offset)
        if asked.below and not rows and not index.count(level, asked.below):
            checked(*asked.below.values())
        if len(rows) > MOST:
            asked.warned.append(f"only the first {MOST} are here: ask for more with limit and offset")
        return b"[%b]" % b",".join(_told(rows[:MOST], base))


class _Asked:
    """The parameters of a search, checked; Refused (400) names the one that is wrong."""

    def __init__(self, level: Level, path: Mapping[str, str], query: Iterable[tuple[str, str]]) -> None:
        self.level, self.warned = level, list[str]()
        self.match: dict[str, str] = {}
        self.below = {_UIDS[part]: uid for part, uid in path.items()}
        self.limit: int | None = None
        self.offset = 0
        unlisted(*path.values())
        known, wanted, given = attributes(level), list[str](), dict[str, list[str]]()
        for name, value in query:
            given.setdefault(name if name in _CONTROLS else _keyword(name, known, level), []).append(value)
        for name, values in given.items():
            if name == "includefield":
                wanted = [one.strip() for value in values for one in value.split(",") if one.strip()]
            elif name in ("limit", "offset"):
                setattr(self, name, _count(name, values))
            elif name == "fuzzymatching":
                if values[-1].lower() not in ("true", "false"):
                    raise Refused(400, "neither true nor false", about=f"fuzzymatching={values[-1][:64]}")
                if values[-1].lower() == "true":
                    self.warned.append("fuzzymatching is not supported: the match was literal")
            elif name != "accept":
                self.match[name] = _one(name, values)
        for name, uid in self.below.items():
            if self.match.get(name, "").strip(" *") and uid not in listed(self.match[name]):
                self.match["StudyInstanceUID"] = "0"  # none: the path and the query ask for different ones
            else:
                self.match[name] = uid
        self.include = self._included(wanted, known, relational=level != "studies" and not path)

    def _included(self, wanted: Sequence[str], known: Sequence[str], *, relational: bool) -> list[str]:
        """What is to be told of the levels above: all in a search over all studies (§10.6.3.3), or what is asked for."""
        own = {"StudyInstanceUID", "SeriesInstanceUID", *ATTRIBUTES[self.level]}
        found = [name for name in known if name not in own] if relational or "all" in wanted else []
        for one in wanted:
            keyword = "" if one == "all" else _named(one)
            if one != "all" and keyword not in known:
                self.warned.append(f"includefield {one[:64]} is not supported")
            elif keyword and keyword not in own:
                found.append(keyword)
        return list(dict.fromkeys(found))

    def warnings(self) -> dict[str, str]:
        """The Warning header (§8.3.4), where something is to be said."""
        said = [text.encode("ascii", "replace").decode().replace('"', "'") for text in self.warned[:20]]
        printable = ("".join(letter for letter in text if " " <= letter <= "~") for text in said)
        return {"Warning": ", ".join(f'299 voxloop "{text}"' for text in printable)} if said else {}


@lru_cache(maxsize=1024)
def _named(name: str) -> str:
    """The keyword of an attribute that is named by keyword or tag; empty where it is none."""
    from pydicom.datadict import keyword_for_tag, tag_for_keyword

    if len(name) == 8 and all(letter in "0123456789abcdefABCDEF" for letter in name):
        name = str(keyword_for_tag(int(name, 16)))
    if name == _AVAILABLE:
        return "TransferSyntaxUID"
    return name if tag_for_keyword(name) is not None else ""


def _keyword(name: str, known: Sequence[str], level: str) -> str:
    keyword = _named(name) if len(name) <= 64 else ""
    if keyword in known:
        return keyword
    remedy = f"match {level} by {', '.join(known)}; or {', '.join(_CONTROLS)}"
    raise Refused(400, "no attribute that is matched by", about=name[:64], remedy=remedy)


def _count(name: str, values: Sequence[str]) -> int:
    if len(values) == 1 and values[0].isascii() and values[0].isdigit() and len(values[0]) < 16:
        return int(values[0])
    raise Refused(400, "not a whole number from 0", about=f"{name}={','.join(values)[:64]}", remedy="give one number")


def _one(name: str, values: Sequence[str]) -> str:
    """The value of a parameter; of UIDs or modalities that were given one by one the list."""
    if len(values) > 1 and not name.endswith("UID") and name not in MODALITIES:
        raise Refused(400, "given more than once", about=name, remedy="give it once; UIDs and modalities may be a list")
    return ",".join(values)


def _told(rows: Sequence[dict[str, Any]], base: str) -> Iterator[bytes]:
    """Each answer as DICOM JSON (PS3.18 §F), its attributes in the order of their tags."""
    columns = sorted((*(rows[0] if rows else ()), *_ALWAYS, "RetrieveURL"), key=lambda keyword: _element(keyword)[0])
    for row in rows:
        uids = (str(row.get(name) or "") for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"))
        row |= {**_ALWAYS, "RetrieveURL": base + instance(*uids)}
        if "ModalitiesInStudy" in row:
            row["ModalitiesInStudy"] = tuple(row["ModalitiesInStudy"])
        yield b"{%b}" % b",".join(
            [_attribute(name, row[name]) if name in _UNLIKE else _remembered(name, row[name]) for name in columns]
        )


_ALWAYS = {"SpecificCharacterSet": "ISO_IR 192", "InstanceAvailability": "ONLINE"}
_UNLIKE = ("SOPInstanceUID", "RetrieveURL")  # no two answers have the same


def _attribute(keyword: str, value: Any) -> bytes:
    tag, vr = _element(keyword)
    if value is None or value == ():
        return f'"{tag}":{{"vr":"{vr}"}}'.encode()
    values = value if isinstance(value, tuple) else (_groups(value) if vr == "PN" else value,)
    return b'"%b":%b' % (tag.encode(), orjson.dumps({"vr": vr, "Value": values}))


def _groups(name: str) -> dict[str, str]:
    """A name as §F.2.2 has it."""
    named = zip(("Alphabetic", "Ideographic", "Phonetic"), name.split("="), strict=False)
    return {group: text for group, text in named if text}


_remembered = lru_cache(maxsize=8192)(_attribute)
"""Answers have much in common: the instances of a series all that is told of the series and the study."""


@lru_cache(maxsize=256)
def _element(keyword: str) -> tuple[str, str]:
    """(tag as in DICOM JSON, VR)."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    tag = cast(int, tag_for_keyword(_AVAILABLE if keyword == "TransferSyntaxUID" else keyword))
    return f"{tag:08X}", str(dictionary_VR(tag))
