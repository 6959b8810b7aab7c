"""WADO-RS (PS3.18 §10.4): studies, series and instances, their metadata, bulk data and pictures; frames are ``frames``'."""

import gzip
import hashlib
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from functools import partial
from typing import Any

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from catalog.deflated import DEFLATED, check, inflated
from catalog.dicomweb import _files
from catalog.dicomweb._accept import EXPLICIT, accepted, asked_for, boundary, json_type, media_type
from catalog.dicomweb._held import Held, Place
from catalog.dicomweb._links import instance, root
from catalog.dicomweb.frames import IMMUTABLE, Frames
from catalog.dicomweb.rendered import picture
from catalog.files import open_binary
from catalog.index import Indexed
from catalog.problem import Refused

__all__ = ["routes", "single"]

_REMEMBERED = 64 << 20  # bytes of metadata, as they were sent
_LEVELS = ("/studies/{study}", "/studies/{study}/series/{series}", "/studies/{study}/series/{series}/instances/{sop}")


def routes(held: Held) -> list[Route]:
    """All resources below /studies that are read, frames first: they are asked for most."""
    service = _Service(held)
    found = [Route(f"{_LEVELS[2]}/frames/{{frames}}", Frames(held), methods=["GET"])]
    for path in _LEVELS:
        for name, answer in service.resources.items():
            found.append(Route(path + name, answer, methods=["GET"]))
    found.append(Route(f"{_LEVELS[2]}/bulkdata", service.bulkdata, methods=["GET"]))
    for name, kind in (("/rendered", "rendered"), ("/thumbnail", "thumbnail")):
        found.append(Route(f"{_LEVELS[2]}/frames/{{frame}}{name}", partial(service.shown, kind), methods=["GET"]))
    return found


