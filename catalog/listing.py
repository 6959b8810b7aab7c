"""What a file system shows, as rows: the columns that ``Catalog.catalog`` gives, kept in parquet files that Spark reads."""

import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.archive import Archive
from catalog.content import archive_kind, kind_of
from catalog.disk import FULL, atomic_file
from catalog.errors import CatalogError
from catalog.files import Listed, list_files, located
from catalog.objects import path_columns
from catalog.schemas import OBJECTS
from catalog.unpack import unpacked

__all__ = ["PATHS", "Wanted", "as_listed", "list_all", "list_wanted", "new_folder", "opened", "write_listing"]

PATHS = pa.schema([*(OBJECTS.field(i) for i in range(OBJECTS.get_field_index("meta"))), pa.field("error", pa.string())])
"""path … path_tags, is_anon, as in ``object_catalog``; ``error`` says why a file cannot be opened."""

_ROWS_A_FILE = 2000
_WEEK = 7 * 86_400


@dataclass(frozen=True)
class Wanted:
    """Files under ``path`` (a folder, a file or a URL) whose name fits the glob ``pattern``; ``unzipped`` is where archives are
    unpacked to, empty where they are not; ``detect``: tell the ``file_type`` by the content, not by the name."""

    path: str
    pattern: str = "*"
    recurse: bool = True
    unzipped: str = ""
    detect: bool = False

    def as_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def list_all(archive: Archive, wanted: Wanted) -> tuple[Iterator[Listed], str]:
    """The files that are wanted, after each archive what it holds, one at a time; and the root of the listing.

    An archive that cannot be unpacked has a problem. CatalogError where there is no such path.
    """
    files, root = list_wanted(archive, wanted)
    return (_with_members(files, Path(wanted.unzipped)) if wanted.unzipped else files), root


def list_wanted(archive: Archive, wanted: Wanted, *, skip: Collection[str] = ()) -> tuple[Iterator[Listed], str]:
    """As ``list_all`` without what archives hold; folders in ``skip`` are left out."""
    root, own = located(wanted.path), {*archive.own_folders(), *skip}
    if wanted.unzipped:
        own.add(os.path.realpath(wanted.unzipped))
    return list_files(root, skip=own, pattern=wanted.pattern, recurse=wanted.recurse), root


def opened(file: Listed, into: Path) -> tuple[Listed, list[Listed]]:
    """The file and, if it is an archive, what it holds, unpacked below ``into``; it has a problem where that cannot be done.

    Raises CatalogError where the disk is full.
    """
    try:
        return file, unpacked(file, into) if not file.problem and archive_kind(file.path) else []
    except (CatalogError, OSError) as problem:
        if isinstance(problem, CatalogError) and problem.problem == FULL:
            raise
        return replace(file, problem=str(problem)), []


def _with_members(files: Iterator[Listed], into: Path) -> Iterator[Listed]:
    for listed in files:
        file, members = opened(listed, into)
        yield file
        yield from members


def write_listing(
    files: Iterable[Listed], root: str, folder: Path, *, detect: bool = False, rows: int = _ROWS_A_FILE
) -> list[str]:
    """Write ``files`` to parquet files of PATHS in ``folder``, ``rows`` in each, numbered after those that are there; the new
    ones' paths. ``file_type`` is told by the file's name, with ``detect`` by its content.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first, written = len(list(folder.glob("files-*.parquet"))), []
    for number, share in enumerate(_shares(iter(files), rows), first):
        path = folder / f"files-{number:06d}.parquet"
        with atomic_file(path) as file:
            pq.write_table(_table(share, root, detect), file)
        written.append(str(path))
    return written


def new_folder(base: Path) -> Path:
    """A folder below ``base`` for the listing of one DataFrame; those of DataFrames older than a week are removed."""
    for left in base.glob("*"):
        if time.time() - left.stat().st_mtime > _WEEK:
            shutil.rmtree(left, ignore_errors=True)
    return base / str(uuid.uuid4())


def as_listed(batch: pa.RecordBatch) -> list[Listed]:
    """The files that rows of PATHS stand for."""
    times = batch["modificationTime"].cast(pa.int64()).to_pylist()
    names = ("path", "length", "error", "original_path")
    rows = zip(times, *(batch[name].to_pylist() for name in names), strict=True)
    return [Listed(path, time, length, problem or "", original) for time, path, length, problem, original in rows]


def _table(files: Sequence[Listed], root: str, detect: bool) -> pa.Table:
    start = os.path.join(root, "")
    rows = [(*path_columns(file, start, _kind(file, detect)), file.problem or None) for file in files]
    columns = zip(*rows, strict=True)
    return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, PATHS, strict=True)], schema=PATHS)


def _kind(file: Listed, detect: bool) -> str:
    if detect:
        return "other" if file.problem else kind_of(file.path)
    name = os.path.basename(file.path).lower()
    ends = {"nifti": (".nii", ".nii.gz"), "zip": (".zip",), "tar": (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")}
    kinds = [kind for kind, endings in ends.items() if name.endswith(endings)]
    return kinds[0] if kinds else "dicom" if name.endswith((".dcm", ".dicom", ".ima")) else "other"


def _shares(files: Iterator[Listed], size: int) -> Iterator[list[Listed]]:
    while share := list(islice(files, size)):
        yield share
