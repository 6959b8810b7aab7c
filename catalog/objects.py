"""Files as rows of ``object_catalog``: what is on disk, what is known already, what is new."""

import os
import re
import stat
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from catalog._query import connect, quoted
from catalog.disk import TEMPORARY
from catalog.header import typed
from catalog.schemas import OBJECTS, TYPED
from catalog.table import Conflict, DeltaTable, Part, write_part
from catalog.walk import BrokenHeader, Header, NotDicom, Pixels, walk

__all__ = ["Key", "Listed", "absent", "commit_absent", "known", "list_files", "listed", "path_columns", "rows"]

SETTLED = 60.0
"""Seconds after which a file that ends too early is taken for truncated, not for one on its way."""

_WORDS = re.compile(r"[0-9A-Za-z]+")
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_LATER = len(OBJECTS) - OBJECTS.get_field_index("ingested_at") - 1

Key = tuple[str, int, int]
"""(path, modificationTime in µs since 1970, length): the key of ``object_catalog``."""

Settle = Callable[[Sequence[Part], int], Sequence[Part]]


@dataclass(frozen=True)
class Listed:
    """One file as the file system shows it; ``problem`` says why it cannot be opened, ``original`` where what was unpacked
    lay."""

    path: str
    modified: int
    length: int
    problem: str = ""
    original: str = ""

    @property
    def key(self) -> Key:
        """What makes it the same file as before."""
        return _text(self.path), self.modified, self.length


