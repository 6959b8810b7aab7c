"""What the services look up over and over: where the objects of a series lie, and where in their files the frames do.

It is remembered by series, and asked for again once the catalog has a new version.
"""

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from catalog.deposit import is_uid
from catalog.files import Key
from catalog.index import Indexed
from catalog.problem import Refused
from catalog.rows import SeriesRows

if TYPE_CHECKING:
    from catalog.archive import Archive

__all__ = ["Held", "Place", "checked", "unlisted"]

_SERIES = 256  # remembered
_LISTED = re.compile(r"[,\\*?\s\0]")
_KEY = ("path", "modificationTime", "length", "ingested_at")
_PLACES = ("pixel_offset", "pixel_length", "frame_offsets", "frame_lengths")


@dataclass(frozen=True, slots=True)
class Place:
    """An object, and the (offset, length) of each of its frames in bytes of its file, None where that is not known."""

    object: Indexed
    frames: Sequence[tuple[int, int]] | None


def checked(*uids: str) -> None:
    """Refuse what is no UID: what the index does not have, for a file may break the rules and is served all the same."""
    for uid in uids:
        if not is_uid(uid):
            raise Refused(400, "not a UID", about=uid[:64], remedy="a UID is digits and dots, 64 characters at most")


def unlisted(*uids: str) -> None:
    """Refuse what a search would take for several UIDs."""
    for uid in uids:
        if _LISTED.search(uid):
            checked(uid)


class Held:
    """Look-ups in ``archive`` for a server; safe to use from many threads."""

    def __init__(self, archive: "Archive") -> None:
        self.archive = archive
        self._known: tuple[int, float] | None = None  # the version, and when its table was made
        self._rows = SeriesRows(archive.objects)
        self._series: OrderedDict[str, tuple[int, Sequence[Indexed], Mapping[str, Place]]] = OrderedDict()
        self._lock = threading.RLock()
        self._following = False

    def follow(self) -> int:
        """Let the index follow the catalog where that has a new version; the version. Cheap where it has none."""
        known = self._known
        if known is not None and self._current():
            return known[0]
        with self._lock:
            self._following = True
            try:
                made = self._made()
                version = self.archive.index.follow(self.archive.objects)
            finally:
                self._following = False
            if known is not None and known[1] != made:
                self._rows = SeriesRows(self.archive.objects)
            self._known = version, made
        return version

    def remembered(self, study: str, series: str, sop: str) -> Place | None:
        """What ``place`` answers from memory, without waiting for anything; None where it cannot.

        While the index follows, which takes its time after a large ingest, what is remembered is good enough: a file that is
        no longer as it was is found out when it is read.
        """
        known, kept = self._known, self._series.get(series)
        place = kept[2].get(sop) if kept is not None else None
        if known is None or kept is None or place is None or place.object.study_uid != study:
            return None
        return place if self._following or (kept[0] == known[0] and self._current()) else None

    def series(self, study: str, series: str) -> Mapping[str, Place]:
        """SOPInstanceUID → place, by InstanceNumber; 404 where the study has no such series."""
        version = self.follow()
        kept = self._series.get(series)
        if kept is None or kept[0] != version:
            with self._lock:
                kept = self._looked_up(series, version)
        places = kept[2]
        if any(one.study_uid != study for one in kept[1]):  # another study has a series of this UID: it stays apart
            places = {sop: place for sop, place in places.items() if place.object.study_uid == study}
        if not places:
            checked(study, series)
            raise Refused(404, "no such series in the study", about=f"study {study}, series {series}")
        return places

    def place(self, study: str, series: str, sop: str) -> Place:
        """Of one instance; 404 where the series has none such."""
        if found := self.remembered(study, series, sop):
            return found
        places = self.series(study, series)
        if sop not in places:
            checked(sop)
            raise Refused(404, "no such instance in the series", about=sop)
        return places[sop]

    def of_study(self, study: str) -> list[Place]:
        """All objects of a study, series by series; 404 where it is unknown."""
        unlisted(study)
        self.follow()
        found = self.archive.index.series({"StudyInstanceUID": study})
        if not found:
            checked(study)
            raise Refused(404, "no such study", about=study)
        return [place for row in found for place in self.series(study, row["SeriesInstanceUID"]).values()]

    def rows(self, objects: Iterable[Indexed], columns: Sequence[str]) -> dict[Key, dict[str, Any]]:
        """``columns`` of the latest row of each object's file, as the file was when it became the current one, by its key."""
        known = {one.key: one.series_uid for one in objects}
        version, found = self._known[0] if self._known else -1, dict[Key, dict[str, Any]]()
        for series in dict.fromkeys(known.values()):
            paths = {path for (path, _, _), uid in known.items() if uid == series}
            rows = self._rows.read(series, paths, [*_KEY, *columns], version=version).sort_by("ingested_at")
            times = rows["modificationTime"].cast("int64").to_pylist()
            keys = zip(rows["path"].to_pylist(), times, rows["length"].to_pylist(), range(len(rows)), strict=True)
            chosen = {key: row for *parts, row in keys if (key := (parts[0], parts[1], parts[2])) in known}
            values = rows.take(list(chosen.values())).select(list(columns)).to_pylist()
            found.update(zip(chosen, values, strict=True))
        return found

    def _looked_up(self, series: str, version: int) -> tuple[int, Sequence[Indexed], Mapping[str, Place]]:
        objects = self.archive.index.files(series)
        kept = self._series.pop(series, None)
        if kept is not None and kept[1] == objects:
            places = kept[2]
        else:
            told = self.rows(objects, _PLACES)
            places = {one.sop_uid: Place(one, _frames(told.get(one.key, {}))) for one in objects}
        self._series[series] = version, objects, places
        while len(self._series) > _SERIES:
            self._series.popitem(last=False)
        return self._series[series]

    def _current(self) -> bool:
        """Whether the catalog has no version after the known one: two questions to the file system."""
        known = self._known
        return known is not None and self._made() == known[1] and not os.path.exists(self._log(known[0] + 1))

    def _made(self) -> float:
        """When the table's log began: another one may have taken its place."""
        try:
            return os.stat(self._log(0)).st_mtime
        except OSError:
            return 0.0

    def _log(self, version: int) -> str:
        return f"{self.archive.objects.path}/_delta_log/{version:020d}.json"


def _frames(row: Mapping[str, Any]) -> Sequence[tuple[int, int]] | None:
    if not row or not row.get("frame_offsets"):
        return None
    return tuple(zip(row["frame_offsets"], row["frame_lengths"], strict=True))
