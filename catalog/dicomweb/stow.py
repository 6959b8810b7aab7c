"""STOW-RS (PS3.18 §10.5): objects are taken from the stream to disk, then stored and catalogued, each for itself."""

import asyncio
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import orjson
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from catalog.deposit import FOLDER, Deposited, Reason, deposit, is_uid
from catalog.dicomweb._accept import json_type
from catalog.dicomweb._links import instance, root
from catalog.dicomweb._parts import Part, Parts
from catalog.disk import TEMPORARY, full_disk, make_folder, remove_leftovers, sync_folder
from catalog.errors import CatalogError
from catalog.problem import Refused

if TYPE_CHECKING:
    from catalog.archive import Archive

__all__ = ["LARGEST", "routes"]

LARGEST = 4 << 30
"""Bytes of a request."""

_PIECE = 1 << 20  # bytes that are handed to the disk at once
_AT_ONCE = 8  # uploads that work on the disk at the same time; others wait and are answered in their turn
_TAKEN = 'send multipart/related; type="application/dicom", or one object as application/dicom'


def routes(
    archive: "Archive",
    *,
    largest: int = LARGEST,
    largest_part: int | None = None,
    most_parts: int = 20_000,
    patience: float = 60.0,
) -> list[Route]:
    """POST /studies and /studies/{study} of ``archive``.

    A request has at most ``largest`` bytes and ``most_parts`` parts, a part at most ``largest_part`` bytes (as many as the
    request if it is not given). One that sends nothing for ``patience`` seconds is given up.
    """
    remove_leftovers(archive.volume_folder / FOLDER)  # what processes that are no more were being sent
    store = _Store(archive, largest, largest_part or largest, most_parts, patience)
    return [
        Route("/studies", store.answer, methods=["POST"]),
        Route("/studies/{study}", store.answer, methods=["POST"]),
    ]


class _Store:
    """The Store transaction."""

    def __init__(self, archive: "Archive", largest: int, largest_part: int, most_parts: int, patience: float) -> None:
        self.archive, self.largest, self.largest_part = archive, largest, largest_part
        self.most_parts, self.patience = most_parts, patience
        self._turns: anyio.CapacityLimiter | None = None

    async def answer(self, request: Request) -> Response:
        """Take the body, store its parts, say what became of each."""
        study = request.path_params.get("study", "")
        if study and not is_uid(study):
            raise Refused(400, "not a UID", about=study[:64], remedy="address a study by its StudyInstanceUID")
        json_type(request.headers.get("accept", ""))
        boundary = _boundary(request)
        self._refuse_larger(int(request.headers.get("content-length") or 0))
        try:
            async with self._staging() as folder:
                parts = Parts(folder, boundary=boundary, largest=self.largest_part, most=self.most_parts)
                try:
                    await self._take(request, parts)
                    received = await self._in_turn(parts.finish)
                finally:
                    parts.close()
                found = await self._in_turn(self._stored, received, study)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        return _response(found, study, root(request))

    async def _take(self, request: Request, parts: Parts) -> None:
        taken = 0
        async for piece in self._pieces(request):
            taken += len(piece)
            self._refuse_larger(taken)
            await self._in_turn(parts.write, piece)

    async def _pieces(self, request: Request) -> AsyncIterator[bytes]:
        """The body in pieces of _PIECE bytes or a little more."""
        held: list[bytes] = []
        stream = request.stream()
        while True:
            try:
                async with asyncio.timeout(self.patience):
                    chunk = await anext(stream, None)
            except TimeoutError:
                remedy = "send it again: nothing of it was stored"
                raise Refused(408, f"nothing came for {self.patience:g} seconds", remedy=remedy) from None
            if chunk is None:
                break
            held.append(chunk)
            if sum(map(len, held)) >= _PIECE:
                yield b"".join(held)
                held = []
        yield b"".join(held)

    def _refuse_larger(self, length: int) -> None:
        if length > self.largest:
            about = f"{length} bytes"
            raise Refused(413, f"a request has at most {self.largest} bytes", about=about, remedy="send fewer objects at once")

    def _stored(self, received: Sequence[Part], study: str) -> list[Deposited]:
        kept = iter(deposit(self.archive, [part.path for part in received if not part.problem], study=study))
        return [Deposited().failed(Reason.OUT_OF_RESOURCES, part.problem) if part.problem else next(kept) for part in received]

    @asynccontextmanager
    async def _staging(self) -> AsyncIterator[Path]:
        """A folder for one request's parts, on the file system where they are to stay; it goes whatever happens."""
        root = self.archive.volume_folder / FOLDER
        folder = root / f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"
        await self._in_turn(_make, folder)
        try:
            yield folder
        finally:
            with anyio.CancelScope(shield=True):
                await self._in_turn(lambda: shutil.rmtree(folder, ignore_errors=True))

    async def _in_turn(self, work: Any, *arguments: Any) -> Any:
        """``work`` in a thread, of as many as uploads may take: who reads meanwhile has his own."""
        self._turns = self._turns or anyio.CapacityLimiter(_AT_ONCE)
        return await anyio.to_thread.run_sync(work, *arguments, limiter=self._turns)