def listed(path: str | Path) -> Listed:
    """The state of one file that is there."""
    found = os.stat(path)
    return Listed(os.path.abspath(path), found.st_mtime_ns // 1000, found.st_size)


def list_files(root: str | Path, *, skip: Collection[str] = ()) -> Iterator[Listed]:
    """Every file under ``root`` (or ``root`` itself), through symbolic links, each folder once however often it is linked.

    Left out are folders whose real path is in ``skip``, and what is still being written (``disk.TEMPORARY``).
    What cannot be opened is listed with its problem.
    """
    start = os.path.abspath(root)
    if not os.path.isdir(start):
        yield listed(start)
        return
    folders, entered = [start], {os.path.realpath(start)}
    while folders:
        folder = folders.pop()
        try:
            entries = sorted((e for e in os.scandir(folder) if not e.name.startswith(TEMPORARY)), key=lambda entry: entry.name)
        except OSError as problem:
            yield Listed(folder, 0, 0, f"the folder cannot be read: {problem.strerror}")
            continue
        for entry in entries:
            if not entry.is_dir():
                yield _entry(entry)
                continue
            real = os.path.realpath(entry.path)
            if real not in entered and real not in skip:
                entered.add(real)
                folders.append(entry.path)


def _entry(entry: "os.DirEntry[str]") -> Listed:
    try:
        found = entry.stat()
    except OSError as problem:
        there = entry.stat(follow_symlinks=False)
        return Listed(entry.path, there.st_mtime_ns // 1000, there.st_size, f"the link leads nowhere: {problem.strerror}")
    regular = stat.S_ISREG(found.st_mode)
    return Listed(entry.path, found.st_mtime_ns // 1000, found.st_size, "" if regular else "not a regular file")


def rows(files: Sequence[Listed], root: str | Path, *, deep: bool = False) -> pa.Table:
    """Read the header of each file: a row each, whatever is wrong with it. ``relative_path`` counts from ``root``;
    ``deep`` reads the pixels too.

    Left out, for the next run, is what is still being written: it changed since it was listed, or it was written to within
    the last SETTLED seconds and ends too early.
    """
    now, start = time.time(), os.path.join(os.path.abspath(root), "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the files' own peculiarities
        found = [row for file in files if (row := _row(file, start, now)) is not None]
    columns = zip(*found, strict=True) if found else [()] * len(OBJECTS)
    return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, OBJECTS, strict=True)], schema=OBJECTS)


def _row(file: Listed, start: str, now: float) -> tuple[Any, ...] | None:
    kind, header, status, error = _read(file)
    if not file.problem and _grows(file, now, ends=status == "broken"):
        return None
    where = path_columns(file, start, kind)
    if header is None:
        return (*where, None, *[None] * len(TYPED), status, error, int(now * 1e6), *[None] * _LATER)
    values = typed(header)
    lacking = [name for name, value in zip(_UIDS, values[:3], strict=True) if not value] if status == "ok" else []
    if lacking:
        status, error = "incomplete", f"{', '.join(lacking)} missing"
    own, later = values[: len(TYPED)], values[len(TYPED) :]
    file_meta, meta = (text.decode("utf-8", "replace") for text in header.parts)
    rest = (file_meta, list(header.notes), *_places(header.pixels), *[None] * 5)
    return (*where, meta, *own, status, error, int(now * 1e6), *later, *rest)


def path_columns(file: Listed, start: str, kind: str) -> tuple[Any, ...]:
    """The columns of ``object_catalog`` before ``meta``; ``start`` is the root of the listing, with its last separator."""
    path, modified, length = file.key
    relative = path.removeprefix(start) if path.startswith(start) else os.path.basename(path)
    extension = os.path.splitext(path)[1].lstrip(".").lower()
    original = _text(file.original) if file.original else path
    return path, modified, length, original, relative, path, extension, kind, _WORDS.findall(relative), False


def _read(file: Listed) -> tuple[str, Header | None, str, str | None]:
    """What is in the file: ``file_type``, the header where one can be read, ``status`` and ``error``."""
    if file.problem:
        return "other", None, "broken", file.problem
    if file.length == 0:
        return "other", None, "not_dicom", "the file is empty"
    try:
        return "dicom", walk(file.path), "ok", None
    except NotDicom as problem:
        return "other", None, "not_dicom", _text(problem.problem)[:500]
    except BrokenHeader as problem:
        return "dicom", problem.header, "broken", _text(problem.problem)[:500]
    except OSError as problem:
        return "dicom", None, "broken", _text(str(problem))[:500]


def _grows(file: Listed, now: float, *, ends: bool) -> bool:
    """Whether the file is still being written; ``ends``: it ends too early."""
    try:
        found = os.stat(file.path)
    except OSError:
        return False
    changed = (found.st_mtime_ns // 1000, found.st_size) != (file.modified, file.length)
    return changed or (ends and now - SETTLED < file.modified / 1e6 <= now)


def _places(pixels: Pixels | None) -> tuple[Any, ...]:
    """The columns pixel_offset, pixel_length, frame_offsets and frame_lengths."""
    if pixels is None:
        return None, None, None, None
    offsets, lengths = zip(*pixels.frames, strict=True) if pixels.frames else (None, None)
    return pixels.offset, pixels.length, offsets, lengths


def known(table: DeltaTable, version: int, files: Sequence[Listed]) -> dict[Key, str]:
    """Which of ``files`` the table has, as they are, at ``version``: key → the ``status`` of the latest row."""
    if version < 0 or not files:
        return {}
    keys = [file.key for file in files]
    paths, times, lengths = zip(*keys, strict=True)
    wanted = pa.table({"path": paths, "modified": pa.array(times, pa.int64()), "length": pa.array(lengths, pa.int64())})
    query = f"""
        SELECT o.path, o.modificationTime, o.length, arg_max(o.status, o.ingested_at) AS status
        FROM (SELECT path, modificationTime, length, status, ingested_at FROM objects
              WHERE path BETWEEN {quoted(min(paths))} AND {quoted(max(paths))}) o
        SEMI JOIN wanted w ON o.path = w.path AND epoch_us(o.modificationTime) = w.modified AND o.length = w.length
        GROUP BY ALL"""
    with connect({"objects": table.dataset(version), "wanted": wanted}) as connection:
        found = connection.sql(query).to_arrow_table()
    return dict(zip(_keys(found), found["status"].to_pylist(), strict=True))


def commit_absent(
    table: DeltaTable, parts: Sequence[Part], *, writer: str, batch: int = 0, read: int, settle: Settle | None = None
) -> tuple[int, list[Part]]:
    """Commit ``parts``, less the rows that another writer committed after version ``read``; the version and what is in it.

    Whoever commits first has the row: each attempt stands on a fresh snapshot and is refused if that has aged. ``settle``
    is given the parts and the version that they would follow, and returns the parts to commit.
    """
    fresh = [part for part in parts if part.rows]
    while fresh:
        try:
            fresh = list(settle(fresh, read)) if settle else fresh
            return table.commit(fresh, writer=writer, batch=batch, read=read), fresh
        except Conflict:
            read = table.version()
            fresh = absent(table, fresh, read)
    return table.version(), []


def absent(table: DeltaTable, parts: Sequence[Part], version: int) -> list[Part]:
    """``parts`` less the rows that the table has at ``version``."""
    return [left for part in parts if (left := _absent(part, table, version)).rows]


def _absent(part: Part, table: DeltaTable, version: int) -> Part:
    import pyarrow.parquet as pq

    stored = pq.read_table(table.path / part.name, schema=None)
    keys = _keys(stored)
    present = known(table, version, [Listed(*key) for key in keys])
    lacking = [key not in present for key in keys]
    if all(lacking):
        return part
    (table.path / part.name).unlink(missing_ok=True)
    return write_part(stored.filter(pa.array(lacking)), table.path) if any(lacking) else Part("", 0, 0)


def _keys(rows: pa.Table) -> list[Key]:
    times = rows["modificationTime"].cast(pa.int64()).to_pylist()
    return list(zip(rows["path"].to_pylist(), times, rows["length"].to_pylist(), strict=True))


def _text(name: str) -> str:
    """``name`` as UTF-8 can hold it: bytes of a file name that are not UTF-8 are written ``\\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
