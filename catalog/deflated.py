"""Deflated data sets (PS3.5 §A.5), inflated piece by piece: a few bytes can stand for more than a memory holds."""

import io
import os
import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from catalog.errors import CatalogError

if TYPE_CHECKING:
    from pydicom import FileDataset

__all__ = ["DEFLATED", "LARGEST", "check", "inflated", "read"]

DEFLATED = "1.2.840.10008.1.2.1.99"
LARGEST = 1 << 29
"""Bytes, inflated, of the largest object that is read: beyond it deflating has no use that we know of."""

_PIECE = 1 << 20
_META = 1 << 12  # bytes in which the file meta group names the transfer syntax


def read(file: BinaryIO, *, about: str | os.PathLike[str] = "", **options: Any) -> "FileDataset":
    """The data set that pydicom's dcmread reads from a binary file, with its ``options``. It can be copied: it keeps no file.

    Where it is deflated dcmread inflates all that follows, however much that is: CatalogError where that is more than LARGEST
    bytes, or broken. InvalidDicomError, as by dcmread, where it has no preamble.
    """
    from pydicom import dcmread

    dataset = dcmread(_Bounded(file, os.fspath(about)), **options)
    dataset.buffer = None
    return dataset


class _Bounded:
    """What is read to the file's end is what pydicom inflates: it is inflated before, piece by piece, to see how much it is."""

    def __init__(self, file: BinaryIO, about: str) -> None:
        self._file, self._about = file, about
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        found = self._file.read(size)
        if size < 0:
            _drain(_inflate(found, io.BytesIO(), self._about))
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def inflated(file: BinaryIO) -> Iterator[bytes]:
    """The file as if its data set stood there inflated: preamble and file meta group (PS3.10 §7.1) as they are, then the rest.

    Raises CatalogError where that is no deflated stream, or more than LARGEST bytes.
    """
    head = file.read(144)
    start = 144 + int.from_bytes(head[140:144], "little") if head[128:132] == b"DICM" else 0
    yield head[:start] + file.read(max(0, start - 144))
    yield from _inflate(head[start:], file)


def check(file: BinaryIO) -> None:
    """CatalogError where a file is deflated, and inflates to more than LARGEST bytes. It is at its beginning, and is again."""
    head = file.read(_META)
    file.seek(0)
    if _syntax(head) == DEFLATED:
        _drain(inflated(file))
        file.seek(0)


def _inflate(packed: bytes, file: BinaryIO, about: str = "") -> Iterator[bytes]:
    """What ``packed`` and then the rest of ``file`` stand for, _PIECE bytes at a time; CatalogError beyond LARGEST bytes."""
    stream, length = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        while not stream.eof and (packed := packed or file.read(_PIECE)):
            piece = stream.decompress(packed, _PIECE)
            packed, length = stream.unconsumed_tail, length + len(piece)
            if length > LARGEST:
                problem = f"its deflated data set has more than {LARGEST >> 20} MiB"
                raise CatalogError(problem, about=about, remedy="send it in explicit VR little endian")
            yield piece
    except zlib.error as problem:
        raise CatalogError(f"its deflated data set is broken: {problem}", about=about, remedy="send it again") from None


def _drain(pieces: Iterable[bytes]) -> None:
    for _ in pieces:
        pass


def _syntax(head: bytes) -> str:
    """The Transfer Syntax UID (0002,0010), in explicit VR little endian whatever follows; empty where there is none."""
    _, found, rest = head.partition(b"\2\0\x10\0UI")
    value = rest[2 : 2 + int.from_bytes(rest[:2], "little")] if found else b""
    return value.strip(b"\0 ").decode("ascii", "replace")
