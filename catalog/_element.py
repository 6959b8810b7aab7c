"""One data element's bytes as its DICOM JSON text (PS3.18 §F.2), the same values as pydicom gives.

Tags are unsigned integers as they lie in a little-endian file, group in the low half: ``file_tag(0x00080060) == 0x00600008``.
What is written here is the common form of each VR; anything else goes through pydicom's own converter, one element at a time.
"""

import json
import math
import struct
import warnings
from base64 import b64encode
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import orjson
from pydicom import config
from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import dictionary_VR, private_dictionary_VR
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.tag import BaseTag
from pydicom.valuerep import AMBIGUOUS_VR, BYTES_VR, EXPLICIT_VR_LENGTH_32, STANDARD_VR, VR

__all__ = [
    "BINARY", "LONG", "VRS", "Charset", "Unconvertible", "by_pydicom", "charset_of", "dumps", "element", "file_tag", "opening",
    "private_vr", "public_vr", "remember", "shown", "text", "value_of",
]  # fmt: skip

VRS = {vr.value.encode(): vr.value for vr in STANDARD_VR}
LONG = frozenset(vr.value.encode() for vr in EXPLICIT_VR_LENGTH_32)
BINARY = frozenset(vr.value for vr in (BYTES_VR | AMBIGUOUS_VR) - {VR.US_SS})

_KNOWN = 8_192  # texts remembered for each character set and encoding of VRs


class Unconvertible(Exception):
    """The value is none that its VR can have; pydicom cannot convert it either."""


class Charset:
    """A Specific Character Set, and the texts of elements seen under it: the files of a series share most of theirs."""

    __slots__ = ("codec", "encodings", "explicit", "implicit")

    def __init__(self, encodings: list[str]) -> None:
        self.encodings = encodings
        self.codec = encodings[0]
        self.explicit: dict[bytes, bytes] = {}
        self.implicit: dict[bytes, bytes] = {}


def remember(known: dict[bytes, bytes], element: bytes, text: bytes) -> None:
    """Keep the text of an element, header and value, that means the same wherever it stands."""
    if len(known) >= _KNOWN:
        known.clear()
    known[element] = text


@lru_cache(maxsize=8)
def charset_of(raw: bytes) -> Charset:
    """The character set that the value of (0008,0005) names."""
    terms = raw.decode(default_encoding).rstrip(" \0").split("\\")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Charset(convert_encodings(terms if len(terms) > 1 else terms[0]))
        except ValueError:  # no name that a codec can have
            return Charset([default_encoding])


def file_tag(tag: int) -> int:
    """The tag 0xGGGGEEEE as it lies in a little-endian file, and back."""
    return (tag & 0xFFFF) << 16 | tag >> 16


def shown(tag: int) -> str:
    """The tag as people write it: (GGGG,EEEE)."""
    return f"({tag & 0xFFFF:04X},{tag >> 16:04X})"


@lru_cache(maxsize=16_384)
def opening(tag: int, vr: str) -> bytes:
    """The element's text up to its VR, still open."""
    return b'"%08X":{"vr":"%b"' % (file_tag(tag), vr.encode())


@lru_cache(maxsize=16_384)
def public_vr(tag: int) -> str | None:
    """The VR of the data dictionary, repeating groups included; None if it is not there."""
    try:
        return str(dictionary_VR(file_tag(tag)))
    except KeyError:
        return None


@lru_cache(maxsize=16_384)
def private_vr(tag: int, creator: bytes | None) -> str:
    """The VR of a private element whose creator has the text ``creator``, by pydicom's private dictionary, else UN."""
    if 0x10 <= tag >> 16 < 0x100:
        return "LO"
    if creator is None:
        return "UN"
    values = value_of(creator).get("Value", [])
    try:
        return str(private_dictionary_VR(BaseTag(file_tag(tag)), values[0])) if len(values) == 1 else "UN"
    except (KeyError, TypeError):
        return "UN"


def value_of(text: bytes) -> dict[str, Any]:
    """The element that a text describes."""
    (stored,) = orjson.loads(b"{%b}" % text).values()
    return dict(stored)


def text(tag: int, vr: str, raw: bytes, charset: Charset) -> bytes:
    """The text of an element that is no sequence. Raises Unconvertible."""
    if not raw:
        return opening(tag, vr) + b"}"
    if vr in BINARY:
        return b'%b,"InlineBinary":"%b"}' % (opening(tag, vr), b64encode(raw))
    try:
        values = _VALUES[vr](raw, charset)
        return b'%b,"Value":%b}' % (opening(tag, vr), orjson.dumps(values)) if values else opening(tag, vr) + b"}"
    except (ValueError, LookupError, TypeError, struct.error):
        return by_pydicom(tag, vr, raw, charset)


