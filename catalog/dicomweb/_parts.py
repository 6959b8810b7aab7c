"""The parts of a request's body, each written to a file of its own as it comes: none is ever held in memory."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from catalog.problem import Refused

__all__ = ["Part", "Parts"]

_NOTHING = b"\r\n"
_LONGEST_LINE = 256
"""Bytes of a boundary, the blanks after it and its line's end, that may come in several pieces."""


@dataclass
class Part:
    """A part in the file ``path``; ``problem`` says why it could not be kept."""

    path: Path
    length: int = 0
    problem: str = ""


class Parts:
    """Takes a body in pieces and writes its parts into ``folder``, at most ``most`` of them.

    With ``boundary`` the body is multipart (RFC 2046 §5.1), without it is one part. A part of more than ``largest`` bytes, or
    for which the disk has no room, is dropped and says so; those after it are kept. Raises Refused (400, 413) where the body
    is not what it says, or has more parts.
    """

    def __init__(self, folder: Path, *, boundary: bytes | None, largest: int, most: int) -> None:
        self.folder, self.largest, self.most = folder, largest, most
        self.parts: list[Part] = []
        self._file: BinaryIO | None = None
        self._ended = boundary is None
        self._parser: MultipartParser | None = None
        self._preamble: bytes | None = _NOTHING  # what may still be one, as if after a line's end; None once a part has begun
        if boundary is None:
            self._begin()
            return
        self._first = re.compile(rb"\r\n(--%b)[ \t]*(?=\r\n|--)" % re.escape(boundary))
        callbacks = {"on_part_begin": self._begin, "on_part_data": self._data, "on_part_end": self._close, "on_end": self._end}
        try:
            self._parser = MultipartParser(boundary, callbacks, max_header_count=32)  # type: ignore[arg-type]
        except FormParserError as problem:
            raise Refused(400, str(problem), about="Content-Type", remedy="take a boundary of at most 70 characters") from None

    def write(self, data: bytes) -> None:
        """The next piece of the body."""
        if self._parser is None:
            self._data(data, 0, len(data))
            return
        try:
            self._parser.write(self._after_preamble(data))
        except FormParserError as problem:
            raise _malformed(str(problem)) from None

    def _after_preamble(self, data: bytes) -> bytes:
        """``data`` from the first boundary on, which the parser takes at the beginning and without blanks after it."""
        if self._preamble is None:
            return data
        held = self._preamble + data
        found = self._first.search(held)
        if found is None:
            self._preamble = held[-_LONGEST_LINE:]
            return b""
        self._preamble = None
        return found[1] + held[found.end() :]

    def finish(self) -> list[Part]:
        """The parts, once the body has come."""
        self.close()
        if self._preamble not in (None, _NOTHING):
            raise _malformed("the boundary is not in it")
        if not self._ended:
            remedy = "send it again: nothing of it was stored"
            raise Refused(400, "the multipart body ends before its closing boundary", remedy=remedy)
        if not self.parts:
            raise Refused(400, "the multipart body has no parts", remedy="send one part for each object")
        return self.parts

    def close(self) -> None:
        """Nothing more comes."""
        self._close()

    def _begin(self) -> None:
        if len(self.parts) == self.most:
            raise Refused(413, f"more than {self.most} parts", remedy="send them in several requests")
        path = self.folder / f"{len(self.parts):06d}"
        self.parts.append(Part(path))
        try:
            self._file = path.open("wb")
        except OSError as problem:
            self._drop(problem.strerror or str(problem))

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        part.length += end - start
        if part.problem or self._file is None:
            return
        if part.length > self.largest:
            self._drop(f"larger than {self.largest} bytes")
            return
        try:
            self._file.write(memoryview(data)[start:end])
        except OSError as problem:
            self._drop(problem.strerror or str(problem))

    def _drop(self, problem: str) -> None:
        part, file, self._file = self.parts[-1], self._file, None
        part.problem = problem
        if file is not None:
            with suppress(OSError):  # what was still in its buffer
                file.close()
        part.path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError as problem:
            self._drop(problem.strerror or str(problem))
        self._file = None

    def _end(self) -> None:
        self._ended = True


def _malformed(why: str) -> Refused:
    remedy = "send multipart/related as RFC 2046 has it, with the boundary that the Content-Type names"
    return Refused(400, f"the multipart body is malformed: {why}", remedy=remedy)
