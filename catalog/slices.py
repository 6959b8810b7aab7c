"""What a header says of each slice: of a single-frame object the object, of a multi-frame one each frame."""

import base64
import math
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from catalog.dictionary import address

__all__ = ["Slice", "number", "slices", "thickness"]

_FRAME_NAMES = {
    "AcquisitionNumber": ("FrameAcquisitionNumber",),
    "AcquisitionTime": ("FrameAcquisitionDateTime",),
    "EchoTime": ("EffectiveEchoTime",),
    "ImageType": ("FrameType",),
    "InversionTime": ("InversionTimes",),
    "TemporalPositionIdentifier": ("TemporalPositionIndex",),
    "TriggerTime": ("NominalCardiacTriggerDelayTime",),
}
"""What enhanced multi-frame objects call what the classic ones call otherwise (PS3.3 C.7.6.16, C.8.13)."""

_PRIVATE_B_VALUES = (
    ("0019", "SIEMENS MR HEADER", "0C"),
    ("0043", "GEMS_PARM_01", "39"),
    ("2001", "Philips Imaging DD 001", "03"),
)
_GE_OFFSET = 1_000_000_000  # GE adds it to the b-value in newer versions
_SHARED, _PER_FRAME = "52009229", "52009230"
Header = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice: its object, its file, its frame from 1 (None where the object is the slice).

    ``values`` are the attributes that were asked for by keyword, as text: several values are joined by a backslash, what
    is absent or empty is ``""``, numbers have no trailing zeros.
    """

    sop_uid: str
    path: str
    frame: int | None
    values: Mapping[str, str]

    def __getitem__(self, keyword: str) -> str:
        return self.values[keyword]

    def numbers(self, keyword: str) -> list[float]:
        """The values as numbers; none where they are not."""
        found = [number(part) for part in self.values[keyword].split("\\")]
        return [] if None in found else [part for part in found if part is not None]


def slices(header: Header, path: str, keywords: Collection[str]) -> list[Slice]:
    """The slices of one object, by its DICOM JSON ``header``, with the attributes ``keywords`` (keywords or tags)."""
    sop_uid = _text(header, "SOPInstanceUID")
    if _PER_FRAME not in header:
        return [Slice(sop_uid, path, None, {keyword: _value(({}, {}, header), keyword) for keyword in keywords})]
    shared = {tag: element for item in _items(header, _SHARED) for tag, element in _flat(item)}
    found = []
    for count, item in enumerate(_items(header, _PER_FRAME), 1):
        levels = (dict(_flat(item)), shared, header)
        found.append(Slice(sop_uid, path, count, {keyword: _value(levels, keyword) for keyword in keywords}))
    return found


def number(text: str) -> float | None:
    """``text`` as a finite number, None where it is none."""
    with suppress(ValueError):
        found = float(text)
        return found if math.isfinite(found) else None
    return None


def thickness(told: Callable[[str], Any]) -> float | None:
    """How far one slice alone reaches, in mm: ``told`` gives SpacingBetweenSlices, else SliceThickness; None where neither is
    above 0."""
    found = (number(str(told(keyword) or "")) for keyword in ("SpacingBetweenSlices", "SliceThickness"))
    return next((length for length in found if length is not None and length > 0), None)


def _value(levels: tuple[Header, Header, Header], keyword: str) -> str:
    """The attribute as the frame, the shared groups, or the object itself gives it."""
    names = (*_FRAME_NAMES.get(keyword, ()), keyword)
    for level in levels:
        for name in names:
            if text := _text(level, name):
                return text
        if keyword == "DiffusionBValue" and (text := _private_b_value(level)):
            return text
    return ""


def _text(header: Header, keyword: str) -> str:
    return _joined(header.get(_address(keyword)))


def _joined(element: Any) -> str:
    values = (element or {}).get("Value", ())
    return "\\".join(_plain(value) for value in values)


def _plain(value: Any) -> str:
    if isinstance(value, dict):  # a person's name, or an item
        return str(value.get("Alphabetic", ""))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def _private_b_value(header: Header) -> str:
    """The b-value (s/mm²) where Siemens, GE and Philips had it before the standard did."""
    for group, creator, element in _PRIVATE_B_VALUES:
        for block in range(0x10, 0x18):
            if _joined(header.get(f"{group}00{block:02X}")) != creator:
                continue
            found = header.get(f"{group}{block:02X}{element}") or {}
            value = number(_joined(found).partition("\\")[0] or _unknown(found.get("InlineBinary", "")))
            if value is not None:
                return _plain(value % _GE_OFFSET if creator.startswith("GEMS") else value)
    return ""


def _unknown(inline: str) -> str:
    """The first number of a value of unknown representation: text, or (Philips) one 32-bit float."""
    data = base64.b64decode(inline)
    with suppress(UnicodeDecodeError):
        text = data.decode("ascii").strip("\0 ").partition("\\")[0]
        if number(text) is not None:
            return text
    return str(struct.unpack("<f", data)[0]) if len(data) == 4 else ""


def _flat(item: Header) -> Iterator[tuple[str, Any]]:
    """The elements of an item and of the items in it: functional groups are a sequence each."""
    for tag, element in item.items():
        if element.get("vr") == "SQ":
            for inner in element.get("Value", ()):
                yield from _flat(inner)
        else:
            yield tag, element


def _items(header: Header, tag: str) -> list[Header]:
    return list((header.get(tag) or {}).get("Value", ()))


_address = cache(address)
