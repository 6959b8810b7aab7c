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

import os
import warnings
import zlib
from base64 import b64decode
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from struct import Struct, unpack
from struct import error as struct_error
from typing import Any, Final

from catalog import _element
from catalog._element import BINARY, LONG, VRS, Charset, Unconvertible, charset_of, file_tag, opening, remember, shown
from catalog.errors import CatalogError

__all__ = ["INLINE", "BrokenHeader", "Header", "NotDicom", "Pixels", "Truncated", "walk"]

INLINE: Final = 1_024
"""Bytes up to which a binary value is inlined."""

_PREFIX, _WINDOW, _LARGEST, _INFLATED = 32_768, 65_536, 1 << 26, 1 << 26
"""Bytes read first, read on with, of the longest value that is no reference, and inflated of a deflated file."""

_DEPTH, _READS, _FRAMES, _REMEMBERED = 64, 1 << 18, 1 << 20, 512
"""How deep sequences may nest, how often pydicom may read, how many frames are listed, how long a remembered element may be."""

_UNDEFINED, _ENDLESS = 0xFFFFFFFF, 1 << 62
_explicit_head, _implicit_head, _whole = Struct("<I2sH").unpack_from, Struct("<II").unpack_from, Struct("<I").unpack_from

_ITEM, _ITEM_END, _SEQUENCE_END = map(file_tag, (0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD))
_SYNTAX, _CHARSET, _SIGNED = map(file_tag, (0x00020010, 0x00080005, 0x00280103))
_PIXELS = {file_tag(0x7FE00010): "OW", file_tag(0x7FE00008): "OF", file_tag(0x7FE00009): "OD"}
_LUT_DESCRIPTOR, _LUT_DATA = file_tag(0x00283002), file_tag(0x00283006)
_LUT_DESCRIPTORS = {_LUT_DESCRIPTOR, *map(file_tag, (0x00281101, 0x00281102, 0x00281103))}
_US_OR_SS = set(map(file_tag, (
    0x00189810, 0x00221452, 0x00280104, 0x00280105, 0x00280106, 0x00280107, 0x00280108, 0x00280109, 0x00280110, 0x00280111,
    0x00280120, 0x00280121, 0x00281101, 0x00281102, 0x00281103, 0x00283002, 0x00409211, 0x00409216, 0x00603004, 0x00603006,
)))  # fmt: skip
_OB_OR_OW = {file_tag(tag) for tag in (0x54000110, 0x54000112, 0x5400100A, 0x54001010, *range(0x60003000, 0x60200000, 0x20000))}
_TELLING = [
    file_tag(t) for t in (0x00080016, 0x00080018, 0x00080020, 0x00080060, 0x00100010, 0x00100020, 0x0020000D, 0x0020000E)
]


@dataclass(frozen=True, slots=True)
class Pixels:
    """Where the pixels lie: ``length`` bytes from byte ``offset`` of the file, encapsulated (PS3.5 §A.4) or not.

    ``frames``: the (offset, length) of each frame, in bytes of the file; None if that cannot be told without decoding.
    An encapsulated frame is one or more whole items, their 8-byte headers included, as ``pydicom.encaps.generate_fragments``
    reads them.
    """

    tag: str
    vr: str
    offset: int
    length: int
    encapsulated: bool
    frames: tuple[tuple[int, int], ...] | None


@dataclass(frozen=True, slots=True)
class Header:
    """A file's attributes up to its pixels: ``text`` is their DICOM JSON in UTF-8, file meta group first.

    ``notes`` say which elements were left out and why; ``bytes_read`` is how much of the file was read.
    """

    text: bytes
    pixels: Pixels | None
    notes: tuple[str, ...]
    bytes_read: int
    _elements: dict[int, bytes] = field(repr=False, compare=False)

    @property
    def json(self) -> dict[str, Any]:
        """The DICOM JSON as a dict: tag → ``{"vr": …, "Value" | "InlineBinary" | "BulkDataURI": …}``."""
        import json

        return dict(json.loads(self.text))

    def first(self, tag: int) -> Any:
        """The first value of a top-level attribute, as in the JSON; None if it is absent or empty. Faster than ``json``."""
        text = self._elements.get((tag & 0xFFFF) << 16 | tag >> 16)
        return None if text is None else _first(text)


