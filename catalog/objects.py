"""Files as rows of ``object_catalog``: their headers, and which of them the table has."""

import gc
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from catalog._query import connect, quoted
from catalog.content import archive_kind, describe
from catalog.deflated import DEFLATED, check
from catalog.errors import CatalogError
from catalog.files import Key, Listed, is_url, located, on_disk, open_binary, utf8
from catalog.header import typed
from catalog.nifti import is_nifti, nifti_header
from catalog.pixels import pixel_facts
from catalog.schemas import OBJECT_KEY, OBJECTS, TYPED
from catalog.table import Conflict, DeltaTable, Part, write_part
from catalog.walk import BrokenHeader, Header, NotDicom, Pixels, walk

__all__ = ["absent", "among", "commit_absent", "known", "once", "path_columns", "rows"]

SETTLED = 60.0
"""Seconds after which a file that ends too early is taken for truncated, not for one on its way."""

UNREAD = "the pixels cannot be read"
"""How the note begins that says why a file's pixels were not read."""

SHALLOW = f"""arg_max(CASE WHEN status = 'ok' AND pixel_offset IS NOT NULL AND pixel_hash IS NULL
    AND NOT coalesce(list_bool_or([starts_with(note, '{UNREAD}') for note in notes]), false)
    THEN 'shallow' ELSE status END, ingested_at)"""
"""The status of the latest row, but ``shallow`` where the pixels were not read and could be."""

_WORDS = re.compile(r"[0-9A-Za-z]+")
_SYNTAX = 0x00020010
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_LATER = len(OBJECTS) - OBJECTS.get_field_index("ingested_at") - 1

Settle = Callable[[Sequence[Part], int], Sequence[Part]]


def rows(files: Sequence[Listed], root: str | Path, *, deep: bool = False, settled: float = SETTLED) -> pa.Table:
    """Read the header of each file: a row each, whatever is wrong with it. ``relative_path`` counts from ``root``;
    ``deep`` reads the pixels too.

    Left out, for the next run, is what is still being written: it changed since it was listed, or it was written to within
    the last ``settled`` seconds and ends too early.
    """
    now, start = time.time(), os.path.join(located(root), "")
    with warnings.catch_warnings(), _uncollected():
        warnings.simplefilter("ignore")  # of the files' own peculiarities
        found = [row for file in files if (row := _row(file, start, now, deep, settled)) is not None]
        columns = zip(*found, strict=True) if found else [()] * len(OBJECTS)
        return pa.Table.from_arrays([_array(c, f.type) for c, f in zip(columns, OBJECTS, strict=True)], schema=OBJECTS)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Headers are many small objects without cycles: to search them for garbage costs a tenth of reading them."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except pa.ArrowInvalid:  # a text that is not UTF-8
        return pa.array([v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values], kind)


def _row(file: Listed, start: str, now: float, deep: bool, settled: float) -> tuple[Any, ...] | None:
    content = _read(file)
    header, status, error = content.header, content.status, content.error
    if not file.problem and _grows(file, now - settled if status == "broken" else now, now):
        return None
    where, when = path_columns(file, start, content.kind), int(now * 1e6)
    if header is None:
        return (*where, content.meta, *[None] * len(TYPED), status, error, when, *[None] * _LATER)
    values = typed(header)
    lacking = [name for name, value in zip(_UIDS, values[:3], strict=True) if not value] if status == "ok" else []
    if lacking:
        status, error = "incomplete", f"{', '.join(lacking)} missing"
    own, later = values[: len(TYPED)], values[len(TYPED) :]
    file_meta, meta = header.parts
    notes = list(header.notes)
    facts = _facts(file.path, notes) if deep and header.pixels and status != "broken" else _NO_FACTS
    rest = (file_meta, notes, *_places(header.pixels), *facts)
    return (*where, meta, *own, status, error, when, *later, *rest)


def path_columns(file: Listed, start: str, kind: str) -> tuple[Any, ...]:
    """The columns of ``object_catalog`` before ``meta``; ``start`` is the root of the listing, with its last separator."""
    path, modified, length = file.key
    relative = path.removeprefix(start) if path.startswith(start) else os.path.basename(path)
    extension = os.path.splitext(path)[1].lstrip(".").lower()
    original = utf8(file.original) if file.original else path
    return path, modified, length, original, relative, path, extension, kind, _WORDS.findall(relative), False


class _Content(NamedTuple):
    """What is in a file: ``file_type``, ``status``, ``error``; the header where one can be read, or a NIfTI file's ``meta``."""

    kind: str
    status: str
    error: str | None = None
    header: Header | None = None
    meta: str | None = None


def _read(file: Listed) -> _Content:
    if file.problem:
        return _Content("other", "broken", file.problem)
    if file.length == 0:
        return _Content("other", "not_dicom", "the file is empty")
    try:
        header = walk(file.path, length=file.length)
        problem = _too_large(file.path) if header.first(_SYNTAX) == DEFLATED else None
        return _Content("dicom", "broken" if problem else "ok", problem, header)
    except NotDicom:
        return _read_other(file.path)
    except BrokenHeader as problem:
        return _Content("dicom", "broken", utf8(problem.problem)[:500], problem.header)
    except (OSError, CatalogError) as problem:
        return _unreadable(problem)


def _too_large(path: str) -> str | None:
    """Why the data set of a deflated file is not to be inflated, None where it may be."""
    try:
        with open_binary(path) as opened:
            check(opened)
    except CatalogError as problem:
        return utf8(problem.problem)[:500]
    return None


