"""Masks on their way to and from a viewer: label maps as bytes, whose slices are named so that nobody guesses their order."""

import gzip
import threading
import time
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from catalog import Archive, LabelSet
from catalog.problem import Refused
from catalog.volumes import pick

__all__ = ["Mask", "Masks", "Segment", "from_bytes", "slice_names", "valued"]


@dataclass(frozen=True)
class Segment:
    """A structure as a viewer shows it: ``value`` is its voxel value, ``color`` sRGB, 0…255."""

    value: int
    name: str
    color: tuple[int, int, int]

    @classmethod
    def of(cls, labels: LabelSet) -> "list[Segment]":
        """Every structure of a label set."""
        return [cls(structure.value, structure.name, structure.color) for structure in labels.structures]


@dataclass(frozen=True)
class _Kept:
    born: float
    packed: bytes
    shape: tuple[int, ...]
    series: str


@dataclass(frozen=True)
class Mask:
    """What is needed to show a mask. Its voxels are at ``/masks/{mask}``: uint8, axes (slices, rows, columns), the slices in
    the order of ``slices`` (see ``slice_names``)."""

    mask: str
    series: str
    slices: list[str]
    rows: int
    columns: int
    segments: list[Segment]


class Masks:
    """Masks that viewers have been told of, compressed, in memory: the oldest go where there are more than ``largest`` bytes,
    and each goes after ``expiry`` seconds. Safe in threads."""

    def __init__(self, *, largest: int = 256 << 20, expiry: float = 4 * 3600.0) -> None:
        self._largest, self._expiry = largest, expiry
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, archive: Archive, series: str, array: "np.ndarray[Any, Any]", labels: LabelSet) -> Mask:
        """Keep a label map that lies on the series' grid; what a viewer is told of it."""
        names = slice_names(archive, series)
        key = uuid.uuid4().hex
        packed = gzip.compress(np.ascontiguousarray(array, np.uint8).tobytes(), 1, mtime=0)
        with self._lock:
            self._kept[key] = _Kept(time.monotonic(), packed, array.shape, series)
            self._forget()
        _, rows, columns = array.shape
        return Mask(key, series, names, rows, columns, Segment.of(labels))

    def packed(self, key: str) -> bytes:
        """The bytes of a mask, gzipped; Refused (404) where it is gone."""
        found = self._find(key)
        if found is None:
            raise Refused(404, "this mask is no longer kept", about=key, remedy="ask for it again")
        return found.packed

    def series(self, key: str) -> str | None:
        """The series whose grid a mask lies on; None where it is gone."""
        found = self._find(key)
        return None if found is None else found.series

    def array(self, key: str) -> "np.ndarray[Any, Any] | None":
        """The label map, uint8, axes (slices, rows, columns); None where it is gone."""
        found = self._find(key)
        return None if found is None else np.frombuffer(gzip.decompress(found.packed), np.uint8).reshape(found.shape)

    def _find(self, key: str) -> _Kept | None:
        with self._lock:
            self._forget()
            return self._kept.get(key)

    def _forget(self) -> None:
        born = time.monotonic() - self._expiry
        total = sum(len(kept.packed) for kept in self._kept.values())
        while self._kept:
            key, oldest = next(iter(self._kept.items()))
            if oldest.born >= born and (total <= self._largest or len(self._kept) == 1):
                return
            del self._kept[key]
            total -= len(oldest.packed)


def slice_names(archive: Archive, series: str) -> list[str]:
    """The slices of a series' volume in the order of its first axis: the SOPInstanceUID of each, and ``UID:FRAME`` (from 1)
    where frames of one object are the slices."""
    sources = archive.sources(series)
    if int(sources[0].get("NumberOfFrames") or 1) == 1:
        return [str(source.SOPInstanceUID) for source in sources]
    return [f"{found.sop_uid}:{found.frame}" for found in pick(archive.series_files(series), series).slices]


def from_bytes(
    packed: bytes, slices: Sequence[str], names: Mapping[int, str], *, archive: Archive, series: str, labels: LabelSet
) -> "np.ndarray[Any, Any]":
    """The label map, uint8 on the series' grid, that a viewer drew: ``packed`` are its voxels, gzipped uint8, axes (slices,
    rows, columns), the slices as ``slices`` names them, others empty; ``names`` are the structures by voxel value.

    Refused where a slice is none of the series, the size is not the slices', or voxels have no structure of ``labels``.
    """
    order = {name: place for place, name in enumerate(slice_names(archive, series))}
    foreign = [name for name in slices if name not in order]
    if foreign:
        problem = "the mask has slices that are none of this series"
        raise Refused(422, problem, about=foreign[0], remedy=f"submit it for the series it was drawn on, not for {series}")
    if len(set(slices)) < len(slices):
        raise Refused(422, "the mask names a slice twice", about=series, remedy="name each slice once")
    shape = archive.geometry(series).spatial_shape
    drawn = np.frombuffer(_unpacked(packed, len(slices) * shape[1] * shape[2], series), np.uint8)
    array = np.zeros(shape, np.uint8)
    array[[order[name] for name in slices]] = valued(drawn, names, labels, series).reshape(-1, *shape[1:])
    return array


def _unpacked(packed: bytes, size: int, series: str) -> bytes:
    """Never more than ``size`` bytes, whatever ``packed`` says."""
    unpacking = zlib.decompressobj(wbits=31)
    try:
        voxels = unpacking.decompress(packed, size + 1)
    except zlib.error as problem:
        raise Refused(
            422, f"the mask is not gzip: {problem}", about=series, remedy="send it whole, compressed by gzip"
        ) from None
    if len(voxels) != size or not unpacking.eof:
        told = f"{len(voxels)}" if len(voxels) < size else f"more than {size}"
        raise Refused(
            422, f"the mask has {told} voxels where its slices have {size}", about=series, remedy="send every slice whole"
        )
    return voxels


def valued(drawn: "np.ndarray[Any, Any]", names: Mapping[int, str], labels: LabelSet, series: str) -> "np.ndarray[Any, Any]":
    """Voxels (uint8) with the label set's values for those that ``names`` gives the structures' names of.

    Refused (422) where voxels have no structure of ``labels``.
    """
    known = {structure.name: structure.value for structure in labels.structures}
    lookup = np.zeros(256, np.uint8)
    for value in set(np.unique(drawn).tolist()) - {0}:
        name = names.get(value, f"segment {value}")
        if name not in known:
            problem = f"{name!r} has voxels and is no structure of {labels.name}"
            raise Refused(422, problem, about=series, remedy=f"name the segment as one of {', '.join(known)}, or erase it")
        lookup[value] = known[name]
    found: np.ndarray[Any, Any] = lookup[drawn]
    return found
