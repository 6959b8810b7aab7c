"""Voxels that were drawn on one grid, on another of the same place: turned, flipped, cut and padded, never resampled."""

from typing import TYPE_CHECKING

import numpy as np

from catalog.errors import CatalogError

if TYPE_CHECKING:
    import highdicom as hd

__all__ = ["placed"]

_APART = 0.1
"""Voxels of the image that a corner may lie beside its place: what rounding in headers comes to over a volume."""


def placed(drawn: "hd.Volume", like: "hd.Volume | hd.VolumeGeometry", *, about: str) -> np.ndarray:
    """The array of ``drawn`` (any dtype, index → LPS mm) on the grid of ``like``; zero where ``drawn`` does not reach.

    Raises CatalogError, which says why, where the two have other frames of reference, directions or spacings, where voxels lie
    between those of ``like``, or where one that is not zero lies outside.
    """
    problem = _in_another_frame(drawn, like)
    if not problem:
        try:
            found = drawn.match_geometry(like, tol=_APART)
        except RuntimeError:
            problem = _why(drawn, like)
        else:
            problem = "" if _same_place(found, like) and _as_large(drawn, like) else _why(drawn, like)
    if problem:
        remedy = "outline this series itself; nothing is resampled"
        raise CatalogError(f"it does not lie on the image's grid: {problem}", about=about, remedy=remedy)
    if lost := np.count_nonzero(drawn.array) - np.count_nonzero(found.array):
        raise CatalogError(
            f"{lost} of its voxels lie beyond the image", about=about, remedy="name the series that it was drawn on"
        )
    return np.asarray(found.array)


def _in_another_frame(drawn: "hd.Volume", like: "hd.Volume | hd.VolumeGeometry") -> str:
    ours, theirs = like.frame_of_reference_uid, drawn.frame_of_reference_uid
    return f"its FrameOfReferenceUID is {theirs}, the image's {ours}" if ours and theirs and ours != theirs else ""


def _same_place(found: "hd.Volume", like: "hd.Volume | hd.VolumeGeometry") -> bool:
    """Whether each corner of one is that of the other."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(like.spatial_shape) - 1)
    there = np.linalg.inv(like.affine) @ found.affine @ np.c_[corners, np.ones(8)].T
    return found.spatial_shape == like.spatial_shape and bool(np.abs(there[:3].T - corners).max() <= _APART)


def _as_large(drawn: "hd.Volume", like: "hd.Volume | hd.VolumeGeometry") -> bool:
    """Whether a voxel of one is a voxel of the other: of a finer grid every second voxel would fit, too."""
    return bool(np.isclose(drawn.voxel_volume, like.voxel_volume, rtol=_APART))


def _why(drawn: "hd.Volume", like: "hd.Volume | hd.VolumeGeometry") -> str:
    turns = np.abs(np.array(drawn.unit_vectors()) @ np.array(like.unit_vectors()).T)
    if (turns.max(1) < 0.9999).any():
        return "its axes are turned against the image's"
    spacing = np.array(drawn.spacing)[turns.argmax(0)]
    if not np.allclose(spacing, like.spacing, rtol=1e-3):
        said = (" × ".join(f"{length:g}" for length in lengths) for lengths in (spacing, like.spacing))
        return f"its spacing is {next(said)} mm, the image's {next(said)} mm"
    return "its voxels lie between the image's"
