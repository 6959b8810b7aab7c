"""Bytes of stored files: a positioned read where the system has them in memory, in a thread where it has to fetch them."""

import os
from collections.abc import AsyncIterator
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool

from catalog.errors import CatalogError
from catalog.files import is_url, listed, on_disk, open_binary
from catalog.problem import Refused

if TYPE_CHECKING:
    from catalog.index import Indexed

__all__ = ["changed", "check", "read", "stream", "tag"]

_PIECE = 1 << 20
_NO_WAIT = getattr(os, "RWF_NOWAIT", 0)


def changed(found: "Indexed") -> Refused:
    """The file is not what was catalogued: its bytes may be another object's."""
    remedy = "ingest its folder again"
    return Refused(410, "its file has gone or changed since it was catalogued", about=found.sop_uid, remedy=remedy)


def tag(found: "Indexed", *how: object) -> str:
    """The ETag of an object, shown as ``how`` says: another file has another, and another way to show it."""
    return f'"{found.modified:x}-{found.length:x}{_shown(how) if how else ""}"'


@lru_cache(maxsize=256)
def _shown(how: tuple[object, ...]) -> str:
    return f"-{blake2b(repr(how).encode(), digest_size=6).hexdigest()}"


def check(found: "Indexed") -> None:
    """Refused (410) where the file is no longer as it was catalogued: for what reads it by its path, before and after."""
    try:
        now = listed(found.path)
    except (OSError, CatalogError):
        raise changed(found) from None
    if (now.modified, now.length) != (found.modified, found.length):
        raise changed(found)


async def read(found: "Indexed", offset: int, length: int, before: int = 0, after: int = 0) -> bytearray:
    """``length`` bytes of the object's file from ``offset``, with room for so many bytes before and after them.

    Refused (410) where the file is no longer as it was catalogued: it is never a part of something else that is given.
    """
    room = bytearray(before + length + after)
    wanted = memoryview(room)[before : before + length]
    if is_url(found.path):
        await run_in_threadpool(_remote, found, offset, wanted)
        return room
    try:
        descriptor = os.open(on_disk(found.path), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise changed(found) from None
    try:
        _check(found, descriptor)
        try:
            done = os.preadv(descriptor, [wanted], offset, _NO_WAIT) if _NO_WAIT else 0
        except OSError:  # not in memory, or a file system that cannot say
            done = 0
        if done < length:
            await run_in_threadpool(_whole, found, descriptor, offset, wanted, done)
        return room
    finally:
        os.close(descriptor)


def _check(found: "Indexed", descriptor: int) -> None:
    state = os.fstat(descriptor)
    if state.st_size != found.length or state.st_mtime_ns // 1000 != found.modified:
        raise changed(found)


def _whole(found: "Indexed", descriptor: int, offset: int, wanted: memoryview, done: int) -> None:
    while done < len(wanted):
        more = os.preadv(descriptor, [wanted[done:]], offset + done)
        if not more:
            raise changed(found)
        done += more


def _remote(found: "Indexed", offset: int, wanted: memoryview) -> None:
    check(found)
    try:
        with open_binary(found.path) as file:
            file.seek(offset)
            wanted[:] = file.read(len(wanted))
    except (OSError, ValueError):
        raise changed(found) from None


async def stream(found: "Indexed", offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
    """``length`` bytes of the file from ``offset``, the whole file unless told otherwise, piece by piece."""
    end = found.length if length is None else offset + length
    for at in range(offset, end, _PIECE):
        yield bytes(await read(found, at, min(_PIECE, end - at)))
