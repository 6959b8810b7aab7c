"""What a file system shows, as rows: the columns that ``Catalog.catalog`` gives, kept in parquet files that Spark reads."""

import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.archive import Archive
from catalog.content import archive_kind, kind_of
from catalog.disk import atomic_file
from catalog.errors import CatalogError
from catalog.files import Listed, list_files, located
from catalog.objects import path_columns
from catalog.schemas import OBJECTS
from catalog.unpack import unpacked

__all__ = ["PATHS", "Wanted", "as_listed", "list_all", "new_folder", "write_listing"]

PATHS = pa.schema([*(OBJECTS.field(i) for i in range(OBJECTS.get_field_index("meta"))), pa.field("error", pa.string())])
"""path … path_tags, is_anon, as in ``object_catalog``; ``error`` says why a file cannot be opened."""

_ROWS_A_FILE = 2000
_DAY = 86_400


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
    root = located(wanted.path)
    files = list_files(root, skip=archive.own_folders(), pattern=wanted.pattern, recurse=wanted.recurse)
    return (_with_members(files, Path(wanted.unzipped)) if wanted.unzipped else files), root


def _with_members(files: Iterator[Listed], into: Path) -> Iterator[Listed]:
    for file in files:
        members: list[Listed] = []
        if not file.problem and archive_kind(file.path):
            try:
                members = unpacked(file, into)
            except CatalogError as problem:
                file = replace(file, problem=str(problem))
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
    """A folder below ``base`` for the listing of one DataFrame; those of DataFrames older than a day are removed."""
    for left in base.glob("*"):
        if time.time() - left.stat().st_mtime > _DAY:
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
