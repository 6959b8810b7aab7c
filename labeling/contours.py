"""How much of a contour a reader had to draw."""

from typing import Any

import numpy as np
from scipy import ndimage

__all__ = ["added_path_length"]

_Array = np.ndarray[Any, Any]
_Box = tuple[slice, ...]
_IN_PLANE = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], bool)


def added_path_length(final: _Array, suggestion: _Array) -> int:
    """The added path length, in voxels: those of the contours of ``final`` that are not on the contours of ``suggestion``.

    Both are uint8 label maps, axes (slices, rows, columns). The contour of a structure in a slice is its voxels that have one
    of their four neighbours in the slice outside of it, or lie at the slice's edge; the sum is over structures and slices
    (Vaassen et al. 2020, doi:10.1016/j.phro.2019.12.001). What was erased adds nothing by itself, only the new contour there.
    """
    there = zip(ndimage.find_objects(final), ndimage.find_objects(suggestion, max_label=255), strict=False)
    return sum(_added(final, suggestion, value, *boxes) for value, boxes in enumerate(there, 1) if boxes[0])


def _added(final: _Array, suggestion: _Array, value: int, drawn: _Box, suggested: _Box | None) -> int:
    """That of one structure, looked at where either map has it: around that there is nothing, as at a slice's edge."""
    place = drawn if suggested is None else tuple(map(_joint, drawn, suggested))
    added = _contour(final[place] == value) & ~_contour(suggestion[place] == value)
    return int(np.count_nonzero(added))


def _joint(one: slice, other: slice) -> slice:
    return slice(min(one.start, other.start), max(one.stop, other.stop))


def _contour(structure: _Array) -> _Array:
    inner: _Array = ndimage.binary_erosion(structure, _IN_PLANE)
    contour: _Array = structure & ~inner
    return contour