class _Service:
    def __init__(self, held: Held) -> None:
        self.held = held
        self._metadata: OrderedDict[tuple[str, ...], bytes] = OrderedDict()
        self._lock = threading.Lock()
        self.resources: dict[str, Callable[[Request], Any]] = {
            "": self.objects,
            "/metadata": self.metadata,
            "/rendered": partial(self.shown, "rendered"),
            "/thumbnail": partial(self.shown, "thumbnail"),
        }

    async def objects(self, request: Request) -> Response:
        """The files: multipart/related of application/dicom, or a single instance's as it is."""
        places = await run_in_threadpool(self._places, request)
        accept, one = asked_for(request), len(places) == 1 and "sop" in request.path_params
        whole, decoded = _offered(accept, places, one)
        if not whole:
            return await single(places[0], accept, request.headers.get("if-none-match", ""))
        told = _etag(places, accept, *sorted(decoded))
        if told in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers={"ETag": told})
        headers = {"ETag": told, "Cache-Control": IMMUTABLE if one else "private, no-cache", "Vary": "Accept"}
        for place in places:
            await _files.read(place.object, 0, 0)  # refused now if it has gone: later the answer would break off
        for place in {place.object.syntax: place for place in places if place.object.syntax in decoded}.values():
            await run_in_threadpool(_decompressed, place)  # and so if there is no codec
        mark = boundary()
        kind = f'multipart/related; type="application/dicom"; boundary={mark}'
        return StreamingResponse(_parts(places, decoded, mark), headers=headers, media_type=kind)

    async def metadata(self, request: Request) -> Response:
        """The headers as DICOM JSON, without group 2, bulk data by URL."""
        kind = json_type(asked_for(request))
        places = await run_in_threadpool(self._places, request)
        zipped = "gzip" in request.headers.get("accept-encoding", "")
        told = _etag(places, root(request), "gzip" if zipped else "")
        headers = {"ETag": told, "Cache-Control": "private, no-cache", "Vary": "Accept, Accept-Encoding"}
        if told in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        body = await run_in_threadpool(self._described, places, root(request), told, zipped)
        return Response(body, headers=headers | ({"Content-Encoding": "gzip"} if zipped else {}), media_type=kind)

    async def bulkdata(self, request: Request) -> Response:
        """A value that the metadata leave out: so many bytes of the object's file from an offset."""
        place = (await run_in_threadpool(self._places, request))[0]
        found = place.object
        try:
            offset, length = (int(request.query_params[name]) for name in ("offset", "length"))
            if offset < 0 or length < 0:
                raise ValueError
        except (KeyError, ValueError):
            raise Refused(400, "offset and length must be whole numbers", about=found.sop_uid, remedy=_AS_TOLD) from None
        accept = accepted(asked_for(request))
        alone = next((one for one in accept if one.takes("application/octet-stream")), None)
        if alone is None:
            raise Refused(406, "bulk data is application/octet-stream", about=found.sop_uid, remedy="accept that")
        pieces = await self._value(place, offset, length)
        headers = {"ETag": _files.tag(found), "Cache-Control": IMMUTABLE, "Vary": "Accept"}
        if not alone.multipart:
            headers["Content-Length"] = str(length)
            return StreamingResponse(pieces, headers=headers, media_type="application/octet-stream")
        mark = boundary()
        kind = f'multipart/related; type="application/octet-stream"; boundary={mark}'
        return StreamingResponse(_one_part("application/octet-stream", pieces, mark), headers=headers, media_type=kind)

    async def shown(self, kind: str, request: Request) -> Response:
        """A picture: of a frame, an instance, or what is in the middle of a series or a study."""
        places = await run_in_threadpool(self._places, request)
        number = request.path_params.get("frame", "")
        return await run_in_threadpool(picture, places, kind, number, request.query_params, request.headers)

    def _places(self, request: Request) -> list[Place]:
        asked = request.path_params
        if "sop" in asked:
            return [self.held.place(asked["study"], asked["series"], asked["sop"])]
        if "series" in asked:
            return list(self.held.series(asked["study"], asked["series"]).values())
        return self.held.of_study(asked["study"])

    def _described(self, places: Sequence[Place], base: str, told: str, zipped: bool) -> bytes:
        key = (told, base)
        with self._lock:
            if (kept := self._metadata.get(key)) is not None:
                self._metadata.move_to_end(key)
                return kept
        rows = self.held.rows([place.object for place in places], ["meta"])
        body = b"[%b]" % b",".join(_one(place, rows.get(place.object.key), base) for place in places)
        body = gzip.compress(body, 1, mtime=0) if zipped else body
        with self._lock:
            self._metadata[key] = body
            while sum(map(len, self._metadata.values())) > _REMEMBERED:
                self._metadata.popitem(last=False)
        return body

    async def _value(self, place: Place, offset: int, length: int) -> AsyncIterator[bytes]:
        found, whole = place.object, b""
        if found.syntax == DEFLATED:
            whole = await run_in_threadpool(_inflated, found)
        if offset + length > (len(whole) or found.length):
            raise Refused(404, "the object has no such bytes", about=found.sop_uid, remedy=_AS_TOLD)
        await _files.read(found, 0, 0)  # refused now if the file has gone
        return _alone(whole[offset : offset + length]) if whole else _files.stream(found, offset, length)


_AS_TOLD = "ask as the metadata's BulkDataURI does"


async def single(place: Place, accept: str, known: str) -> Response:
    """One object as a file, in the transfer syntax of ``accept``; nothing new where the client knows it by its ETag."""
    found, (_, decoded) = place.object, _offered(accept, [place], True)
    told = _etag([place], accept, *decoded)
    headers = {"ETag": told, "Cache-Control": IMMUTABLE, "Vary": "Accept"}
    if told in known:
        return Response(status_code=304, headers=headers)
    await _files.read(found, 0, 0)
    if found.syntax in decoded:
        body = await run_in_threadpool(_decompressed, place)
        return Response(body, headers=headers, media_type=_type(place, decoded))
    length = {"Content-Length": str(found.length)}
    return StreamingResponse(_files.stream(found), headers=headers | length, media_type=_type(place, decoded))


def _one(place: Place, row: Any, base: str) -> bytes:
    """The metadata of one instance; a quote within a value is escaped, so what is replaced is a key with its value."""
    found = place.object
    where = base + instance(found.study_uid, found.series_uid, found.sop_uid)
    if row is None or not row["meta"]:
        raise Refused(410, "its header is not in the catalog any more", about=found.sop_uid, remedy="ingest its folder again")
    told = row["meta"].replace('"BulkDataURI":"?', f'"BulkDataURI":"{where}/bulkdata?').encode()
    header = orjson.loads(told)
    if found.syntax:
        header["00083002"] = {"vr": "UI", "Value": [found.syntax]}
    header["00081190"] = {"vr": "UR", "Value": [where]}
    return orjson.dumps(dict(sorted(header.items())))


