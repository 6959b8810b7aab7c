"""Files as rows of ``object_catalog``: what is on disk, what is known already, what is new."""

import json
import os
import re
import stat
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from catalog.disk import TEMPORARY
from catalog.header import BrokenFile, NotDicom, read_header, typed
from catalog.schemas import OBJECT_KEY, OBJECTS
from catalog.table import Conflict, DeltaTable, Part, write_part

__all__ = ["Key", "Listed", "commit_absent", "known", "list_files", "listed", "rows"]

Key = tuple[str, int, int]
"""(path, modificationTime in µs since 1970, length): the key of ``object_catalog``."""


@dataclass(frozen=True)
class Listed:
    """One file as the file system shows it; ``problem`` says why it cannot be opened."""

    path: str
    modified: int
    length: int
    problem: str = ""

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


def rows(files: Sequence[Listed], root: str | Path) -> pa.Table:
    """Read the header of each file: a row each, whatever is wrong with it. ``relative_path`` counts from ``root``."""
    now = datetime.now(UTC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the files' own peculiarities
        return pa.Table.from_pylist([_row(file, os.path.abspath(root), now) for file in files], schema=OBJECTS)


def _row(file: Listed, root: str, now: datetime) -> dict[str, Any]:
    path, modified, length = file.key
    relative = _text(os.path.relpath(file.path, root)) if file.path != root else os.path.basename(path)
    row: dict[str, Any] = {
        "path": path,
        "modificationTime": modified,
        "length": length,
        "original_path": path,
        "relative_path": relative,
        "local_path": path,
        "extension": os.path.splitext(path)[1].lstrip(".").lower(),
        "path_tags": [tag for tag in re.split(r"[^0-9A-Za-z]+", relative) if tag],
        "is_anon": False,
        "ingested_at": now,
    }
    return {**row, **_content(file)}


def _content(file: Listed) -> dict[str, Any]:
    """The columns that the header gives, and ``status``/``error``."""
    if file.problem:
        return {"file_type": "other", "status": "broken", "error": file.problem}
    if file.length == 0:
        return {"file_type": "other", "status": "not_dicom", "error": "the file is empty"}
    try:
        header = read_header(file.path)
        columns = typed(header)
        meta = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace").decode("utf-8")
    except NotDicom as problem:
        return {"file_type": "other", "status": "not_dicom", "error": _text(str(problem))[:500]}
    except (BrokenFile, OSError, ValueError, RecursionError) as problem:
        return {"file_type": "dicom", "status": "broken", "error": _text(str(problem))[:500]}
    lacking = [uid for uid in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID") if not columns[uid]]
    status = {"status": "incomplete", "error": f"{', '.join(lacking)} missing"} if lacking else {"status": "ok", "error": None}
    return {"file_type": "dicom", "meta": meta, **columns, **status}


def known(table: DeltaTable, version: int, prefix: str, *, where: str = "true") -> set[Key]:
    """The keys of the rows at ``version`` whose path starts with ``prefix`` and for which ``where`` (SQL) holds."""
    under = f"starts_with(path, '{_text(prefix).replace(chr(39), chr(39) * 2)}')"
    return _keys(table.scan(OBJECT_KEY, where=f"{under} AND {where}", version=version).read_all())


def commit_absent(table: DeltaTable, parts: Sequence[Part], *, prefix: str, writer: str, read: int) -> tuple[int, int]:
    """Commit ``parts``, less the rows that another writer committed after version ``read``; (version, rows committed).

    Whoever commits first has the row: each attempt stands on a fresh snapshot and is refused if that has aged.
    """
    while True:
        parts = [part for part in parts if part.rows]
        if not parts:
            return table.version(), 0
        try:
            return table.commit(parts, writer=writer, batch=0, read=read), sum(part.rows for part in parts)
        except Conflict:
            read = table.version()
            present = known(table, read, prefix)
            parts = [_without(part, present, table.path) for part in parts]


def _without(part: Part, present: set[Key], folder: Path) -> Part:
    import pyarrow.parquet as pq

    stored = pq.read_table(folder / part.name, schema=OBJECTS)
    fresh = [row not in present for row in _key_list(stored)]
    if all(fresh):
        return part
    (folder / part.name).unlink(missing_ok=True)
    return write_part(stored.filter(pa.array(fresh)), folder) if any(fresh) else Part("", 0, 0)


def _key_list(table: pa.Table) -> list[Key]:
    times = table["modificationTime"].cast(pa.int64()).to_pylist()
    return list(zip(table["path"].to_pylist(), times, table["length"].to_pylist(), strict=True))


def _keys(table: pa.Table) -> set[Key]:
    return set(_key_list(table))


def _text(name: str) -> str:
    """``name`` as UTF-8 can hold it: bytes of a file name that are not UTF-8 are written ``\\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
