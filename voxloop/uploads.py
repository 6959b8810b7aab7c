"""POST /api/uploads: one file, multipart/form-data, streamed to disk under a cap; its name can then be asked about."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from fastapi.concurrency import contextmanager_in_threadpool
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from catalog import atomic_file, uploads
from catalog.errors import CatalogError
from catalog.problem import Refused

__all__ = ["LARGEST", "routes"]

LARGEST = 4 << 30
"""Bytes of one upload."""

_BLOCK = 1 << 20
_ENVELOPE = 1 << 16
"""What the form may add to its file."""


def routes(home: Path, *, largest: int = LARGEST) -> list[Route]:
    """The route; uploads go to HOME/volume/uploads."""

    async def receive(request: Request) -> Response:
        name = await _receive(request, home, largest)
        return JSONResponse({"name": name, "expires": int(time.time()) + uploads.KEPT_S}, 201)

    return [Route("/api/uploads", receive, methods=["POST"])]


async def _receive(request: Request, home: Path, largest: int) -> str:
    """The name of the file that the request holds, which is there whole; Refused, and nothing left, for any other."""
    if int(request.headers.get("content-length", 0)) > largest + _ENVELOPE:
        raise _too_large(largest)
    await run_in_threadpool(uploads.sweep, home)
    form = _Form(request)
    try:
        parts = form.blocks()
        first = await anext(parts, b"")
        name = uploads.new_name(form.filename)
        uploads.check(first[:512], name)
        length = 0
        async with contextmanager_in_threadpool(atomic_file(uploads.folder(home) / name)) as file:  # syncing to disk takes long
            while first:
                length += len(first)
                if length > largest:
                    raise _too_large(largest)
                await run_in_threadpool(_write, file, first)
                first = await anext(parts, b"")
            form.finish()
    except CatalogError as problem:
        status = problem.status if isinstance(problem, Refused) else 507 if problem.__cause__ else 415
        raise Refused(status, problem.problem, about=problem.about, remedy=problem.remedy) from None
    except ClientDisconnect:
        raise Refused(400, "the upload did not arrive whole", remedy="send it again") from None
    return name


def _write(file: BinaryIO, block: bytes) -> None:
    file.write(block)


def _too_large(largest: int) -> Refused:
    return Refused(413, f"an upload has {largest} bytes at most", remedy="ingest the images instead, and ask by series")


class _Form:
    """A multipart/form-data body with one file, in blocks as it comes; fields that are no file are passed over."""

    def __init__(self, request: Request) -> None:
        self.filename = ""
        self._stream, self._files, self._ended, self._taking = request.stream(), 0, False, False
        self._header, self._value, self._data = b"", b"", bytearray()
        kind, options = parse_options_header(request.headers.get("content-type"))
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise Refused(415, "not multipart/form-data", about="Content-Type", remedy="send one file as a form does")
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._field,
                    "on_header_value": self._worth,
                    "on_header_end": self._head,
                    "on_part_data": self._body,
                    "on_end": self._end,
                },
            )
        except FormParserError as problem:
            raise Refused(400, str(problem), about="Content-Type") from None

    async def blocks(self) -> AsyncIterator[bytes]:
        """The file, a megabyte at a time."""
        async for received in self._stream:
            try:
                self._parser.write(received)
            except FormParserError as problem:
                raise Refused(400, f"the form cannot be read: {problem}"[:300], remedy="send it again") from None
            if self._files > 1:
                raise Refused(400, "an upload is one file", remedy="send one file a request")
            if len(self._data) >= _BLOCK:
                yield self._taken()
        if self._data:
            yield self._taken()

    def finish(self) -> None:
        """Refused where the form broke off, or held no file."""
        if not self._ended:
            raise Refused(400, "the upload did not arrive whole", remedy="send it again")

    def _taken(self) -> bytes:
        block, self._data = bytes(self._data), bytearray()
        return block

    def _begin(self) -> None:
        self._taking = False

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _worth(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _head(self) -> None:
        if self._header.lower() == b"content-disposition":
            filename = parse_options_header(self._value)[1].get(b"filename")
            if filename is not None:
                self.filename, self._taking = filename.decode("utf-8", "replace"), True
                self._files += 1
        self._header = self._value = b""

    def _body(self, data: bytes, start: int, end: int) -> None:
        if self._taking:
            self._data += data[start:end]

    def _end(self) -> None:
        self._ended = True
