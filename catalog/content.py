"""What a file is by its first bytes: an archive, or why it is not in the catalog as an image."""

import bz2
import codecs
import gzip
import lzma
import os
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from catalog._tar import BLOCK, is_tar
from catalog.errors import CatalogError
from catalog.files import open_binary
from catalog.nifti import is_nifti
from catalog.walk import BrokenHeader, walk

__all__ = ["archive_kind", "describe", "inflater", "kind_of"]

_HEAD = 1024
"""Bytes that are looked at."""

_COMPRESSED: dict[str, tuple[bytes, Any]] = {
    "gzip": (b"\x1f\x8b\x08", gzip.open),
    "bzip2": (b"BZh", bz2.open),
    "xz": (b"\xfd7zXZ\0", lzma.open),
}
_DOCUMENTS = (b"[Content_Types].xml", b"mimetype", b"META-INF/")

_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 image",
    b"\0\0\0\x0cJXL ": "a JPEG XL image",
    b"GIF8": "a GIF image",
    b"BM": "a BMP image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"%PDF-": "a PDF document",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an Office document",
    b"NRRD000": "an NRRD image",
    b"ObjectType =": "a MetaImage header",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"PAR1": "a Parquet file",
    b"SQLite format 3\0": "a SQLite database",
    b"\x7fELF": "a program",
    b"MZ": "a Windows program",
    b"PK": "a document, a program or data in a zip, or a part of one",
    b"\x1f\x8b": "a gzip file",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive, which is not unpacked",
    b"Rar!\x1a\x07": "a RAR archive, which is not unpacked",
    b"\x28\xb5\x2f\xfd": "a Zstandard file, which is not unpacked",
    b"\x5c\x01\0\0": "an Analyze 7.5 header, which does not say which side is left",
    b"\0\0\x01\x5c": "an Analyze 7.5 header, which does not say which side is left",
}
_TEXTS = {
    b"{": "a JSON file",
    b"[": "a JSON file",
    b"<?xml": "an XML file",
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
}
_SUFFIXES = {"csv": "a CSV file", "tsv": "a TSV file", "md": "a Markdown file", "json": "a JSON file", "yaml": "a YAML file"}


def archive_kind(path: str | os.PathLike[str]) -> str:
    """``zip``, ``tar``, ``gzip``, ``bzip2`` or ``xz`` (a compressed tar is ``tar``), else "". By content. Raises OSError.

    Not taken for archives: a compressed NIfTI, and documents and programs that happen to be zips (Office, Java, NumPy).
    """
    with open_binary(path) as file:
        begins = file.read(_HEAD)
        if begins[128:132] == b"DICM":
            return ""
        if begins.startswith((b"PK\3\4", b"PK\5\6")):
            first = begins[30 : 30 + int.from_bytes(begins[26:28], "little")]
            return "" if first.startswith(_DOCUMENTS) or first.endswith(b".npy") else "zip"
        kind = next((kind for kind, (magic, _) in _COMPRESSED.items() if begins.startswith(magic)), "")
        if kind:
            file.seek(0)
            try:
                begins = inflater(begins)(file).read(BLOCK)
            except (EOFError, OSError, zlib.error, lzma.LZMAError):
                begins = b""
    if is_tar(begins):
        return "tar"
    return "" if kind and is_nifti(path) else kind


def inflater(begins: bytes) -> Callable[[BinaryIO], Any]:
    """What gives the stream that is compressed in a file which begins so; the file itself where it is not compressed."""
    return next((opened for magic, opened in _COMPRESSED.values() if begins.startswith(magic)), lambda file: file)


def kind_of(path: str | os.PathLike[str]) -> str:
    """``dicom``, ``nifti``, the kind of an archive, or ``other``; ``other`` too where it cannot be read."""
    try:
        with open_binary(path) as file:
            begins = file.read(132)
        if begins[128:] == b"DICM":
            return "dicom"
        if kind := "nifti" if is_nifti(path) else archive_kind(path):
            return kind
        walk(path)
    except BrokenHeader:
        return "dicom"
    except (OSError, CatalogError):
        return "other"
    return "dicom"


def describe(path: str | os.PathLike[str]) -> str:
    """What the file is, in a few words, as the reason why it has no DICOM row: ``a PNG image, not DICOM``. Raises OSError."""
    with open_binary(path) as file:
        begins = file.read(_HEAD)
    if not begins:
        return "the file is empty"
    name = os.fspath(path).lower()
    kind = next((kind for magic, kind in _MAGIC.items() if begins.startswith(magic)), "")
    if not kind and begins[4:8] == b"ftyp":
        kind = "a video or an HEIF image"
    if not kind and name.endswith(".img"):
        kind = "the voxels to a header of the same name (.hdr), or the image of a disk"
    return f"{kind or _text(begins, name) or 'a file of unknown kind'}, not DICOM"


def _text(begins: bytes, name: str) -> str:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(begins)
    except UnicodeDecodeError:
        return ""
    if any(byte < 9 for byte in begins):
        return ""
    start = begins.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    by_content = next((kind for magic, kind in _TEXTS.items() if start.startswith(magic)), "a text file")
    return _SUFFIXES.get(name.rpartition(".")[2], by_content)
