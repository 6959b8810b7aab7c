"""NIfTI images as volumes: RAS → LPS, axes (slices, rows, columns), what is no regular volume is refused with the reason.

And their headers alone, as the catalog's rows hold them.
"""

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog.errors import CatalogError
from catalog.files import open_binary

if TYPE_CHECKING:
    import highdicom as hd

__all__ = ["SHEAR", "is_nifti", "lps_affine", "nifti_header", "open_nifti", "read_nifti", "right_angled", "voxels"]

SHEAR = 1e-4
"""The largest cosine between two axes that counts as rounding of a right angle."""

_HEADER = 540
"""Bytes of a NIfTI-2 header; those of NIfTI-1 are 348."""

_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}


def open_nifti(path: Path) -> Any:
    """The nibabel image, header read and voxels not; CatalogError unless it is one 3-D image with right angles."""
    import nibabel

    try:
        image: Any = nibabel.load(path)
        shape, affine = image.shape, image.affine
    except FileNotFoundError:
        raise CatalogError("no such file", about=str(path), remedy="check the path") from None
    except Exception as problem:  # nibabel raises many kinds for a broken header
        raise CatalogError(f"not a NIfTI image: {_line(problem)}", about=str(path), remedy=_AGAIN) from None
    if len(shape) > 3 and all(extent == 1 for extent in shape[3:]):
        shape = shape[:3]
    if len(shape) != 3:
        remedy = "write each volume or channel to a file of its own"
        raise CatalogError(f"the image has {len(shape)} dimensions, not 3", about=str(path), remedy=remedy)
    if 0 in shape or image.get_data_dtype().fields is not None:
        raise CatalogError("the image is empty or in colour", about=str(path), remedy="bring a grey-value image")
    _refuse_shear(affine[:3, :3], path)
    return image


def is_nifti(path: str | os.PathLike[str]) -> bool:
    """Whether the file or URL begins with a NIfTI-1 or NIfTI-2 header, gzipped or not, whatever its name. Raises OSError.

    Of a pair the header (``.hdr``) is one, the voxels (``.img``) are not.
    """
    return bool(_version(_begins(path)))


