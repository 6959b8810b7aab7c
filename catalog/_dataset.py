"""A little-endian data set's bytes → the DICOM JSON text of its elements; the loops that ingest spends its time in."""

from collections.abc import Callable
from functools import lru_cache
from struct import Struct
from struct import error as struct_error
from typing import TYPE_CHECKING, Any, Final

from catalog import _element
from catalog._element import BINARY, LONG, VRS, Charset, Unconvertible, charset_of, file_tag, opening, remember, shown

if TYPE_CHECKING:
    from catalog._pixels import Pixels

__all__ = [
    "DEPTH", "ENDLESS", "INLINE", "ITEM", "LARGEST", "PIXELS", "SEQUENCE_END", "UNDEFINED", "Broken", "Ends", "Fetch", "Level",
    "Reader", "Unusual", "explicit_head", "first", "implicit_head", "lettered", "whole",
]  # fmt: skip

INLINE: Final = 1_024
"""Bytes up to which a binary value is inlined."""

DEPTH: Final = 64
"""How deep sequences may nest."""

LARGEST: Final = 1 << 26
"""Bytes of the longest value that is read."""

_PREFIX, _WINDOW, _REMEMBERED = 32_768, 65_536, 512
"""Bytes read first, read on with, and of the longest element that is remembered."""

UNDEFINED, ENDLESS = 0xFFFFFFFF, 1 << 62
explicit_head, implicit_head, whole = Struct("<I2sH").unpack_from, Struct("<II").unpack_from, Struct("<I").unpack_from

ITEM, SEQUENCE_END = file_tag(0xFFFEE000), file_tag(0xFFFEE0DD)
ITEM_END, _CHARSET, _SIGNED = map(file_tag, (0xFFFEE00D, 0x00080005, 0x00280103))
PIXELS = {file_tag(0x7FE00010): "OW", file_tag(0x7FE00008): "OF", file_tag(0x7FE00009): "OD"}
_LUT_DESCRIPTOR, _LUT_DATA = file_tag(0x00283002), file_tag(0x00283006)
_LUT_DESCRIPTORS = {_LUT_DESCRIPTOR, *map(file_tag, (0x00281101, 0x00281102, 0x00281103))}
_US_OR_SS = set(map(file_tag, (
    0x00189810, 0x00221452, 0x00280104, 0x00280105, 0x00280106, 0x00280107, 0x00280108, 0x00280109, 0x00280110, 0x00280111,
    0x00280120, 0x00280121, 0x00281101, 0x00281102, 0x00281103, 0x00283002, 0x00409211, 0x00409216, 0x00603004, 0x00603006,
)))  # fmt: skip
_OB_OR_OW = {file_tag(tag) for tag in (0x54000110, 0x54000112, 0x5400100A, 0x54001010, *range(0x60003000, 0x60200000, 0x20000))}


Fetch = Callable[[int, int], bytes]
"""The ``length`` bytes of a file from an offset on, or as many as there are."""


class Unusual(Exception):
    """A structure that is pydicom's to read."""


class Broken(Exception):
    """What neither the walk nor pydicom can read."""


class Ends(Exception):
    """The file ends before something in it does."""


class Level:
    """A data set being read: the file's (depth 0), the file meta group or an item's."""

    __slots__ = ("charset", "depth", "elements", "implicit", "inherited")

    def __init__(self, elements: dict[int, bytes], charset: Charset, depth: int, implicit: bool, inherited: int) -> None:
        self.elements, self.charset, self.depth, self.implicit = elements, charset, depth, implicit
        self.inherited = inherited  # Pixel Representation around it: 0, 1, or -1 where it is not known

    def known(self) -> dict[bytes, bytes]:
        return self.charset.implicit if self.implicit else self.charset.explicit


