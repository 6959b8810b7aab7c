"""The members of one archive → files: each under a name that stays in its folder, each byte counted as it comes out."""

import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from lzma import LZMAError
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn, cast

from catalog._tar import TarHeader, special
from catalog.content import archive_kind, inflater
from catalog.disk import TEMPORARY
from catalog.errors import CatalogError
from catalog.files import Listed, open_binary, utf8

__all__ = ["Budget", "Damaged", "Into", "Limits", "Member"]

_DAMAGE = (EOFError, MemoryError, RuntimeError, ValueError, zlib.error, LZMAError, zipfile.BadZipFile, tarfile.TarError)
_CHUNK, _NAME, _CONTENTS = 1 << 20, 1024, 1 << 20
"""Bytes read at a time, of the longest member's name that is kept as it is, and of any zip's table of contents."""

_PAX = 1000
"""How many global headers a tar may have."""


@dataclass(frozen=True)
class Limits:
    """What one archive with all that is nested in it may hold at most; an archive that holds more is not unpacked at all.

    ``members`` entries, folders and links included; ``bytes`` and ``member_bytes`` as unpacked; ``ratio`` times the archive's
    own length, which counts from ``ratio_from`` unpacked bytes on; ``depth`` archives in one another.
    """

    members: int = 200_000
    bytes: int = 1 << 38
    member_bytes: int = 1 << 36
    ratio: float = 200
    ratio_from: int = 1 << 30
    depth: int = 4


class Damaged(Exception):
    """The archive, or a member, cannot be read."""


class Budget:
    """What ``archive`` has taken of its limits; CatalogError from each method where that is too much."""

    def __init__(self, archive: Listed, limits: Limits) -> None:
        self.archive, self.limits = archive, limits
        self.entries = self.taken = 0

    def enter(self) -> None:
        """Count an entry."""
        self.entries += 1
        if self.entries > self.limits.members:
            self._refuse("members", f"it has more than {self.limits.members} members")

    def take(self, count: int) -> None:
        """Count bytes that came out."""
        self.taken += count
        if self.taken > self.limits.bytes:
            self._refuse("bytes", f"it holds more than {self.limits.bytes} bytes")
        if self.taken > max(self.limits.ratio_from, self.limits.ratio * self.archive.length):
            self._refuse("ratio", f"it unpacks to more than {self.limits.ratio:g} times its length")

    def fits(self, length: int) -> None:
        """Look at a member's length."""
        if length > self.limits.member_bytes:
            self._refuse("member_bytes", f"a member has more than {self.limits.member_bytes} bytes")

    def nest(self, depth: int) -> None:
        """Look at how many archives lie in one another."""
        if depth > self.limits.depth:
            self._refuse("depth", f"it nests archives deeper than {self.limits.depth}")

    def _refuse(self, limit: str, problem: str) -> NoReturn:
        remedy = f"beyond the limit of {limit}: if it can be trusted, unpack it yourself, and ingest the folder"
        raise CatalogError(problem, about=utf8(self.archive.path), remedy=remedy)


_ENCRYPTED = "the member is encrypted: unpack the archive with its password, and ingest the folder"


@dataclass(frozen=True)
class Member:
    """One file of an archive: where it lies, None where it was not unpacked; ``name`` is ``archive!member``."""

    path: Path | None
    length: int
    problem: str
    name: str