def nifti_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The header as a JSON object, without reading voxels: the fields by their names in nifti1.h or nifti2.h, and

    ``format`` (``NIfTI-1``, ``NIfTI-2``), ``byte_order``, ``pair`` (whether the voxels lie in an ``.img``), ``shape``,
    ``dtype`` (NumPy's name of ``datatype``), ``units`` (space, time), ``intent`` (its name), and ``affine``, from voxel
    (i, j, k) to RAS in ``units``, row by row, by sform, else qform, else pixdim: ``affine_from`` says which. Numbers that JSON
    cannot hold are the strings ``NaN``, ``Infinity``, ``-Infinity``. CatalogError where it is not NIfTI, broken, or the file
    is cut short (of a gzipped one only the beginning is looked at).
    """
    import nibabel

    begins = _begins(path)
    version, about = _version(begins), str(path)
    if not version:
        raise CatalogError("not a NIfTI file", about=about)
    kind, length = (nibabel.Nifti1Header, 348) if version == 1 else (nibabel.Nifti2Header, 540)
    try:
        header = kind(begins[:length], check=False)
        found = {name: _plain(header[name]) for name in header.keys()}  # noqa: SIM118
        found |= _derived(header, version)
    except Exception as problem:  # nibabel raises many kinds for a broken header
        raise CatalogError(f"broken NIfTI header: {_line(problem)}", about=about, remedy=_AGAIN) from None
    dims = int(header["dim"][0])
    if not 1 <= dims <= 7 or min(header["dim"][1 : dims + 1]) < 1:
        raise CatalogError(f"broken NIfTI header: dimensions {found['dim']}", about=about, remedy=_AGAIN)
    needed = (
        0
        if found["pair"]
        else max(int(header["vox_offset"]), length) + header.get_data_dtype().itemsize * math.prod(found["shape"])
    )
    with open_binary(path) as file:
        if not begins.gzipped and (lacking := needed - file.seek(0, os.SEEK_END)) > 0:
            raise CatalogError(f"the file ends {lacking} bytes before its voxels do", about=about, remedy=_AGAIN)
    return found


class _Begins(bytes):
    """A file's first bytes, inflated where it is gzipped."""

    gzipped = False


def _begins(path: str | os.PathLike[str]) -> _Begins:
    with open_binary(path) as file:
        begins = _Begins(file.read(_HEADER))
        if not begins.startswith(b"\x1f\x8b"):
            return begins
        file.seek(0)
        try:
            with gzip.GzipFile(fileobj=file) as inflated:
                begins = _Begins(inflated.read(_HEADER))
        except (EOFError, zlib.error, gzip.BadGzipFile):
            begins = _Begins()
        begins.gzipped = True
        return begins


def _version(begins: bytes) -> int:
    """1 or 2 where a NIfTI header of that version begins so, else 0."""
    if begins[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c") and begins[344:348] in (b"n+1\0", b"ni1\0"):
        return 1
    magic = begins[4:12] in (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n")
    return 2 if magic and len(begins) >= _HEADER and begins[:4] in (b"\x1c\2\0\0", b"\0\0\2\x1c") else 0


def _derived(header: Any, version: int) -> dict[str, Any]:
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    return {
        "format": f"NIfTI-{version}",
        "byte_order": "big" if header.endianness == ">" else "little",
        "pair": bytes(header["magic"])[:2] == b"ni",
        "shape": [int(extent) for extent in header.get_data_shape()],
        "dtype": header.get_data_dtype().newbyteorder("=").name,
        "units": list(header.get_xyzt_units()),
        "intent": header.get_intent()[0],
        "affine": _plain(header.get_best_affine()),
        "affine_from": "sform" if sform > 0 else "qform" if qform > 0 else "pixdim",
    }


def _plain(value: Any) -> Any:
    """A header's field as JSON holds it."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.partition(b"\0")[0].decode("utf-8", "replace")
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def lps_affine(image: Any) -> np.ndarray:
    """Affine from (slice, row, column) indices to LPS mm (float64) of an image with the axes (column, row, slice)."""
    scale = _MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
    affine = np.diag([-scale, -scale, scale, 1.0]) @ np.asarray(image.affine, dtype=np.float64)
    return affine[:, [2, 1, 0, 3]]


def voxels(image: Any, path: Path) -> np.ndarray:
    """The scaled voxels as stored, axes (slices, rows, columns); CatalogError where the file is cut short."""
    try:
        array: np.ndarray = np.asanyarray(image.dataobj)
    except Exception as problem:  # zlib, gzip and numpy each raise their own kind
        raise CatalogError(f"the voxels cannot be read: {_line(problem)}", about=str(path), remedy=_AGAIN) from None
    array = array.reshape(array.shape[:3])
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        lost = int(np.count_nonzero(~np.isfinite(array)))
        remedy = "replace them, as by numpy.nan_to_num"
        raise CatalogError(f"{lost} voxels are not finite numbers", about=str(path), remedy=remedy)
    if array.dtype.kind not in "fiu":
        raise CatalogError(f"voxels of type {array.dtype} are not grey values", about=str(path))
    return array.transpose(2, 1, 0)


def read_nifti(path: Path) -> "hd.Volume":
    """The image of a NIfTI file as float32; CatalogError as open_nifti and voxels."""
    import highdicom as hd

    image = open_nifti(path)
    array = np.ascontiguousarray(voxels(image, path), dtype=np.float32)
    return hd.Volume(array, right_angled(lps_affine(image)), "PATIENT")


def right_angled(affine: np.ndarray) -> np.ndarray:
    """``affine`` with the rounding of its angles taken out: the nearest with orthogonal axes and the same lengths."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / lengths)
    exact = affine.copy()
    exact[:3, :3] = (left @ right) * lengths
    return exact


def _refuse_shear(axes: np.ndarray, path: Path) -> None:
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(axes).all() or lengths.min() < 1e-9:
        raise CatalogError("the affine has an axis without length", about=str(path), remedy="mend the NIfTI header")
    cosines = (axes / lengths).T @ (axes / lengths) - np.eye(3)
    if np.abs(cosines).max() > SHEAR:
        problem = (
            f"the affine is sheared: its axes are {np.degrees(np.arcsin(min(np.abs(cosines).max(), 1))):.3f}° off a right angle"
        )
        remedy = "resample the image to right-angled axes; a DICOM series cannot hold a shear"
        raise CatalogError(problem, about=str(path), remedy=remedy)


_AGAIN = "the file may be cut short or of another kind; copy or download it again"


def _line(problem: Any) -> str:
    return " ".join(str(problem).split())[:160]
