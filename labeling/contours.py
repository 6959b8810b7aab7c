"""How much of a contour a reader had to draw."""

from typing import Any

import numpy as np
from scipy import ndimage

__all__ = ["added_path_length"]

_IN_PLANE = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], bool)


def added_path_length(final: "np.ndarray[Any, Any]", suggestion: "np.ndarray[Any, Any]") -> int:
    """The added path length, in voxels: those of the contours of ``final`` that are not on the contours of ``suggestion``.

    Both are uint8 label maps, axes (slices, rows, columns). The contour of a structure in a slice is its voxels that have one
    of their four neighbours in the slice outside of it, or lie at the slice's edge; the sum is over structures and slices
    (Vaassen et al. 2020, doi:10.1016/j.phro.2019.12.001). What was erased adds nothing by itself, only the new contour there.
    """
    values = set(np.unique(final).tolist()) - {0}
    return sum(int(np.count_nonzero(_contour(final == value) & ~_contour(suggestion == value))) for value in values)


def _contour(structure: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    inner: np.ndarray[Any, Any] = ndimage.binary_erosion(structure, _IN_PLANE)
    contour: np.ndarray[Any, Any] = structure & ~inner
    return contour