class Reader:
    """A window on a file's bytes that moves on, and what was found in them."""

    def __init__(self, fetch: Fetch, size: int) -> None:
        self.fetch, self.size = fetch, size
        self.bytes_read = self.base = self.data_set_at = 0
        self.inflated: bytes | None = None
        self.elements: dict[int, bytes] = {}
        self.notes: list[str] = []
        self.orphans: list[tuple[dict[int, bytes], int]] = []
        self.pixels: Pixels | None = None
        self.contextual = 0  # how many texts hold only where they stand: offsets, private elements, ambiguous VRs
        self.buffer = self.pread(_PREFIX, 0)

    def pread(self, length: int, at: int) -> bytes:
        if self.inflated is not None:
            return self.inflated[at : at + length]
        found = self.fetch(length, at)
        self.bytes_read += len(found)
        return found

    def need(self, at: int, length: int) -> tuple[bytes, int]:
        """The window, moved if it must be to hold ``length`` bytes from ``at`` on, and where it begins."""
        if not self.base <= at <= at + length <= self.base + len(self.buffer):
            if at + length <= self.size:
                self.buffer, self.base = self.pread(max(length, _WINDOW), at), at
            if not self.base <= at <= at + length <= self.base + len(self.buffer):
                raise Ends(f"the file ends {max(at + length - self.size, 1)} bytes before what stands at byte {at} does")
        return self.buffer, self.base

    def note(self, tag: int, why: object) -> None:
        self.contextual += 1
        self.notes.append(f"{shown(tag)} {why}")

    def explicit(self, level: Level, at: int, end: int) -> int:
        """Read elements from ``at`` to ``end``, an item's end or the pixels; where they stopped. The hot loop."""
        elements, known = level.elements, level.charset.explicit
        buffer, base = self.buffer, self.base
        pos, limit = at - base, end - base
        while pos < limit:
            try:
                tag, vr, length = explicit_head(buffer, pos)
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
            if tag == ITEM_END and level.depth:
                return at + 8
            if tag in PIXELS and level.depth == 0:
                return at
            at = self.explicit_element(level, at, tag, vr, length)
            known = level.charset.explicit
            buffer, base = self.buffer, self.base
            pos, limit = at - base, end - base
        return base + pos

    def explicit_element(self, level: Level, at: int, tag: int, code: bytes, length: int) -> int:
        vr, start, lasting = VRS.get(code), at + 8, True
        if vr is None or (tag == _CHARSET and vr != "CS"):
            raise Unusual
        if code in LONG:
            buffer, base = self.need(at, 12)
            (length,), start = whole(buffer, at + 8 - base), at + 12
        if vr == "UN":
            if length == UNDEFINED:
                vr = "SQ"
            elif tag & 1:
                vr, lasting = self.private(level, tag), not tag >> 24
            elif length < 0xFFFF:
                vr = _element.public_vr(tag) or "UN"
            if " or " in vr:
                raise Unusual
        return self.value(level, at, start, length, tag, vr, lasting)

    def implicit(self, level: Level, at: int, end: int) -> int:
        """As ``explicit``, for elements without VR."""
        elements, known = level.elements, level.charset.implicit
        buffer, base = self.buffer, self.base
        pos, limit = at - base, end - base
        while pos < limit:
            try:
                tag, length = implicit_head(buffer, pos)
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
            if tag == ITEM_END and level.depth:
                return at + 8
            if tag in PIXELS and level.depth == 0:
                return at
            at = self.implicit_element(level, at, tag, length)
            known = level.charset.implicit
            buffer, base = self.buffer, self.base
            pos, limit = at - base, end - base
        return base + pos

    def implicit_element(self, level: Level, at: int, tag: int, length: int) -> int:
        if tag & 0xFFFF in (0, 0xFFFE):
            raise Unusual
        vr, lasting = _element.public_vr(tag), tag != _SIGNED
        if length == UNDEFINED and vr is None:
            buffer, base = self.need(at, 16)
            vr = "SQ" if whole(buffer, at + 8 - base)[0] == ITEM else None
        elif tag & 1:
            vr, lasting = self.private(level, tag), not tag >> 24
        elif vr is None:
            vr = "UN" if tag >> 16 else "UL"
        elif " or " in vr:
            vr, lasting = self.settle(level, tag, vr), False
        if vr is None or (tag == _SIGNED and not _US_OR_SS.isdisjoint(level.elements)):
            raise Unusual
        return self.value(level, at, at + 8, length, tag, vr, lasting)

    def private(self, level: Level, tag: int) -> str:
        """The VR of a private element that names none: that of its creator's dictionary."""
        if not tag >> 24:
            return _element.private_vr(tag, None)
        self.contextual += 1
        creator = tag & 0xFFFF | tag >> 24 << 16
        text = level.elements.get(creator)
        if text is None:
            self.orphans.append((level.elements, creator))
        return _element.private_vr(tag, text)

    def settle(self, level: Level, tag: int, vr: str) -> str:
        """The one VR of an element whose VR depends on others, as pydicom settles it."""
        self.contextual += 1
        if tag in _US_OR_SS:
            return ("US", "SS")[self.signed(level, tag)]
        if tag == _LUT_DATA:
            descriptor = level.elements.get(_LUT_DESCRIPTOR)
            if descriptor is None:
                raise Unusual
            return "US" if first(descriptor) == 1 else "OW"
        if tag in PIXELS and _SIGNED not in level.elements and not _US_OR_SS.isdisjoint(level.elements):
            raise Unusual
        return "OW" if tag in _OB_OR_OW or tag in PIXELS else vr

    def signed(self, level: Level, tag: int) -> int:
        """Pixel Representation where ``tag`` stands: this data set's, else that of the nearest around it."""
        own = level.elements.get(_SIGNED)
        found = level.inherited if own is None else first(own)
        if found not in (0, 1) or (own is None and file_tag(tag) < 0x00280103):
            raise Unusual
        return int(found)

    def value(self, level: Level, at: int, start: int, length: int, tag: int, vr: str, lasting: bool) -> int:
        """Read the value of the element at ``at``; where it stops. ``lasting``: its bytes mean the same in any file."""
        stop = start + length
        if vr == "SQ":
            return self.sequence(level, at, start, length, tag, lasting)
        if length == UNDEFINED:
            raise Unusual
        if stop > self.size:
            raise Ends(f"the file ends {stop - self.size} bytes before {shown(tag)} does")
        if vr in BINARY and length > INLINE:
            self.contextual += 1
            level.elements[tag] = b'%b,"BulkDataURI":"?offset=%d&length=%d"}' % (opening(tag, vr), start, length)
            return stop
        if length > LARGEST:
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
                raise Unusual
            level.charset = charset_of(raw)
        elif lasting and length < _REMEMBERED:
            remember(level.known(), buffer[at - base : stop - base], text)
        return stop

    def sequence(self, level: Level, at: int, start: int, length: int, tag: int, lasting: bool) -> int:
        end = start + length if length != UNDEFINED else ENDLESS
        if end != ENDLESS and end > self.size:
            raise Ends(f"the file ends {end - self.size} bytes before {shown(tag)} does")
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

    def items(self, level: Level, at: int, end: int, tag: int) -> tuple[list[bytes], int]:
        """The texts of a sequence's items, and where it stops."""
        if level.depth >= DEPTH:
            raise Broken(f"{shown(tag)} nests sequences deeper than {DEPTH}")
        inherited = -1
        if level.implicit:
            own = level.elements.get(_SIGNED)
            inherited = first(own) if own else -1 if file_tag(tag) < 0x00280103 else level.inherited
            if end == ENDLESS:  # pydicom hands nothing down into these
                inherited = 0
        items: list[bytes] = []
        while at < end:
            buffer, base = self.need(at, 8)
            mark, length = implicit_head(buffer, at - base)
            at += 8
            if mark == SEQUENCE_END and end == ENDLESS:
                return items, at
            stop = at + length if length != UNDEFINED else ENDLESS
            if mark != ITEM or stop > end:
                raise Unusual
            inside = Level({}, level.charset, level.depth + 1, level.implicit, inherited)
            if length:
                if not level.implicit:  # an item may be implicit in an explicit data set, always so under UN (PS3.5 §6.2.2)
                    buffer, base = self.need(at, 8)
                    inside.implicit = not lettered(buffer[at + 4 - base : at + 6 - base])
                at = (self.implicit if inside.implicit else self.explicit)(inside, at, stop)
                if length != UNDEFINED and at != stop:
                    raise Unusual
            items.append(b"{%b}" % b",".join(inside.elements.values()))
        return items, at


@lru_cache(maxsize=16_384)
def first(text: bytes) -> Any:
    values = _element.value_of(text).get("Value")
    return values[0] if values else None


def lettered(vr: bytes) -> bool:
    return len(vr) == 2 and 0x40 < vr[0] < 0x5B and 0x40 < vr[1] < 0x5B
