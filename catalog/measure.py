"""What can be measured of a structure in a label map: how large it is, and what the image shows inside it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["INTENSITIES", "Box", "boxes", "diameter", "in_plane_diameter", "intensities"]

INTENSITIES = ("mean", "std", "min", "max", "median", "p10", "p90")

_AT_ONCE = 1024  # points whose distances to all others are in memory together


@dataclass(frozen=True)
class Box:
    """The part of a label map where a structure is: ``place`` are the slices of each axis, ``inside`` (bool) which voxels of
    it are the structure's."""

    place: tuple[slice, slice, slice]
    inside: np.ndarray

    @property
    def voxels(self) -> int:
        """How many voxels the structure has."""
        return int(np.count_nonzero(self.inside))


def boxes(array: np.ndarray, values: Mapping[str, int]) -> Iterator[tuple[str, Box | None]]:
    """Each structure of ``values`` (name → voxel value) and its box in a uint8 label map, None where it has no voxel."""
    from scipy.ndimage import find_objects

    found = find_objects(array)
    for name, value in values.items():
        place = found[value - 1] if value <= len(found) else None
        yield name, None if place is None else Box(place, array[place] == value)


def diameter(box: Box, spacing: np.ndarray) -> float:
    """The longest distance (mm) between two corners of the structure's voxels, of ``spacing`` (mm) along the array's axes.

    As a caliper measures around it: one voxel has its own diagonal.
    """
    return _longest(_ends(box.inside), np.asarray(spacing, float))


def in_plane_diameter(box: Box, spacing: np.ndarray) -> float:
    """As ``diameter``, the longest within one slice (the array's first axis)."""
    longest, between = 0.0, np.asarray(spacing, float)[1:]
    ends = [points[:, 1:] for points in map(_ends, box.inside[:, None]) if len(points)]
    reach = [float(np.linalg.norm((np.ptp(points, axis=0) + 1) * between)) for points in ends]
    for index in np.argsort(reach)[::-1]:  # the diagonal of what surrounds it is at least as long
        if reach[index] <= longest:
            break
        longest = max(longest, _longest(ends[index], between))
    return longest


def intensities(values: np.ndarray) -> dict[str, float]:
    """INTENSITIES of the image's ``values`` inside a structure, in the image's unit; percentiles interpolated linearly."""
    p10, median, p90 = np.percentile(values, [10, 50, 90])
    found = {"mean": values.mean(dtype=np.float64), "std": values.std(dtype=np.float64), "min": values.min()}
    found |= {"max": values.max(), "median": median, "p10": p10, "p90": p90}
    return {name: float(found[name]) for name in INTENSITIES}


def _ends(inside: np.ndarray) -> np.ndarray:
    """The first and the last voxel (n, 3) of each line along the last axis: no other voxel is an extreme point."""
    lines = inside.any(-1)
    first = inside.argmax(-1)[lines]
    last = inside.shape[-1] - 1 - inside[..., ::-1].argmax(-1)[lines]
    places = np.argwhere(lines)
    return np.concatenate([np.c_[places, first], np.c_[places, last]])


def _longest(voxels: np.ndarray, spacing: np.ndarray) -> float:
    """The longest distance between corners of ``voxels`` (indices): |Δ| along each axis and a voxel more."""
    points = _hull(voxels.astype(float) * spacing)
    centre = points.mean(0)
    radius = np.linalg.norm(points - centre, axis=1)
    order = np.argsort(-radius)
    points, radius = points[order], radius[order]
    longest, diagonal = 0.0, float(np.linalg.norm(spacing))
    for start in range(0, len(points), _AT_ONCE):
        # No two points are further apart than their distances from any third together: the rest is too near.
        if 2 * radius[start] + diagonal <= longest:
            break
        rest = points[start : int(np.searchsorted(-radius, radius[start] + diagonal - longest, "right"))]
        apart = sum(
            (np.abs(points[start : start + _AT_ONCE, None, axis] - rest[None, :, axis]) + spacing[axis]) ** 2
            for axis in range(len(spacing))
        )
        longest = max(longest, float(np.sqrt(np.max(apart))))
    return longest


def _hull(points: np.ndarray) -> np.ndarray:
    """The corners of the convex hull, or all points where they are few or lie in a line: the furthest are among them."""
    from scipy.spatial import ConvexHull, QhullError

    if len(points) <= _AT_ONCE:
        return points
    flat = np.ptp(points, axis=0) == 0
    try:
        corners = ConvexHull(points[:, ~flat]).vertices
    except QhullError:  # in an oblique plane
        corners = ConvexHull(points, qhull_options="QJ").vertices
    found: np.ndarray = points[corners]
    return found
