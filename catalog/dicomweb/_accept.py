"""What a client accepts (PS3.18 §8.7): media ranges, in its order of preference, and the boundary of multipart bodies."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from starlette.requests import Request

from catalog.problem import Refused

__all__ = ["EXPLICIT", "MEDIA", "Range", "accepted", "asked_for", "boundary", "json_type", "media_type"]

EXPLICIT = "1.2.840.10008.1.2.1"
_NATIVE = ("1.2.840.10008.1.2", EXPLICIT, "1.2.840.10008.1.2.1.99")
MEDIA: dict[str, str] = {
    "1.2.840.10008.1.2.5": "image/dicom-rle",
    **{f"1.2.840.10008.1.2.4.{n}": "image/jpeg" for n in (50, 51, 53, 55, 57, 70)},
    **{f"1.2.840.10008.1.2.4.{n}": "image/jls" for n in (80, 81)},
    **{f"1.2.840.10008.1.2.4.{n}": "image/jp2" for n in (90, 91)},
    **{f"1.2.840.10008.1.2.4.{n}": "image/jpx" for n in (92, 93)},
    **{f"1.2.840.10008.1.2.4.{n}": "image/jxl" for n in (110, 111, 112)},
    **{f"1.2.840.10008.1.2.4.{n}": "image/jphc" for n in (201, 202, 203)},
    **{f"1.2.840.10008.1.2.4.{n}": "video/mpeg" for n in (100, 101)},
    **{f"1.2.840.10008.1.2.4.{n}": "video/mp4" for n in (102, 103, 104, 105, 106, 107, 108)},
}
"""Transfer syntax → media type of its frames (PS3.18 Table 8.7.3-2 and following); others are application/octet-stream."""


@dataclass(frozen=True)
class Range:
    """One media range: ``type`` is what it comes down to, within multipart/related where ``multipart``."""

    type: str
    multipart: bool
    syntax: str = ""

    def takes(self, kind: str) -> bool:
        """Whether the media type ``kind`` is in it."""
        return self.type in ("*/*", kind) or self.type == f"{kind.partition('/')[0]}/*"


def asked_for(request: Request) -> str:
    """The media ranges of the ``accept`` parameter (§8.3.3.1), which a browser's links can carry, else of the header."""
    return request.query_params.get("accept") or request.headers.get("accept", "")


def media_type(syntax: str) -> str:
    """Of a frame in the transfer syntax ``syntax``."""
    return MEDIA.get(syntax, "application/octet-stream")


@lru_cache(maxsize=512)
def accepted(header: str) -> tuple[Range, ...]:
    """The ranges of an Accept header by falling quality, ``*/*`` where it is empty; parameters in any case, quoted or not."""
    found: list[tuple[float, Range]] = []
    for one in _split(header or "*/*", ","):
        kind, *rest = (part.strip() for part in _split(one, ";"))
        parameters = {
            name.strip().lower(): value.strip().strip('"') for name, _, value in (part.partition("=") for part in rest)
        }
        try:
            quality = float(parameters.get("q", "1"))
        except ValueError:
            quality = 0.0
        if kind and quality > 0:
            whole = kind.lower() == "multipart/related"
            inner = parameters.get("type", "*/*" if whole else kind).lower()
            found.append((quality, Range(inner, whole, parameters.get("transfer-syntax", ""))))
    return tuple(one for _, one in sorted(found, key=lambda pair: -pair[0]))


def _split(text: str, separator: str) -> Iterator[str]:
    """``text`` at ``separator`` where that does not stand in quotes."""
    start, quoted = 0, False
    for at, letter in enumerate(text):
        if letter == '"':
            quoted = not quoted
        elif letter == separator and not quoted:
            yield text[start:at]
            start = at + 1
    yield text[start:]


def json_type(header: str) -> str:
    """The JSON media type to answer with; 406 where none is accepted."""
    for one in accepted(header):
        if one.multipart:
            continue
        for kind in ("application/dicom+json", "application/json"):
            if one.takes(kind):
                return kind
    raise Refused(406, "the answer is application/dicom+json", about=f"Accept: {header[:200]}", remedy="accept that")


def boundary() -> str:
    """One that no body has."""
    return uuid.uuid4().hex
