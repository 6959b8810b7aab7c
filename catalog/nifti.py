"""NIfTI images as volumes: RAS → LPS, axes (slices, rows, columns), what is no regular volume is refused with the reason."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog.errors import CatalogError

if TYPE_CHECKING:
    import highdicom as hd

__all__ = ["SHEAR", "lps_affine", "open_nifti", "read_nifti", "right_angled", "voxels"]

SHEAR = 1e-4
"""The largest cosine between two axes that counts as rounding of a right angle."""

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
