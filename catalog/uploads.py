"""Images that a client sent to be asked about, under HOME/volume/uploads: never in the catalog, and kept for a day."""

import re
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path

from catalog.errors import CatalogError
from catalog.files import listed
from catalog.unpack import unpacked

__all__ = ["KEPT_S", "SUFFIXES", "check", "find", "folder", "new_name", "sweep"]

KEPT_S = 24 * 3600
"""Seconds after which an upload is removed."""

SUFFIXES = (".nii.gz", ".nii", ".zip")
"""A NIfTI file, or a zip that holds one DICOM series."""

_NAME = re.compile(r"[0-9a-f]{32}(\.nii\.gz|\.nii|\.zip)")
_NIFTI = (b"n+1\0", b"n+2\0")


def folder(home: Path) -> Path:
    """Where a home keeps them."""
    return home / "volume" / "uploads"


def new_name(filename: str) -> str:
    """A name that nobody guesses, for a file that its sender calls ``filename``; CatalogError for a kind that is not taken."""
    suffix = next((suffix for suffix in SUFFIXES if filename.lower().endswith(suffix)), None)
    if suffix is None:
        remedy = "send a .nii, a .nii.gz, or a .zip that holds one DICOM series"
        raise CatalogError("not a kind of file that is taken", about=filename[:200] or "the file", remedy=remedy)
    return secrets.token_hex(16) + suffix


def check(start: bytes, name: str) -> None:
    """CatalogError where a file that begins with ``start`` (its first 512 bytes) is not what its ``name`` says."""
    found = {
        ".nii.gz": start[:2] == b"\x1f\x8b",
        ".nii": start[344:348] == _NIFTI[0] or start[4:8] == _NIFTI[1],
        ".zip": start[:4] == b"PK\x03\x04",
    }
    suffix = name[32:]
    if not found[suffix]:
        raise CatalogError(f"the file is no {suffix}", about="upload", remedy="see whether it arrived whole, send it again")


def find(home: Path, name: str) -> str:
    """The path of an upload, as ``FileVolumes`` takes it: a NIfTI file, or the folder into which a zip was unpacked.

    CatalogError where there is none of this name (or no longer), or the zip is damaged or too large.
    """
    path = folder(home) / name
    if not _NAME.fullmatch(name) or not path.is_file():
        remedy = "send the file to /api/uploads and give the name that it answers; uploads are kept for a day"
        raise CatalogError("no such upload", about=name[:200], remedy=remedy)
    if not name.endswith(".zip"):
        return str(path)
    inside = [Path(member.path) for member in unpacked(listed(path), folder(home)) if not member.problem]
    if not inside:
        raise CatalogError("the zip holds no file", about=name, remedy="send one that holds a DICOM series")
    return str(folder(home) / inside[0].relative_to(folder(home)).parts[0])


def sweep(home: Path) -> int:
    """Remove what is older than a day, whole or half-sent; how many files and folders that were."""
    removed, oldest = 0, time.time() - KEPT_S
    for path in folder(home).glob("*"):
        with suppress(FileNotFoundError):  # another process was faster
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
                removed += 1
    return removed
