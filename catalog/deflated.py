"""Deflated data sets (PS3.5 §A.5), inflated piece by piece: a few bytes can stand for more than a memory holds."""

import zlib
from collections.abc import Iterator
from typing import BinaryIO

from catalog.errors import CatalogError

__all__ = ["DEFLATED", "LARGEST", "check", "inflated"]

DEFLATED = "1.2.840.10008.1.2.1.99"
LARGEST = 1 << 29
"""Bytes, inflated, of the largest object that is taken from others: beyond it deflating has no use that we know of."""

_PIECE = 1 << 20
_META = 1 << 12  # bytes in which the file meta group names the transfer syntax


def inflated(file: BinaryIO) -> Iterator[bytes]:
    """The file as if its data set stood there inflated: preamble and file meta group (PS3.10 §7.1) as they are, then the rest.

    Raises CatalogError where that is no deflated stream.
    """
    head = file.read(144)
    start = 144 + int.from_bytes(head[140:144], "little") if head[128:132] == b"DICM" else 0
    yield head[:start] + file.read(max(0, start - 144))
    stream, packed = zlib.decompressobj(-zlib.MAX_WBITS), head[start:]
    try:
        while not stream.eof and (packed := packed or file.read(_PIECE)):
            yield stream.decompress(packed, _PIECE)
            packed = stream.unconsumed_tail
    except zlib.error as problem:
        raise CatalogError(f"its deflated data set is broken: {problem}", remedy="send it again") from None


def check(file: BinaryIO) -> None:
    """CatalogError where a file is deflated, and inflates to more than LARGEST bytes. It is at its beginning, and is again."""
    length, head = 0, file.read(_META)
    file.seek(0)
    for piece in inflated(file) if _syntax(head) == DEFLATED else ():
        length += len(piece)
        if length > LARGEST:
            problem = f"its deflated data set has more than {LARGEST >> 20} MiB"
            raise CatalogError(problem, remedy="send it in explicit VR little endian")
    file.seek(0)


def _syntax(head: bytes) -> str:
    """The Transfer Syntax UID (0002,0010), in explicit VR little endian whatever follows; empty where there is none."""
    _, found, rest = head.partition(b"\2\0\x10\0UI")
    value = rest[2 : 2 + int.from_bytes(rest[:2], "little")] if found else b""
    return value.strip(b"\0 ").decode("ascii", "replace")
