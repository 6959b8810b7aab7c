"""Slices that are no regular grid, interpolated onto one: a tilted gantry straightened, uneven steps evened out."""

from typing import TYPE_CHECKING

import numpy as np

from catalog.planes import UNEVEN

if TYPE_CHECKING:
    from catalog.planes import Planes

__all__ = ["straightened"]


def straightened(planes: "Planes", voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``voxels`` of ``planes`` as float32 on a regular grid with right angles, and its affine (index → LPS mm).

    Pixels keep size and direction, and the first slice its pixels' places; the grid is as much larger as the slices lie beside
    each other, and has the lowest value where no slice reaches. Its step is the smallest where the others are its multiples
    (slices are missing), else the median. Each slice is shifted by what its own position says, within the plane, and the
    shifted ones are interpolated along the normal, all linearly; a slice that lies on the grid comes through as it is.
    """
    step = float(planes.steps.min() if planes.missing else np.median(planes.steps))
    if np.abs(planes.steps - planes.steps.mean()).max() <= UNEVEN * planes.steps.mean():
        step = float(planes.steps.mean())
    count = int(np.floor(planes.distances[-1] / step + UNEVEN)) + 1
    shifts = planes.offsets / planes.pixel  # in pixels, down and along
    shifts = np.where(np.abs(shifts - np.rint(shifts)) < 1e-6, np.rint(shifts), shifts)
    low, high = np.floor(shifts.min(axis=0)).astype(int), np.ceil(shifts.max(axis=0)).astype(int)
    rows, columns = np.array(voxels.shape[1:]) + high - low
    outside = float(voxels.min())
    found = np.empty((count, rows, columns), np.float32)
    moved: dict[int, np.ndarray] = {}
    for number in range(count):
        below, part = _between(planes.distances, number * step)
        for index in (below, below + 1):
            if index not in moved and (index == below or part > 0):
                moved[index] = _shifted(voxels[index], shifts[index] - low, (rows, columns), outside)
        moved = {index: plane for index, plane in moved.items() if index >= below}
        found[number] = moved[below] if part == 0 else (1 - part) * moved[below] + part * moved[below + 1]
    affine = planes.affine
    affine[:3, 0] = planes.normal * step
    affine[:3, 3] += low[0] * planes.row_step + low[1] * planes.column_step
    return found, affine


def _between(distances: np.ndarray, at: float) -> tuple[int, float]:
    """(the slice below ``at``, how far ``at`` is towards the next, 0 to below 1)."""
    below = int(np.clip(np.searchsorted(distances, at, side="right") - 1, 0, len(distances) - 1))
    nearest = int(np.abs(distances - at).argmin())
    gap = float(np.diff(distances).min())
    if abs(distances[nearest] - at) <= UNEVEN * gap:
        return nearest, 0.0
    if below == len(distances) - 1:
        return below, 0.0
    return below, float((at - distances[below]) / (distances[below + 1] - distances[below]))


def _shifted(plane: np.ndarray, shift: np.ndarray, shape: tuple[int, int], outside: float) -> np.ndarray:
    """``plane`` moved by ``shift`` pixels (down, along) into a larger one."""
    from scipy.ndimage import affine_transform

    moved: np.ndarray = affine_transform(
        plane.astype(np.float64), np.ones(2), offset=-shift, output_shape=shape, order=1, mode="constant", cval=outside
    )
    return moved
