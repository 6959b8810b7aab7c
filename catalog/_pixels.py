"""Where a file's pixels and frames lie, found without reading the pixels (PS3.5 §A.4, PS3.3 §C.7.6.3.1.8)."""

from base64 import b64decode
from dataclasses import dataclass
from itertools import pairwise
from struct import unpack

from catalog._dataset import ITEM, SEQUENCE_END, UNDEFINED, Ends, Reader, first, implicit_head
from catalog._element import file_tag, value_of

__all__ = ["Pixels", "locate"]

_FRAMES = 1 << 20
"""How many frames are listed."""


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


def locate(reader: Reader, tag: int, vr: str, start: int, length: int) -> None:
    """Find the pixels' end and frames."""
    name, count = f"{file_tag(tag):08X}", _number(reader, 0x00280008, 1)
    if length == UNDEFINED:
        reader.pixels = Pixels(name, vr, start, reader.size - start, True, None)
        frames, stop = _encapsulated(reader, start, count)
        reader.pixels = Pixels(name, vr, start, stop - start, True, frames)
        return
    bits = (
        _number(reader, 0x00280010) * _number(reader, 0x00280011) * _number(reader, 0x00280002, 1) * _number(reader, 0x00280100)
    )
    if reader.elements.get(file_tag(0x00280004), b"").find(b"YBR_FULL_422") > 0:
        bits = bits // 3 * 2
    size = (bits + 7) // 8
    frames = None
    if not 0 < count <= _FRAMES or bits <= 0 or size * count > length or (bits % 8 and count > 1):
        reader.note(tag, f"{length} bytes are no {count} frames of {bits} bits that begin on a byte")
    else:
        frames = tuple([(start + index * size, size) for index in range(count)])
    reader.pixels = Pixels(name, vr, start, length, False, frames)
    if start + length > reader.size:
        raise Ends(f"the file ends {start + length - reader.size} bytes before its pixels do")


def _number(reader: Reader, tag: int, default: int = 0) -> int:
    text = reader.elements.get(file_tag(tag))
    found = default if text is None else first(text)
    return found if isinstance(found, int) else 0


def _encapsulated(reader: Reader, start: int, count: int) -> tuple[tuple[tuple[int, int], ...] | None, int]:
    """Frames by the basic or extended offset table (PS3.3 §C.7.6.3.1.8), else by the items; and where the pixels stop."""
    mark, length = implicit_head(_head_at(reader, start))
    origin = start + 8 + length
    if mark != ITEM or origin > reader.size:
        raise Ends("the file ends before its encapsulated pixels do")
    offsets: tuple[int, ...] = ()
    if 0 < count <= _FRAMES and length == 4 * count:
        offsets = unpack(f"<{count}I", reader.pread(length, start + 8))
    elif 0 < count <= _FRAMES and not length and len(table := _binary(reader, 0x7FE00001)) == 8 * count:
        offsets = unpack(f"<{count}Q", table)
    listed = offsets[:1] == (0,) and all(a < b for a, b in pairwise((*offsets, reader.size - origin)))
    spans, stop = _fragments(reader, origin + offsets[-1] if listed else origin)
    if spans is None:
        reader.notes.append(f"(7FE0,0010) the fragments are cut off by something else at byte {stop}")
        return None, stop
    end = sum(spans[-1]) if spans else origin
    if listed:
        return tuple([(origin + a, b - a) for a, b in pairwise((*offsets, end - origin))]), stop
    if count == 1 and spans:
        return ((origin, end - origin),), stop
    return (tuple(spans) if len(spans) == count else None), stop


def _fragments(reader: Reader, at: int) -> tuple[list[tuple[int, int]] | None, int]:
    """The (offset, length) of each item from ``at`` on, header included, and where their delimiter stops."""
    spans: list[tuple[int, int]] = []
    while at < reader.size and len(spans) <= _FRAMES:
        mark, length = implicit_head(_head_at(reader, at))
        if mark == SEQUENCE_END:
            return spans, at + 8
        if mark != ITEM:
            return None, at
        if at + 8 + length > reader.size:
            raise Ends(f"the file ends {at + 8 + length - reader.size} bytes before its encapsulated pixels do")
        spans.append((at, 8 + length))
        at += 8 + length
    return (spans, at) if at == reader.size else (None, at)


def _head_at(reader: Reader, at: int) -> bytes:
    inside = reader.base <= at <= reader.base + len(reader.buffer) - 8
    head = reader.buffer[at - reader.base : at - reader.base + 8] if inside else reader.pread(8, at)
    if len(head) < 8:
        raise Ends("the file ends before its encapsulated pixels do")
    return head


def _binary(reader: Reader, tag: int) -> bytes:
    """The bytes of a binary attribute, wherever they are."""
    text = reader.elements.get(file_tag(tag))
    stored = value_of(text) if text else {}
    if "BulkDataURI" in stored:
        offset, length = (int(part.partition("=")[2]) for part in stored["BulkDataURI"][1:].split("&"))
        return reader.pread(length, offset) if length <= 8 * _FRAMES else b""
    return b64decode(stored.get("InlineBinary", ""))
