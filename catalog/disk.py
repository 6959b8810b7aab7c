"""Writing that is either there or not there: a temporary file in the same folder, fsync, rename."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from catalog.errors import CatalogError

__all__ = [
    "FULL",
    "TEMPORARY",
    "atomic_file",
    "disk_full",
    "full_disk",
    "make_folder",
    "remove_leftovers",
    "sync_files",
    "sync_folder",
]

FULL = "the disk is full"
"""What a CatalogError says that is no fault of what was being written."""

TEMPORARY = ".tmp-"
"""What the name of a file begins with while it is being written."""


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name ``path`` when the block ends well, and leaves nothing when it does not."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:8]}-{path.name}")
    with full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that are no more left half-written in ``folder``."""
    for left in folder.glob(f"{TEMPORARY}*"):
        writer = left.name.removeprefix(TEMPORARY).partition("-")[0]
        if writer.isdigit() and not _runs(int(writer)):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def sync_files(paths: Sequence[Path]) -> None:
    """fsync many new files at once: the file system writes its journal for all of them together."""
    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(_sync, paths):
            pass


def make_folder(folder: Path) -> set[Path]:
    """Make ``folder`` and what lacks above it; the folders that have a new name in them, which ``sync_folder`` is to keep."""
    lacking = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return {one.parent for one in lacking}


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` outlive a power cut."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" into a CatalogError that names ``path``."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise disk_full(str(path)) from problem


def disk_full(about: str) -> CatalogError:
    """What to raise where there is no space left."""
    remedy = "free some space, then run the same command again: it continues where it stopped"
    return CatalogError(FULL, about=about, remedy=remedy)