def _unreadable(problem: Exception) -> _Content:
    """What is no fault of the file as far as can be told: the next run tries again."""
    return _Content("other", "unreadable" if isinstance(problem, OSError) else "broken", utf8(str(problem))[:500])


def _read_other(path: str) -> _Content:
    try:
        if is_nifti(path):
            return _Content("nifti", "ok", meta=json.dumps(nifti_header(path)))
        if kind := archive_kind(path):
            return _Content(kind, "archive")
        return _Content("other", "not_dicom", describe(path))
    except (OSError, CatalogError) as problem:
        return _unreadable(problem)


_NO_FACTS = (None,) * 5


def _facts(path: str, notes: list[str]) -> tuple[Any, ...]:
    """The columns pixel_hash … pixel_shape; a note where the pixels cannot be decoded."""
    try:
        facts = pixel_facts(path)
    except Exception as problem:  # pydicom and the codecs raise many kinds, and one file does not end the ingest of others
        reason = problem.problem if isinstance(problem, CatalogError) else " ".join(str(problem).split())[:200]
        notes.append(f"{UNREAD}: {reason}")
        return _NO_FACTS
    return (facts.hash, facts.min, facts.max, facts.mean, facts.shape) if facts else _NO_FACTS


def _grows(file: Listed, since: float, now: float) -> bool:
    """Whether the file changed since it was listed, or was written to between ``since`` and ``now``.

    What a URL names was put there as a whole.
    """
    if is_url(file.path):
        return False
    try:
        found = os.stat(on_disk(file.path))
    except OSError:
        return False
    changed = (found.st_mtime_ns // 1000, found.st_size) != (file.modified, file.length)
    return changed or since < file.modified / 1e6 <= now


def _places(pixels: Pixels | None) -> tuple[Any, ...]:
    """The columns pixel_offset, pixel_length, frame_offsets and frame_lengths."""
    if pixels is None:
        return None, None, None, None
    offsets, lengths = zip(*pixels.frames, strict=True) if pixels.frames else (None, None)
    return pixels.offset, pixels.length, offsets, lengths


def known(
    table: DeltaTable, version: int, files: Sequence[Listed], telling: str = "arg_max(status, ingested_at)"
) -> dict[Key, str]:
    """Which of ``files`` the table has, as they are, at ``version``: key → the ``status`` of the latest row."""
    return {} if version < 0 else among(table.dataset(version), files, telling)


def among(rows: Any, files: Sequence[Listed], telling: str = "any_value(path)") -> dict[Key, str]:
    """Which of ``files`` are among ``rows`` (an Arrow dataset with the columns of the key): key → what is ``telling`` of it."""
    if not files:
        return {}
    paths, times, lengths = zip(*(file.key for file in files), strict=True)
    wanted = pa.table({"path": paths, "modified": pa.array(times, pa.int64()), "length": pa.array(lengths, pa.int64())})
    query = f"""
        SELECT path, modificationTime, length, {telling} AS told
        FROM (SELECT * FROM rows WHERE path BETWEEN {quoted(min(paths))} AND {quoted(max(paths))}) o
        SEMI JOIN wanted w ON o.path = w.path AND epoch_us(o.modificationTime) = w.modified AND o.length = w.length
        GROUP BY ALL"""
    with connect({"rows": rows, "wanted": wanted}) as connection:
        found = connection.sql(query).to_arrow_table()
    return dict(zip(_keys(found), found["told"].to_pylist(), strict=True))


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


def once(table: DeltaTable, parts: Sequence[Part]) -> list[Part]:
    """``parts`` with each key in them once, the first time that it comes."""
    if not parts:
        return []
    rows = pyarrow.dataset.dataset([str(table.path / part.name) for part in parts], format="parquet")
    with connect({"rows": rows}) as connection:
        query = f"SELECT {', '.join(OBJECT_KEY)} FROM rows GROUP BY ALL HAVING count(*) > 1"
        doubled, seen = set(_keys(connection.sql(query).to_arrow_table())), set[Key]()
    if not doubled:
        return list(parts)
    kept = []
    for part in parts:
        wanted = []
        for key in _keys(pq.read_table(table.path / part.name, columns=list(OBJECT_KEY))):
            wanted.append(key not in seen)
            seen |= {key} & doubled
        kept.append(_kept(table, part, wanted))
    return [part for part in kept if part.rows]


def _kept(table: DeltaTable, part: Part, wanted: Sequence[bool]) -> Part:
    """The rows of a part that are wanted, in its place."""
    if all(wanted):
        return part
    stored = pq.read_table(table.path / part.name)
    (table.path / part.name).unlink(missing_ok=True)
    return write_part(stored.filter(pa.array(wanted)), table.path) if any(wanted) else Part("", 0, 0)


def absent(table: DeltaTable, parts: Sequence[Part], version: int) -> list[Part]:
    """``parts`` less the rows that the table has at ``version``."""
    return [left for part in parts if (left := _absent(part, table, version)).rows]


def _absent(part: Part, table: DeltaTable, version: int) -> Part:
    keys = _keys(pq.read_table(table.path / part.name, columns=list(OBJECT_KEY)))
    present = known(table, version, [Listed(*key) for key in keys])
    return _kept(table, part, [key not in present for key in keys])


def _keys(rows: pa.Table) -> list[Key]:
    times = rows["modificationTime"].cast(pa.int64()).to_pylist()
    return list(zip(rows["path"].to_pylist(), times, rows["length"].to_pylist(), strict=True))