def _make(folder: Path) -> None:
    try:
        with full_disk(folder):
            for grown in make_folder(folder.parent):
                sync_folder(grown)
            folder.mkdir()
    except CatalogError as problem:
        raise Refused(507, problem.problem, about=problem.about, remedy="free some space, then send it again") from None


def _boundary(request: Request) -> bytes | None:
    """The boundary of a multipart body, None where the body is one object."""
    told, encoding = request.headers.get("content-type", ""), request.headers.get("content-encoding", "identity")
    if encoding.lower() not in ("", "identity"):
        raise Refused(415, "the body is compressed", about=f"Content-Encoding: {encoding[:64]}", remedy="send it as it is")
    kind, parameters = parse_options_header(told)
    if kind == b"application/dicom":
        return None
    if kind != b"multipart/related" or parameters.get(b"type", b"application/dicom").lower() != b"application/dicom":
        raise Refused(415, "not a type that is stored", about=f"Content-Type: {told[:200]}", remedy=_TAKEN)
    if not parameters.get(b"boundary"):
        raise Refused(400, "the Content-Type names no boundary", about=told[:200], remedy=_TAKEN)
    return parameters[b"boundary"]


def _response(found: Sequence[Deposited], study: str, root: str) -> Response:
    """The Store Instances Response Module (PS3.18 §I.2.2) and its status (Table 10.5.3-1)."""
    stored = [one for one in found if one.failure is None]
    failed = [one for one in found if one.failure is not None]
    studies = {study} if study else {one.study_uid for one in stored}
    module: dict[str, Any] = {"00081190": _element("UR", *(f"{root}/studies/{uid}" for uid in studies if len(studies) == 1))}
    sequences = {
        "00081198": [_item(one) for one in failed if one.sop_uid],
        "00081199": [_item(one, root) for one in stored],
        "0008119A": [_item(one) for one in failed if not one.sop_uid],
    }
    module |= {tag: _element("SQ", *items) for tag, items in sequences.items() if items}
    status = 409 if not stored else 202 if failed or any(one.warning for one in stored) else 200
    return Response(orjson.dumps(module, option=orjson.OPT_SORT_KEYS), status, media_type="application/dicom+json")


def _item(one: Deposited, root: str = "") -> dict[str, Any]:
    return dict(_elements(one, root))


def _elements(one: Deposited, root: str) -> Iterator[tuple[str, Any]]:
    if one.told:
        yield "00000902", _element("LO", one.told[:64])  # Error Comment (PS3.7 §C.4): the reason in words
    if one.sop_uid:
        yield "00081150", _element("UI", *([one.sop_class[:64]] if one.sop_class else []))
        yield "00081155", _element("UI", one.sop_uid[:64])
    if one.failure is None:
        yield "00081190", _element("UR", root + instance(one.study_uid, one.series_uid, one.sop_uid))
        if one.warning:
            yield "00081196", _element("US", int(one.warning))
    else:
        yield "00081197", _element("US", int(one.failure))


def _element(vr: str, *values: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": list(values)} if values else {"vr": vr}