def by_pydicom(tag: int, vr: str, raw: bytes, charset: Charset) -> bytes:
    """The text of an element by pydicom's converter: code extensions, undecodable text, odd numbers. Raises Unconvertible."""
    stored = RawDataElement(BaseTag(file_tag(tag)), vr, len(raw), raw, 0, False, True)
    try:
        with config.disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return element(tag, convert_raw_data_element(stored, encoding=charset.encodings).to_json_dict(None, 0))
    except Exception as problem:  # pydicom raises whatever its converters raise
        raise Unconvertible(f"no {vr}: {problem}"[:200]) from problem


def element(tag: int, stored: dict[str, Any]) -> bytes:
    """The text of an element of pydicom's JSON model."""
    return b'"%08X":%b' % (file_tag(tag), dumps(stored))


def dumps(value: Any) -> bytes:
    """Any value of pydicom's JSON model as text: whole numbers of any size, no NaN, only text that UTF-8 can hold."""
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return _finite(value) if isinstance(value, float) else value


def _finite(number: float) -> float | str:
    """Numbers that JSON cannot hold as the strings of PS3.18 §F.2.2."""
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _several(values: list[Any]) -> list[Any]:
    """No values where there is but one, empty."""
    return values if len(values) > 1 or values[0] else []


def _decoded(raw: bytes, charset: Charset) -> str:
    if b"\x1b" in raw:
        raise ValueError("code extensions are pydicom's")
    return raw.decode(charset.codec)


def _codes(raw: bytes, charset: Charset) -> list[Any]:
    return _several(raw.decode("latin-1").rstrip(" \0").split("\\"))


def _titles(raw: bytes, charset: Charset) -> list[Any]:
    return _several([part.strip() for part in raw.decode("latin-1").split("\\")])


def _uids(raw: bytes, charset: Charset) -> list[Any]:
    return _several([part.strip() for part in raw.decode("latin-1").rstrip("\0 ").split("\\")])


def _texts(raw: bytes, charset: Charset) -> list[Any]:
    return _several([part.rstrip("\0 ") for part in _decoded(raw, charset).split("\\")])


def _one_text(raw: bytes, charset: Charset) -> list[Any]:
    return _several([_decoded(raw, charset).rstrip("\0 ")])


def _address(raw: bytes, charset: Charset) -> list[Any]:
    return _several([raw.decode("latin-1").rstrip()])


def _names(raw: bytes, charset: Charset) -> list[Any]:
    return _several([_name(part) for part in _decoded(raw.rstrip(b"\0 "), charset).split("\\")])


def _name(part: str) -> dict[str, str] | None:
    groups = part.rstrip("=").split("=") if "=" in part else [part]
    return dict(zip(("Alphabetic", "Ideographic", "Phonetic"), groups, strict=False)) if groups != [""] else None


def _decimals(raw: bytes, charset: Charset) -> list[Any]:
    parts = raw.decode("latin-1").strip().rstrip(" \0").split("\\")
    return [_finite(float(part)) if part.strip() else None for part in parts] if parts != [""] else []


def _integers(raw: bytes, charset: Charset) -> list[Any]:
    parts = raw.decode("latin-1").rstrip(" \0").split("\\")
    numbers = [int(part) if part.strip() else None for part in parts] if parts != [""] else []
    if any(number and abs(number) > 2**53 for number in numbers):
        raise ValueError("pydicom compares these with a float")
    return numbers


def _tags(raw: bytes, charset: Charset) -> list[Any]:
    halves = struct.unpack(f"<{len(raw) // 4 * 2}H", raw[: len(raw) // 4 * 4])
    return [f"{group:04X}{number:04X}" for group, number in zip(halves[::2], halves[1::2], strict=True)]


def _numbers(code: str) -> Callable[[bytes, Charset], list[Any]]:
    size = struct.calcsize(f"<{code}")

    def whole(raw: bytes, charset: Charset) -> list[Any]:
        return list(struct.unpack(f"<{len(raw) // size}{code}", raw))

    def real(raw: bytes, charset: Charset) -> list[Any]:
        return [_finite(number) for number in struct.unpack(f"<{len(raw) // size}{code}", raw)]

    return real if code in "fd" else whole


_VALUES: dict[str, Callable[[bytes, Charset], list[Any]]] = {
    **dict.fromkeys(("AS", "CS", "DA", "DT", "TM"), _codes),
    **dict.fromkeys(("LO", "SH", "UC"), _texts),
    **dict.fromkeys(("LT", "ST", "UT"), _one_text),
    **{"AE": _titles, "AT": _tags, "DS": _decimals, "IS": _integers, "PN": _names, "UI": _uids, "UR": _address},
    **{vr: _numbers(code) for vr, code in zip(("US", "SS", "UL", "SL", "UV", "SV", "FL", "FD"), "HhIiQqfd", strict=True)},
}
