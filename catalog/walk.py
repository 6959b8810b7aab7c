"""A DICOM file's header, read without its pixels, as DICOM JSON text (PS3.18 §F): one pass over the bytes.

The walk knows little-endian data sets, implicit, explicit and deflated, as most files are, and remembers the text of elements
it has met: the files of a series differ in few. A structure it does not know is pydicom's from the start; so is a value in
uncommon form. Either way the attributes equal ``pydicom.Dataset.to_json_dict`` of the file meta group and the data set, but for

* binary values of more than INLINE bytes: ``{"vr": "OW", "BulkDataURI": "?offset=340&length=2048"}``, where the value lies in
  the file, in bytes (in a deflated file: as if its data set stood there inflated);
* NaN and infinite numbers, which JSON cannot hold: the strings of PS3.18 §F.2.2;
* an empty value among several of DS, IS or PN: null (§F.2.5), where pydicom gives up the element;
* what pydicom cannot convert: left out, with a note.

The pixels are not read. Walk many files by one process: what is remembered grows to a bound, then starts anew.
"""

import json
import os
import zlib
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from catalog._bypydicom import read_by_pydicom
from catalog._dataset import (
    ENDLESS,
    INLINE,
    PIXELS,
    Broken,
    Ends,
    Fetch,
    Level,
    Reader,
    Unusual,
    explicit_head,
    first,
    lettered,
    whole,
)
from catalog._element import LONG, VRS, charset_of, file_tag
from catalog._pixels import Pixels, locate
from catalog.errors import CatalogError
from catalog.files import is_url, on_disk, ranged

__all__ = ["INLINE", "BrokenHeader", "Header", "NotDicom", "Pixels", "Truncated", "walk"]

_INFLATED = 1 << 26
"""Bytes inflated of a deflated file."""

_SYNTAX = file_tag(0x00020010)
_TELLING = [
    file_tag(t) for t in (0x00080016, 0x00080018, 0x00080020, 0x00080060, 0x00100010, 0x00100020, 0x0020000D, 0x0020000E)
]


@dataclass(frozen=True, slots=True)
class Header:
    """A file's attributes up to its pixels, as the texts of a DICOM JSON object in UTF-8, file meta group first.

    ``notes`` say which elements were left out and why; ``bytes_read`` is how much of the file was read.
    """

    pixels: Pixels | None
    notes: tuple[str, ...]
    bytes_read: int
    elements: dict[int, bytes] = field(repr=False)
    """The text of each attribute by its tag as the file has it: element number × 65,536 + group."""

    @property
    def text(self) -> bytes:
        """All of it as one JSON object."""
        return b"{%b}" % b",".join(self.elements.values())

    @property
    def parts(self) -> tuple[bytes, bytes]:
        """The file meta group (0002), and the data set (PS3.18 §F), a JSON object each."""
        texts, groups = list(self.elements.values()), 0
        for tag in self.elements:
            if tag & 0xFFFF != 2:
                break
            groups += 1
        return b"{%b}" % b",".join(texts[:groups]), b"{%b}" % b",".join(texts[groups:])

    @property
    def json(self) -> dict[str, Any]:
        """The DICOM JSON as a dict: tag → ``{"vr": …, "Value" | "InlineBinary" | "BulkDataURI": …}``."""
        return dict(json.loads(self.text))

    def first(self, tag: int) -> Any:
        """The first value of a top-level attribute, as in the JSON; None if it is absent or empty. Faster than ``json``."""
        text = self.elements.get((tag & 0xFFFF) << 16 | tag >> 16)
        return None if text is None else first(text)


class NotDicom(CatalogError):
    """The file is something else than DICOM."""


class BrokenHeader(CatalogError):
    """The file is DICOM but what follows ``header``, the elements that were read, makes no sense."""

    def __init__(self, problem: str, *, about: str, header: Header) -> None:
        super().__init__(problem, about=about, remedy="copy or send the file again")
        self.header = header


class Truncated(BrokenHeader):
    """The file ends before what it declares does; ``header`` is what was read."""


def walk(path: str | os.PathLike[str], *, length: int | None = None, most: int | None = None) -> Header:
    """Read the header of the DICOM file ``path``, with or without preamble, by few reads of the file.

    ``path`` may be a URL; its file's ``length``, where it is known, saves a question. A header of more than ``most`` bytes
    is broken. Raises NotDicom, Truncated or BrokenHeader (both hold the header that was read), or OSError.
    """
    if is_url(path):
        return _File(*ranged(path, length), os.fspath(path)).read()
    descriptor = os.open(on_disk(path), os.O_RDONLY)
    fetch: Fetch = partial(os.pread, descriptor)
    try:
        size = os.fstat(descriptor).st_size
        return _File(fetch if most is None else _bounded(fetch, most), size, os.fspath(path)).read()
    finally:
        os.close(descriptor)


def _bounded(fetch: Fetch, most: int) -> Fetch:
    """``fetch`` until it has been asked for ``most`` bytes: what a header says can take many times its length in memory."""
    left = most

    def read(length: int, at: int) -> bytes:
        nonlocal left
        found = fetch(length, at)
        left -= len(found)
        if left < 0:
            raise Broken(f"the header has more than {most} bytes")
        return found

    return read


