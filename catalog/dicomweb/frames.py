"""Frames (PS3.18 §10.4.1.1.4), each by one positioned read: an ASGI application of its own, without a framework's responses."""

from dataclasses import dataclass
from functools import lru_cache
from struct import unpack_from
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from catalog.dicomweb import _files
from catalog.dicomweb._accept import EXPLICIT, accepted, asked_for, boundary, media_type
from catalog.dicomweb._held import Held, Place
from catalog.problem import Refused

if TYPE_CHECKING:
    from catalog.index import Indexed

__all__ = ["IMMUTABLE", "MOST", "Frames", "Offer", "chosen", "decoded", "frame"]

IMMUTABLE = "private, max-age=31536000, immutable"
"""What is addressed by a SOPInstanceUID does not change."""

MOST = 10_000
"""Frames of a request."""

_ITEM = b"\xfe\xff\x00\xe0"
_AS_IT_LIES = ("1.2.840.10008.1.2", EXPLICIT, "")  # native pixels, little endian
_NOT_IN_PLACE = ("1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.8.1")


@dataclass(frozen=True)
class Offer:
    """How frames are sent: ``type`` names media type and transfer syntax; ``decode`` where they must be decoded for it."""

    type: str
    multipart: bool
    decode: bool


@lru_cache(maxsize=1024)
def chosen(accept: str, syntax: str, single: bool) -> Offer:
    """The first of the accepted ranges that can be given: as stored, else decoded to explicit VR little endian.

    Without a word, and for ``*/*``, that is multipart/related of application/octet-stream (§8.7.3). ``transfer-syntax=*``
    takes what is stored whatever the media type. ``single``: one frame is asked for, which needs no multipart. Refused (406).
    """
    native = syntax in _AS_IT_LIES
    stored = Offer(f"{media_type(syntax)}; transfer-syntax={EXPLICIT if native else syntax}", True, False)
    plain = Offer(f"application/octet-stream; transfer-syntax={EXPLICIT}", True, not native)
    compressed = not native and syntax not in _NOT_IN_PLACE
    for one in accepted(accept):
        whole = one.multipart or one.type == "*/*"
        if not whole and not single:
            continue
        if compressed and (one.syntax in ("*", syntax) or (not one.syntax and one.type == media_type(syntax))):
            return Offer(stored.type, whole, False)
        if one.takes("application/octet-stream") and one.syntax in ("", "*", EXPLICIT, *_AS_IT_LIES):
            return Offer(plain.type, whole, plain.decode)
    offered = {plain.type, stored.type} if compressed else {plain.type}
    remedy = f"accept multipart/related with a type of {' or '.join(sorted(offered))}" + (
        ", or that type alone" if single else ""
    )
    raise Refused(406, "frames are not to be had so", about=f"Accept: {accept[:200]}", remedy=remedy)


class Frames:
    """GET …/instances/{sop}/frames/{frames}: numbers from 1, by comma."""

    def __init__(self, held: Held) -> None:
        self.held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        asked, headers = scope["path_params"], dict(scope["headers"])
        uids = asked["study"], asked["series"], asked["sop"]
        place = self.held.remembered(*uids)
        if place is None:
            place = await run_in_threadpool(self.held.place, *uids)
        numbers = _numbers(asked["frames"], place)
        accept = headers.get(b"accept", b"").decode("latin-1")
        if b"accept=" in scope["query_string"]:
            accept = asked_for(Request(scope))
        offer = chosen(accept, place.object.syntax, len(numbers) == 1)
        told = _files.tag(place.object, offer)  # a cache may hold several representations
        if told.encode() in headers.get(b"if-none-match", b""):
            await send({"type": "http.response.start", "status": 304, "headers": _headers(told, "", 0)[1:3]})
            await send({"type": "http.response.body"})
            return
        mark = boundary() if offer.multipart else ""
        kind = f'multipart/related; type="{offer.type.partition(";")[0]}"; boundary={mark}' if mark else offer.type
        head = f"--{mark}\r\nContent-Type: {offer.type}\r\n\r\n".encode() if mark else b""
        tail = f"\r\n--{mark}--\r\n".encode() if mark else b""
        if len(numbers) == 1:
            body = await frame(place, numbers[0], offer, head, tail)
            await send({"type": "http.response.start", "status": 200, "headers": _headers(told, kind, len(body))})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
            return
        first = await frame(place, numbers[0], offer, head, b"\r\n")
        await send({"type": "http.response.start", "status": 200, "headers": _headers(told, kind, None)})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        for number in numbers[1:]:
            body = await frame(place, number, offer, head, b"\r\n")
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": f"--{mark}--\r\n".encode()})