def _inflated(found: Indexed) -> bytes:
    """A deflated file as if its data set stood there inflated, as the metadata count its bytes."""
    with open_binary(found.path) as file:
        check(file)
        return b"".join(inflated(file))


def _etag(places: Sequence[Place], *more: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for place in places:
        digest.update(f"{place.object.sop_uid} {_files.tag(place.object)}\n".encode())
    digest.update("\0".join(more).encode())
    return f'"{digest.hexdigest()}"'


def _offered(accept: str, places: Sequence[Place], one: bool) -> tuple[bool, frozenset[str]]:
    """(multipart, the transfer syntaxes that are decoded to explicit VR little endian); Refused (406).

    Where the client names none it is to be that one (PS3.18 §8.7.3), but for video, of which there is only the lossy form.
    """
    syntaxes = frozenset(place.object.syntax for place in places)
    for each in accepted(accept):
        if not each.takes("application/dicom") or not (each.multipart or each.type == "*/*" or one):
            continue
        whole = each.multipart or not (one and each.type != "*/*")
        if each.syntax == "*" or syntaxes == {each.syntax}:
            return whole, frozenset()
        if each.syntax == EXPLICIT:
            return whole, syntaxes - {EXPLICIT}
        if not each.syntax:
            video = {syntax for syntax in syntaxes if media_type(syntax).startswith("video/")}
            return whole, syntaxes - {EXPLICIT} - video
    remedy = 'accept multipart/related; type="application/dicom"; transfer-syntax=*' + (", or application/dicom" if one else "")
    raise Refused(406, "objects are not to be had so", about=f"Accept: {accept[:200]}", remedy=remedy)


def _type(place: Place, decoded: Collection[str]) -> str:
    stored = place.object.syntax
    return f"application/dicom; transfer-syntax={EXPLICIT if stored in decoded or not stored else stored}"


async def _content(place: Place, decoded: Collection[str]) -> AsyncIterator[bytes]:
    if place.object.syntax in decoded:
        yield await run_in_threadpool(_decompressed, place)
        return
    async for piece in _files.stream(place.object):
        yield piece


async def _alone(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _one_part(kind: str, pieces: AsyncIterator[bytes], mark: str) -> AsyncIterator[bytes]:
    yield f"--{mark}\r\nContent-Type: {kind}\r\n\r\n".encode()
    async for piece in pieces:
        yield piece
    yield f"\r\n--{mark}--\r\n".encode()


async def _parts(places: Sequence[Place], decoded: Collection[str], mark: str) -> AsyncIterator[bytes]:
    for place in places:
        yield f"--{mark}\r\nContent-Type: {_type(place, decoded)}\r\n\r\n".encode()
        async for piece in _content(place, decoded):
            yield piece
        yield b"\r\n"
    yield f"--{mark}--\r\n".encode()


def _decompressed(place: Place) -> bytes:
    """The object in explicit VR little endian, under the same UID: the pixels are the same (PS3.18 §8.7.3.5)."""
    import io

    from pydicom import config
    from pydicom.uid import UID

    from catalog.errors import CatalogError
    from catalog.frames import ImageFile, NoPicture
    from catalog.sources import read_dataset

    found, remedy = place.object, "accept it as it is stored: transfer-syntax=*"
    _files.check(found)
    try:
        with config.disable_value_validation():
            try:
                dataset = ImageFile(found.path).decompressed()
            except NoPicture:
                dataset = read_dataset(found.path)  # all that it says is in its header
                dataset.file_meta.TransferSyntaxUID = UID(EXPLICIT)
            written = io.BytesIO()
            dataset.save_as(written, implicit_vr=False, little_endian=True, enforce_file_format=True)
    except CatalogError as problem:
        raise Refused(406, problem.problem, about=found.sop_uid, remedy=remedy) from None
    except Exception as problem:  # what its header has in it may be what pydicom cannot write
        said = " ".join(str(problem).split())[:100] or type(problem).__name__
        raise Refused(406, f"cannot be converted: {said}", about=found.sop_uid, remedy=remedy) from None
    _files.check(found)
    return written.getvalue()