class Into:
    """Where the members of one archive called ``name`` go: ``folder``, and in it ``-`` for names that are no plain paths."""

    def __init__(self, budget: Budget, folder: Path, name: str) -> None:
        self.budget, self.folder, self.name = budget, folder, name
        self.renamed, self.refusals = 0, set[str]()

    def unpack(self, path: str) -> Iterator[Member]:
        """Unpack the archive at ``path``, member by member. Raises Damaged, CatalogError beyond a limit, OSError."""
        kind = archive_kind(path)
        with open_binary(path) as file, _reading():
            if kind == "zip":
                yield from self._zip(file)
                return
            stream = inflater(file.read(8))
            file.seek(0)
            counted = _Counted(stream(file), self.budget)
            if kind == "tar":
                yield from self._tar(counted)
            else:
                self.budget.enter()
                inner = re.sub(r"\.(gz|bz2|xz)$", "", os.path.basename(path), flags=re.IGNORECASE)
                yield self._write(inner, counted, counted=True)

    def _zip(self, file: BinaryIO) -> Iterator[Member]:
        most = max(_CONTENTS, 256 * self.budget.limits.members)
        with zipfile.ZipFile(cast(BinaryIO, _Cautious(file, most))) as archive:
            infos = archive.infolist()
            for _ in infos:
                self.budget.enter()
            # as a bomb has it: many members made of the same bytes (Fifield, A better zip bomb, 2019)
            spans = [*sorted((info.header_offset, info.compress_size) for info in infos), (archive.start_dir, 0)]
            if any(start + 30 + length > after for (start, length), (after, _) in pairwise(spans)):
                raise Damaged("its members lie over one another")
            for info in infos:
                if not info.is_dir() or info.file_size:
                    yield self._zip_member(archive, info)

    def _zip_member(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
        if info.create_system == 3 and stat.S_ISLNK(info.external_attr >> 16):
            return self._refused(info.filename, info.file_size, "a symbolic link, which is not followed")
        if info.flag_bits & 1:
            return self._refused(
                info.filename,
                info.file_size,
                "the member is encrypted: unpack the archive with its password, and ingest the folder",
            )
        self.budget.fits(info.file_size)
        try:
            with _reading(), archive.open(info) as stream:
                return self._write(info.filename, stream, length=info.file_size)
        except Damaged as problem:
            return self._refused(info.filename, info.file_size, f"the member is damaged: {problem}")

    def _tar(self, stream: "_Counted") -> Iterator[Member]:
        with tarfile.open(fileobj=cast(Any, stream), mode="r|", tarinfo=TarHeader) as archive:
            while (entry := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep every one
                self.budget.enter()
                self.budget.fits(entry.size)
                if len(archive.pax_headers) > _PAX:
                    raise Damaged("its global headers have no end")
                if entry.isreg():
                    source = cast(IO[bytes], archive.extractfile(entry))
                    # what is not there of a sparse file was not read either
                    yield self._write(entry.name, source, length=entry.size, counted=not entry.issparse())
                elif not entry.isdir():
                    yield self._refused(entry.name, 0, special(entry))
            # to the end, for the checksum that stands there
            if sum(bool(rest.strip(b"\0")) for rest in iter(lambda: cast(Any, archive.fileobj).read(_CHUNK), b"")):
                yield self._refused("(after its end)", 0, "what follows the mark of the archive's end is not read")

    def _write(self, name: str, source: "IO[bytes] | _Counted", *, length: int | None = None, counted: bool = False) -> Member:
        """Write a member, which must have ``length`` bytes; nothing stays of a damaged one. ``counted``: as they were read."""
        path, target = self._create(name)
        written = 0
        try:
            with target:
                while chunk := source.read(_CHUNK):
                    written += len(chunk)
                    self.budget.fits(written)
                    if not counted:
                        self.budget.take(len(chunk))
                    target.write(chunk)
            if length is not None and written != length:
                raise Damaged(f"it declares {length} bytes and holds {written}")
        except BaseException:
            path.unlink()
            raise
        modified = self.budget.archive.modified * 1000
        os.utime(path, ns=(modified, modified))
        return Member(path, written, "", f"{self.name}!{name}")

    def _create(self, name: str) -> tuple[Path, BinaryIO]:
        """A new file for the member ``name``: under that name where it is a plain path and free, else numbered."""
        if plain := _plain(name):
            path = self.folder / plain
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                return path, path.open("xb")
            except OSError:  # twice there, in other case, where a folder is, or a name that this file system does not take
                pass
        self.renamed += 1
        last = re.sub(r"[^0-9A-Za-z._-]+", "_", name.replace("\\", "/").rpartition("/")[2])[-80:]
        path = self.folder / "-" / f"{self.renamed:06}-{last}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path, path.open("xb")

    def _refused(self, name: str, length: int, problem: str) -> Member:
        """A member that is not unpacked: its name is all it has, so there may be one of that name."""
        original, number = f"{self.name}!{name}", 1
        while original in self.refusals:
            number += 1
            original = f"{self.name}!{name}#{number}"
        self.refusals.add(original)
        return Member(None, length, problem, original)


class _Counted:
    """A stream whose bytes count as they are read, those that nobody keeps too; it ends once, and not again and again."""

    def __init__(self, source: BinaryIO, budget: Budget) -> None:
        self.source, self.budget, self.ends = source, budget, 0

    def read(self, length: int) -> bytes:
        found = self.source.read(length)
        self.budget.take(len(found))
        self.ends += not found
        if self.ends > 8:  # tarfile would skip what is said to be there, block by block
            raise EOFError("it is cut short")
        return found


class _Cautious:
    """A zip's file that refuses to read more than ``most`` bytes at once: zipfile reads the whole table of contents."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self.file, self.most = file, most

    def read(self, length: int = -1) -> bytes:
        if length > self.most:
            raise Damaged(f"its table of contents has {length} bytes")
        return self.file.read(length)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _plain(name: str) -> str:
    """``name`` if it is a relative path that any file system takes and that cannot lead out of its folder, else ""."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    try:
        lengths = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        return ""
    odd = name.startswith("/") or ".." in parts or re.search(r"[\\\x00-\x1f\x7f]|^[A-Za-z]:", name)
    ours = parts[:1] == ["-"] or any(part.startswith(TEMPORARY) for part in parts)
    fits = parts and max(lengths) <= 255 and sum(lengths) + len(parts) <= _NAME
    return "" if odd or ours or not fits else "/".join(parts)


@contextmanager
def _reading() -> Iterator[None]:
    """Make what the libraries raise for damage one kind; an OSError of the operating system stays what it is."""
    try:
        yield
    except _DAMAGE as problem:
        raise Damaged(_line(problem)) from problem
    except OSError as problem:
        if problem.errno is not None:
            raise
        raise Damaged(_line(problem)) from problem


def _line(problem: BaseException) -> str:
    return " ".join(str(problem).split())[:200] or type(problem).__name__