def _headers(told: str, kind: str, length: int | None) -> list[tuple[bytes, bytes]]:
    found = [
        (b"content-type", kind.encode()),
        (b"etag", told.encode()),
        (b"cache-control", IMMUTABLE.encode()),
        (b"vary", b"accept"),
        (b"x-content-type-options", b"nosniff"),
    ]
    return found if length is None else [*found, (b"content-length", str(length).encode())]


def _numbers(text: str, place: Place) -> list[int]:
    """The numbers of frames that are asked for; Refused where one is none (400) or there is no such frame (404)."""
    parts = text.split(",")
    if len(parts) > MOST or not all(part.isascii() and part.isdigit() and len(part) < 10 and int(part) for part in parts):
        remedy = f"give numbers from 1, by comma, {MOST} at most"
        raise Refused(400, "not numbers of frames", about=f"frames/{text[:64]}", remedy=remedy)
    numbers = [int(part) for part in parts]
    if place.frames is not None and max(numbers) > len(place.frames):
        about = f"frames/{max(numbers)} of {place.object.sop_uid}"
        raise Refused(404, f"there are {len(place.frames)} frames", about=about, remedy="ask for one of them")
    return numbers


async def frame(place: Place, number: int, offer: Offer, head: bytes = b"", tail: bytes = b"") -> bytes | bytearray:
    """Frame ``number`` (from 1) between ``head`` and ``tail``."""
    found, syntax = place.object, place.object.syntax
    if offer.decode or place.frames is None or syntax in _NOT_IN_PLACE:
        return head + await run_in_threadpool(decoded, found, number, offer) + tail
    offset, length = place.frames[number - 1]
    if syntax in _AS_IT_LIES:
        room = await _files.read(found, offset, length, len(head), len(tail))
        room[: len(head)] = head
        room[len(head) + length :] = tail
        return room
    return head + _unwrapped(found, await _files.read(found, offset, length)) + tail


def _unwrapped(found: "Indexed", items: bytearray) -> bytes | memoryview:
    """What the items of an encapsulated frame hold (PS3.5 §A.4), their heads taken off."""
    view, at, pieces = memoryview(items), 0, []
    while at + 8 <= len(items):
        if items[at : at + 4] != _ITEM:
            raise _files.changed(found)
        (length,) = unpack_from("<I", items, at + 4)
        pieces.append(view[at + 8 : at + 8 + length])
        at += 8 + length
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def decoded(found: "Indexed", number: int, offer: Offer) -> bytes:
    """Frame ``number`` (from 1) as native pixels in little endian; as it is encapsulated where ``offer`` does not decode.

    Refused where there is no such frame (404), or no codec for it is installed (406).
    """
    from catalog.errors import CatalogError
    from catalog.frames import ImageFile, NoPicture

    _files.check(found)
    try:
        image = ImageFile(found.path)
        if number > image.frames:
            about = f"frames/{number} of {found.sop_uid}"
            raise Refused(404, f"there are {image.frames} frames", about=about, remedy="ask for one of them")
        if not offer.decode and found.syntax not in (*_AS_IT_LIES, *_NOT_IN_PLACE):
            given = image.encapsulated(number - 1)
        else:
            given = image.native(number - 1)
        _files.check(found)
        return given
    except Refused:
        raise
    except NoPicture as problem:
        raise Refused(404, problem.problem, about=found.sop_uid, remedy="ask for an image") from None
    except CatalogError as problem:
        remedy = "accept it as it is stored: transfer-syntax=*"
        raise Refused(406, problem.problem, about=found.sop_uid, remedy=problem.remedy or remedy) from None