class NotDicom(CatalogError):
    """The file is something else than DICOM."""


class BrokenHeader(CatalogError):
    """The file is DICOM but what follows ``header``, the elements that were read, makes no sense."""

    def __init__(self, problem: str, *, about: str, header: Header) -> None:
        super().__init__(problem, about=about, remedy="copy or send the file again")
        self.header = header


class Truncated(BrokenHeader):
    """The file ends before what it declares does; ``header`` is what was read."""


class _Unusual(Exception):
    """A structure that is pydicom's to read."""


class _Broken(Exception):
    """What neither the walk nor pydicom can read."""


class _Ends(Exception):
    """The file ends before something in it does."""


def walk(path: str | os.PathLike[str]) -> Header:
    """Read the header of the DICOM file ``path``, with or without preamble, by few reads of the file.

    Raises NotDicom, Truncated or BrokenHeader (both hold the header that was read), or OSError.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return _Walk(descriptor, os.fstat(descriptor).st_size, os.fspath(path)).read()
    finally:
        os.close(descriptor)


@lru_cache(maxsize=16_384)
def _first(text: bytes) -> Any:
    values = _element.value_of(text).get("Value")
    return values[0] if values else None


class _Walk:
    """One file being read: a window on its bytes that moves on, and what was found."""

    def __init__(self, descriptor: int, size: int, about: str) -> None:
        self.descriptor, self.size, self.about = descriptor, size, about
        self.bytes_read = self.base = self.data_set_at = 0
        self.cut = False  # the deflated data set stops short
        self.inflated: bytes | None = None
        self.elements: dict[int, bytes] = {}
        self.notes: list[str] = []
        self.orphans: list[tuple[dict[int, bytes], int]] = []
        self.contextual = 0  # how many texts hold only where they stand: offsets, private elements, ambiguous VRs
        self.pixels: Pixels | None = None
        self.buffer = self.pread(_PREFIX, 0)

    def read(self) -> Header:
        preamble = self.buffer[128:132] == b"DICM"
        if not preamble and not _begins_like_a_data_set(self.buffer):
            raise NotDicom("not a DICOM file", about=self.about)
        ends, broken = "", ""
        try:
            self.read_directly(132 if preamble else 0)
        except _Ends as problem:
            ends = str(problem)
        except _Broken as problem:
            broken = str(problem)
        except _Unusual:
            try:
                ends = self.read_by_pydicom()
            except Exception as problem:  # pydicom raises whatever its parsers raise
                broken = str(problem)[:300] if isinstance(problem, _Broken) else f"{type(problem).__name__}: {problem}"[:300]
        if not preamble and self.elements.keys().isdisjoint(_TELLING):
            raise NotDicom("not a DICOM file", about=self.about)
        text = b"{%b}" % b",".join(self.elements.values())
        header = Header(text, self.pixels, tuple(self.notes), self.bytes_read, self.elements)
        if ends:
            raise Truncated(ends, about=self.about, header=header)
        if broken:
            raise BrokenHeader(broken, about=self.about, header=header)
        return header

    def pread(self, length: int, at: int) -> bytes:
        if self.inflated is not None:
            return self.inflated[at : at + length]
        found = os.pread(self.descriptor, length, at)
        self.bytes_read += len(found)
        return found

    def need(self, at: int, length: int) -> tuple[bytes, int]:
        """The window, moved if it must be to hold ``length`` bytes from ``at`` on, and where it begins."""
        if not self.base <= at <= at + length <= self.base + len(self.buffer):
            if at + length <= self.size:
                self.buffer, self.base = self.pread(max(length, _WINDOW), at), at
            if not self.base <= at <= at + length <= self.base + len(self.buffer):
                raise _Ends(f"the file ends {max(at + length - self.size, 1)} bytes before what stands at byte {at} does")
        return self.buffer, self.base

    def note(self, tag: int, why: object) -> None:
        self.contextual += 1
        self.notes.append(f"{shown(tag)} {why}")

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
            # pydicom trusts the first VR, not the syntax: what looks like none under explicit, or like one under implicit, is odd
            if _lettered(head[4:]) == (kind == "implicit") or head[:2] == b"\0\0" or (head[1] >= 4 and kind != "implicit"):
                raise _Unusual
            level = _Level(self.elements, charset_of(b""), 0, kind == "implicit", 0)
            at = (self.implicit if level.implicit else self.explicit)(level, at, self.size)
        for elements, creator in self.orphans:
            if creator in elements:
                raise _Unusual
        if self.size - at >= 8:
            self.read_pixels_at(at, kind == "implicit")
        elif self.cut or any(self.pread(8, at)):
            raise _Ends("the file ends within an element")

    def read_meta(self, at: int) -> int:
        """Read the file meta group, if there is one; where the data set begins."""
        head = self.buffer[at : at + 12]
        if len(head) < 12:
            raise _Ends("the file ends before its file meta group does")
        if head[:2] != b"\2\0":
            return at
        end = at + 12 + int.from_bytes(head[8:], "little")
        if head[:8] != b"\2\0\0\0UL\4\0":
            raise _Unusual
        ends = "the file ends before its file meta group does" if end > self.size else ""
        try:
            stopped = self.explicit(_Level(self.elements, charset_of(b""), 1, False, 0), at, min(end, self.size))
        except _Ends as problem:
            ends = str(problem)
        if any(tag & 0xFFFF != 2 for tag in self.elements):  # the group's length is wrong
            raise _Unusual
        if ends:
            raise _Ends(ends)
        if stopped != end or self.buffer[end - self.base :][:2] == b"\2\0":
            raise _Unusual
        return end

    def inflate(self, at: int) -> None:
        """Put the first _INFLATED bytes of the deflated data set in the file's place; what follows them is not looked at."""
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            body = stream.decompress(self.pread(_INFLATED, at), _INFLATED)
        except zlib.error as problem:
            raise _Unusual from problem
        self.inflated = self.pread(at, 0) + body
        self.buffer, self.base = self.inflated, 0
        self.size = len(self.inflated) if len(body) < _INFLATED else _ENDLESS
        self.cut = not stream.eof and self.size < _ENDLESS

    def explicit(self, level: "_Level", at: int, end: int) -> int:
        """Read elements from ``at`` to ``end``, an item's end or the pixels; where they stopped. The hot loop."""
        elements, known = level.elements, level.charset.explicit
        buffer, base = self.buffer, self.base
        pos, limit = at - base, end - base
        while pos < limit:
            try:
                tag, vr, length = _explicit_head(buffer, pos)
            except struct_error:
                if level.depth == 0 and self.size - base - pos < 8:
                    break
                at = base + pos
                buffer, base = self.need(at, 8)
                pos, limit = at - base, end - base
                continue
            stop = pos + 8 + length
            text = known.get(buffer[pos:stop])
            if text is not None:  # the commonest case by far
                elements[tag] = text
                pos = stop
                continue
            at = base + pos
            if tag == _ITEM_END and level.depth:
                return at + 8
            if tag in _PIXELS and level.depth == 0:
                return at
            at = self.explicit_element(level, at, tag, vr, length)
            known = level.charset.explicit
            buffer, base = self.buffer, self.base
            pos, limit = at - base, end - base
        return base + pos

    def explicit_element(self, level: "_Level", at: int, tag: int, code: bytes, length: int) -> int:
        vr, start, lasting = VRS.get(code), at + 8, True
        if vr is None or (tag == _CHARSET and vr != "CS"):
            raise _Unusual
        if code in LONG:
            buffer, base = self.need(at, 12)
            (length,), start = _whole(buffer, at + 8 - base), at + 12
        if vr == "UN":
            if length == _UNDEFINED:
                vr = "SQ"
            elif tag & 1:
                vr, lasting = self.private(level, tag), not tag >> 24
            elif length < 0xFFFF:
                vr = _element.public_vr(tag) or "UN"
            if " or " in vr:
                raise _Unusual
        return self.value(level, at, start, length, tag, vr, lasting)

    def implicit(self, level: "_Level", at: int, end: int) -> int:
        """As ``explicit``, for elements without VR."""
        elements, known = level.elements, level.charset.implicit
        buffer, base = self.buffer, self.base
        pos, limit = at - base, end - base
        while pos < limit:
            try:
                tag, length = _implicit_head(buffer, pos)
            except struct_error:
                if level.depth == 0 and self.size - base - pos < 8:
                    break
                at = base + pos
                buffer, base = self.need(at, 8)
                pos, limit = at - base, end - base
                continue
            stop = pos + 8 + length
            text = known.get(buffer[pos:stop]) if length < _REMEMBERED else None
            if text is not None:
                elements[tag] = text
                pos = stop
                continue
            at = base + pos
            if tag == _ITEM_END and level.depth:
                return at + 8
            if tag in _PIXELS and level.depth == 0:
                return at
            at = self.implicit_element(level, at, tag, length)
            known = level.charset.implicit
            buffer, base = self.buffer, self.base
            pos, limit = at - base, end - base
        return base + pos

    def implicit_element(self, level: "_Level", at: int, tag: int, length: int) -> int:
        if tag & 0xFFFF in (0, 0xFFFE):
            raise _Unusual
        vr, lasting = _element.public_vr(tag), tag != _SIGNED
        if length == _UNDEFINED and vr is None:
            buffer, base = self.need(at, 16)
            vr = "SQ" if _whole(buffer, at + 8 - base)[0] == _ITEM else None
        elif tag & 1:
            vr, lasting = self.private(level, tag), not tag >> 24
        elif vr is None:
            vr = "UN" if tag >> 16 else "UL"
        elif " or " in vr:
            vr, lasting = self.settle(level, tag, vr), False
        if vr is None or (tag == _SIGNED and not _US_OR_SS.isdisjoint(level.elements)):
            raise _Unusual
        return self.value(level, at, at + 8, length, tag, vr, lasting)

    def private(self, level: "_Level", tag: int) -> str:
        """The VR of a private element that names none: that of its creator's dictionary."""
        if not tag >> 24:
            return _element.private_vr(tag, None)
        self.contextual += 1
        creator = tag & 0xFFFF | tag >> 24 << 16
        text = level.elements.get(creator)
        if text is None:
            self.orphans.append((level.elements, creator))
        return _element.private_vr(tag, text)

    def settle(self, level: "_Level", tag: int, vr: str) -> str:
        """The one VR of an element whose VR depends on others, as pydicom settles it."""
        self.contextual += 1
        if tag in _US_OR_SS:
            return ("US", "SS")[self.signed(level, tag)]
        if tag == _LUT_DATA:
            descriptor = level.elements.get(_LUT_DESCRIPTOR)
            if descriptor is None:
                raise _Unusual
            return "US" if _first(descriptor) == 1 else "OW"
        if tag in _PIXELS and _SIGNED not in level.elements and not _US_OR_SS.isdisjoint(level.elements):
            raise _Unusual
        return "OW" if tag in _OB_OR_OW or tag in _PIXELS else vr

    def signed(self, level: "_Level", tag: int) -> int:
        """Pixel Representation where ``tag`` stands: this data set's, else that of the nearest around it."""
        own = level.elements.get(_SIGNED)
        found = level.inherited if own is None else _first(own)
        if found not in (0, 1) or (own is None and file_tag(tag) < 0x00280103):
            raise _Unusual
        return int(found)

    def value(self, level: "_Level", at: int, start: int, length: int, tag: int, vr: str, lasting: bool) -> int:
        """Read the value of the element at ``at``; where it stops. ``lasting``: its bytes mean the same in any file."""
        stop = start + length
        if vr == "SQ":
            return self.sequence(level, at, start, length, tag, lasting)
        if length == _UNDEFINED:
            raise _Unusual
        if stop > self.size:
            raise _Ends(f"the file ends {stop - self.size} bytes before {shown(tag)} does")
        if vr in BINARY and length > INLINE:
            self.contextual += 1
            level.elements[tag] = _reference(tag, vr, start, length)
            return stop
        if length > _LARGEST:
            self.note(tag, f"{length} bytes of {vr} are too many")
            return stop
        buffer, base = self.need(at, stop - at)
        raw = buffer[start - base : stop - base]
        try:
            if vr == "SS" and tag in _LUT_DESCRIPTORS and not level.implicit:
                text = _element.by_pydicom(tag, vr, raw, level.charset)  # its first value is always unsigned
            else:
                text = _element.text(tag, vr, raw, level.charset)
        except Unconvertible as problem:
            self.note(tag, problem)
            return stop
        level.elements[tag] = text
        if tag == _CHARSET:
            if any(file_tag(earlier) > 0x00080005 for earlier in level.elements):
                raise _Unusual
            level.charset = charset_of(raw)
        elif lasting and length < _REMEMBERED:
            remember(level.known(), buffer[at - base : stop - base], text)
        return stop

    def sequence(self, level: "_Level", at: int, start: int, length: int, tag: int, lasting: bool) -> int:
        end = start + length if length != _UNDEFINED else _ENDLESS
        if end != _ENDLESS and end > self.size:
            raise _Ends(f"the file ends {end - self.size} bytes before {shown(tag)} does")
        element = self.buffer[at - self.base : end - self.base] if lasting and length < _REMEMBERED else b""
        text = level.known().get(element)
        if text is None:
            before = self.contextual
            items, stop = self.items(level, start, end, tag)
            text = b'%b,"Value":[%b]}' % (opening(tag, "SQ"), b",".join(items))
            if len(element) == stop - at and self.contextual == before:
                remember(level.known(), element, text)
            end = stop
        level.elements[tag] = text
        return end

    def items(self, level: "_Level", at: int, end: int, tag: int) -> tuple[list[bytes], int]:
        """The texts of a sequence's items, and where it stops."""
        if level.depth >= _DEPTH:
            raise _Broken(f"{shown(tag)} nests sequences deeper than {_DEPTH}")
        inherited = -1
        if level.implicit:
            own = level.elements.get(_SIGNED)
            inherited = _first(own) if own else -1 if file_tag(tag) < 0x00280103 else level.inherited
            if end == _ENDLESS:  # pydicom hands nothing down into these
                inherited = 0
        items: list[bytes] = []
        while at < end:
            buffer, base = self.need(at, 8)
            mark, length = _implicit_head(buffer, at - base)
            at += 8
            if mark == _SEQUENCE_END and end == _ENDLESS:
                return items, at
            stop = at + length if length != _UNDEFINED else _ENDLESS
            if mark != _ITEM or stop > end:
                raise _Unusual
            inside = _Level({}, level.charset, level.depth + 1, level.implicit, inherited)
            if length:
                if not level.implicit:  # an item may be implicit in an explicit data set, always so under UN (PS3.5 §6.2.2)
                    buffer, base = self.need(at, 8)
                    inside.implicit = not _lettered(buffer[at + 4 - base : at + 6 - base])
                at = (self.implicit if inside.implicit else self.explicit)(inside, at, stop)
                if length != _UNDEFINED and at != stop:
                    raise _Unusual
            items.append(b"{%b}" % b",".join(inside.elements.values()))
        return items, at

    def read_pixels_at(self, at: int, implicit: bool) -> None:
        start = at + (8 if implicit else 12)
        buffer, base = self.need(at, start - at)
        tag, code, _ = _explicit_head(buffer, at - base)
        if tag not in _PIXELS or not (implicit or code in LONG):
            raise _Unusual
        (length,) = _whole(buffer, start - 4 - base)
        self.locate(tag, _PIXELS[tag] if implicit else VRS[code], start, length)

    def locate(self, tag: int, vr: str, start: int, length: int) -> None:
        """Find the pixels' end and frames."""
        name, count = f"{file_tag(tag):08X}", self.number(0x00280008, 1)
        if length == _UNDEFINED:
            self.pixels = Pixels(name, vr, start, self.size - start, True, None)
            frames, stop = self.encapsulated(start, count)
            self.pixels = Pixels(name, vr, start, stop - start, True, frames)
            return
        bits = self.number(0x00280010) * self.number(0x00280011) * self.number(0x00280002, 1) * self.number(0x00280100)
        if self.elements.get(file_tag(0x00280004), b"").find(b"YBR_FULL_422") > 0:
            bits = bits // 3 * 2
        size = (bits + 7) // 8
        frames = None
        if not 0 < count <= _FRAMES or bits <= 0 or size * count > length or (bits % 8 and count > 1):
            self.note(tag, f"{length} bytes are no {count} frames of {bits} bits that begin on a byte")
        else:
            frames = tuple([(start + index * size, size) for index in range(count)])
        self.pixels = Pixels(name, vr, start, length, False, frames)
        if start + length > self.size:
            raise _Ends(f"the file ends {start + length - self.size} bytes before its pixels do")

    def number(self, tag: int, default: int = 0) -> int:
        text = self.elements.get(file_tag(tag))
        found = default if text is None else _first(text)
        return found if isinstance(found, int) else 0

    def encapsulated(self, start: int, count: int) -> tuple[tuple[tuple[int, int], ...] | None, int]:
        """Frames by the basic or extended offset table (PS3.3 §C.7.6.3.1.8), else by the items; and where the pixels stop."""
        mark, length = _implicit_head(self.head_at(start))
        origin = start + 8 + length
        if mark != _ITEM or origin > self.size:
            raise _Ends("the file ends before its encapsulated pixels do")
        offsets: tuple[int, ...] = ()
        if 0 < count <= _FRAMES and length == 4 * count:
            offsets = unpack(f"<{count}I", self.pread(length, start + 8))
        elif 0 < count <= _FRAMES and not length and len(table := self.binary(0x7FE00001)) == 8 * count:
            offsets = unpack(f"<{count}Q", table)
        listed = offsets[:1] == (0,) and all(a < b for a, b in pairwise((*offsets, self.size - origin)))
        spans, stop = self.fragments(origin + offsets[-1] if listed else origin)
        if spans is None:
            self.notes.append(f"(7FE0,0010) the fragments are cut off by something else at byte {stop}")
            return None, stop
        end = sum(spans[-1]) if spans else origin
        if listed:
            return tuple([(origin + a, b - a) for a, b in pairwise((*offsets, end - origin))]), stop
        if count == 1 and spans:
            return ((origin, end - origin),), stop
        return (tuple(spans) if len(spans) == count else None), stop

    def fragments(self, at: int) -> tuple[list[tuple[int, int]] | None, int]:
        """The (offset, length) of each item from ``at`` on, header included, and where their delimiter stops."""
        spans: list[tuple[int, int]] = []
        while at < self.size and len(spans) <= _FRAMES:
            mark, length = _implicit_head(self.head_at(at))
            if mark == _SEQUENCE_END:
                return spans, at + 8
            if mark != _ITEM:
                return None, at
            if at + 8 + length > self.size:
                raise _Ends(f"the file ends {at + 8 + length - self.size} bytes before its encapsulated pixels do")
            spans.append((at, 8 + length))
            at += 8 + length
        return (spans, at) if at == self.size else (None, at)

    def head_at(self, at: int) -> bytes:
        inside = self.base <= at <= self.base + len(self.buffer) - 8
        head = self.buffer[at - self.base : at - self.base + 8] if inside else self.pread(8, at)
        if len(head) < 8:
            raise _Ends("the file ends before its encapsulated pixels do")
        return head

    def binary(self, tag: int) -> bytes:
        """The bytes of a binary attribute, wherever they are."""
        text = self.elements.get(file_tag(tag))
        stored = _element.value_of(text) if text else {}
        if "BulkDataURI" in stored:
            offset, length = (int(part.partition("=")[2]) for part in stored["BulkDataURI"][1:].split("&"))
            return self.pread(length, offset) if length <= 8 * _FRAMES else b""
        return b64decode(stored.get("InlineBinary", ""))

    def read_by_pydicom(self) -> str:
        """Read the file anew by pydicom; what the file ends before, if anything."""
        from pydicom import config
        from pydicom.filereader import read_dataset, read_partial

        partial = self.elements, self.notes
        self.elements, self.notes, self.pixels = {}, [], None
        file, cut = _Bounded(self), list[str]()
        found: list[tuple[int, str | None, int, int]] = []

        def at_pixels(tag: int, vr: str | None, length: int) -> bool:
            if file_tag(tag) in _PIXELS:
                found.append((file_tag(tag), vr, file.tell(), length))
            return bool(found)

        try:
            with config.disable_value_validation(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if self.inflated is None:
                    dataset = read_partial(file, at_pixels, defer_size=_LARGEST, force=True)
                    stored = self.take(dataset.file_meta, 0, cut) | self.take(dataset, 0, cut)
                else:
                    self.elements = {tag: text for tag, text in partial[0].items() if tag & 0xFFFF == 2}
                    file.at = self.data_set_at
                    stored = self.take(read_dataset(file, False, True, None, at_pixels, _LARGEST), 0, cut)
        except Exception:
            self.elements, self.notes = partial
            raise
        for name, attribute in stored.items():
            tag = file_tag(int(name, 16))
            self.elements[tag] = _element.element(tag, attribute)
        try:
            for tag, vr, start, length in found:
                self.locate(tag, vr or _PIXELS[tag], start, length)
        except _Ends as problem:
            cut.append(str(problem))
        return cut[0] if cut else ""

    def take(self, dataset: Any, base: int, cut: list[str], depth: int = 0) -> dict[str, Any]:
        """A pydicom data set as DICOM JSON, element by element; ``base``: where the stream that its offsets count in begins."""
        taken: dict[str, Any] = {}
        if depth > _DEPTH:
            raise _Broken(f"sequences nest deeper than {_DEPTH}")
        for tag in dataset.keys():  # noqa: SIM118 (iterating a data set converts its elements)
            raw, where = dataset.get_item(tag, keep_deferred=True), base
            try:
                if raw.is_raw:
                    where = base + raw.value_tell
                    if raw.length != _UNDEFINED and where + raw.length > self.size:
                        cut.append(f"the file ends {where + raw.length - self.size} bytes before {tag} does")
                        continue
                    if raw.value is None and raw.length > _LARGEST:
                        raise ValueError(f"{raw.length} bytes are too many")
                element = dataset[tag]
                if element.VR == "SQ":
                    items = [self.take(item, where, cut, depth + 1) for item in element.value]
                    taken[f"{tag:08X}"] = {"vr": "SQ", "Value": items}
                elif element.VR in BINARY and element.value and len(element.value) > INLINE:
                    taken[f"{tag:08X}"] = {"vr": element.VR, "BulkDataURI": f"?offset={where}&length={len(element.value)}"}
                else:
                    taken[f"{tag:08X}"] = element.to_json_dict(None, 0)
                    _element.dumps(taken[f"{tag:08X}"])
            except (_Broken, RecursionError):
                raise
            except Exception as problem:  # pydicom raises whatever its converters raise
                taken.pop(f"{tag:08X}", None)
                self.note(file_tag(tag), str(problem)[:200])
        return taken


class _Level:
    """A data set being read: the file's (depth 0), the file meta group or an item's."""

    __slots__ = ("charset", "depth", "elements", "implicit", "inherited")

    def __init__(self, elements: dict[int, bytes], charset: Charset, depth: int, implicit: bool, inherited: int) -> None:
        self.elements, self.charset, self.depth, self.implicit = elements, charset, depth, implicit
        self.inherited = inherited  # Pixel Representation around it: 0, 1, or -1 where it is not known

    def known(self) -> dict[bytes, bytes]:
        return self.charset.implicit if self.implicit else self.charset.explicit


class _Bounded:
    """The file as pydicom reads it: never more than there is, nor without end."""

    def __init__(self, walk: _Walk) -> None:
        self.walk, self.at, self.reads = walk, 0, 0

    def read(self, length: int = -1) -> bytes:
        self.reads += 1
        if self.reads > _READS:
            raise RuntimeError("more elements than a header has")
        rest = max(self.walk.size - self.at, 0)
        length = min(length, rest) if length >= 0 else rest
        buffer, base = self.walk.need(self.at, length)
        self.at += length
        return buffer[self.at - length - base : self.at - base]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.walk.size)[whence]
        return self.at

    def tell(self) -> int:
        return self.at


@lru_cache(maxsize=256)
def _kind(syntax: bytes | None) -> str:
    """How the data set is encoded, by the text of the Transfer Syntax UID: PS3.5 §A."""
    if syntax is None:
        return ""
    uid = _first(syntax)
    if uid == "1.2.840.10008.1.2.2":  # big endian
        raise _Unusual
    return {"1.2.840.10008.1.2": "implicit", "1.2.840.10008.1.2.1.99": "deflated"}.get(str(uid), "explicit")


def _reference(tag: int, vr: str, offset: int, length: int) -> bytes:
    return b'%b,"BulkDataURI":"?offset=%d&length=%d"}' % (opening(tag, vr), offset, length)


def _lettered(vr: bytes) -> bool:
    return len(vr) == 2 and 0x40 < vr[0] < 0x5B and 0x40 < vr[1] < 0x5B


def _begins_like_a_data_set(head: bytes) -> bool:
    """Whether a file without preamble can be DICOM: an even group up to 0040, in either byte order, or a command set."""
    if len(head) < 8 or (head[0] and head[1]):
        return False
    group = head[0] | head[1]
    return not group & 1 and (0 < group <= 0x40 or head.startswith(b"\0\0\0\0\4\0\0\0"))