class _File(Reader):
    """One file being read."""

    def __init__(self, fetch: Fetch, size: int, about: str) -> None:
        super().__init__(fetch, size)
        self.about = about
        self.cut = False  # the deflated data set stops short

    def read(self) -> Header:
        preamble = self.buffer[128:132] == b"DICM"
        if not preamble and not _begins_like_a_data_set(self.buffer):
            raise NotDicom("not a DICOM file", about=self.about)
        ends, broken = "", ""
        try:
            self.read_directly(132 if preamble else 0)
        except Ends as problem:
            ends = str(problem)
        except Broken as problem:
            broken = str(problem)
        except Unusual:
            try:
                ends = read_by_pydicom(self)
            except Exception as problem:  # pydicom raises whatever its parsers raise
                broken = str(problem)[:300] if isinstance(problem, Broken) else f"{type(problem).__name__}: {problem}"[:300]
        if not preamble and self.elements.keys().isdisjoint(_TELLING):
            raise NotDicom("not a DICOM file", about=self.about)
        header = Header(self.pixels, tuple(self.notes), self.bytes_read, self.elements)
        if ends:
            raise Truncated(ends, about=self.about, header=header)
        if broken:
            raise BrokenHeader(broken, about=self.about, header=header)
        return header

    def read_directly(self, at: int) -> None:
        at = self.data_set_at = self.read_meta(at)
        kind = _kind(self.elements.get(_SYNTAX))
        if kind == "deflated":
            self.inflate(at)
        if self.size - at >= 8:
            head, base = self.need(at, 8)
            head = head[at - base : at - base + 6]
            if not kind:
                kind = "explicit" if head[4:] in VRS else "implicit"
            # pydicom trusts the first VR, not the syntax: what looks like none if explicit, or like one if implicit, is odd
            if lettered(head[4:]) == (kind == "implicit") or head[:2] == b"\0\0" or (head[1] >= 4 and kind != "implicit"):
                raise Unusual
            level = Level(self.elements, charset_of(b""), 0, kind == "implicit", 0)
            at = (self.implicit if level.implicit else self.explicit)(level, at, self.size)
        for elements, creator in self.orphans:
            if creator in elements:
                raise Unusual
        if self.size - at >= 8:
            self.read_pixels_at(at, kind == "implicit")
        elif self.cut or any(self.pread(8, at)):
            raise Ends("the file ends within an element")

    def read_meta(self, at: int) -> int:
        """Read the file meta group, if there is one; where the data set begins."""
        head = self.buffer[at : at + 12]
        if len(head) < 12:
            raise Ends("the file ends before its file meta group does")
        if head[:2] != b"\2\0":
            return at
        end = at + 12 + int.from_bytes(head[8:], "little")
        if head[:8] != b"\2\0\0\0UL\4\0":
            raise Unusual
        ends = "the file ends before its file meta group does" if end > self.size else ""
        try:
            stopped = self.explicit(Level(self.elements, charset_of(b""), 1, False, 0), at, min(end, self.size))
        except Ends as problem:
            ends = str(problem)
        if any(tag & 0xFFFF != 2 for tag in self.elements):  # the group's length is wrong
            raise Unusual
        if ends:
            raise Ends(ends)
        if stopped != end or self.buffer[end - self.base :][:2] == b"\2\0":
            raise Unusual
        return end

    def inflate(self, at: int) -> None:
        """Put the first _INFLATED bytes of the deflated data set in the file's place; what follows them is not looked at."""
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            body = stream.decompress(self.pread(_INFLATED, at), _INFLATED)
        except zlib.error as problem:
            raise Unusual from problem
        self.inflated = self.pread(at, 0) + body
        self.buffer, self.base = self.inflated, 0
        self.size = len(self.inflated) if len(body) < _INFLATED else ENDLESS
        self.cut = not stream.eof and self.size < ENDLESS

    def read_pixels_at(self, at: int, implicit: bool) -> None:
        start = at + (8 if implicit else 12)
        buffer, base = self.need(at, start - at)
        tag, code, _ = explicit_head(buffer, at - base)
        if tag not in PIXELS or not (implicit or code in LONG):
            raise Unusual
        (length,) = whole(buffer, start - 4 - base)
        locate(self, tag, PIXELS[tag] if implicit else VRS[code], start, length)


@lru_cache(maxsize=256)
def _kind(syntax: bytes | None) -> str:
    """How the data set is encoded, by the text of the Transfer Syntax UID: PS3.5 §A."""
    if syntax is None:
        return ""
    uid = first(syntax)
    if uid == "1.2.840.10008.1.2.2":  # big endian
        raise Unusual
    return {"1.2.840.10008.1.2": "implicit", "1.2.840.10008.1.2.1.99": "deflated"}.get(str(uid), "explicit")


def _begins_like_a_data_set(head: bytes) -> bool:
    """Whether a file without preamble can be DICOM: an even group up to 0040, in either byte order, or a command set."""
    if len(head) < 8 or (head[0] and head[1]):
        return False
    group = head[0] | head[1]
    return not group & 1 and (0 < group <= 0x40 or head.startswith(b"\0\0\0\0\4\0\0\0"))
