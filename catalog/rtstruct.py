"""RT Structure Sets (PS3.3 A.19): contours as label maps on the slices that they were drawn on.

A voxel belongs to an ROI where its centre lies inside: a point is inside where a ray from it crosses the ROI's contours in that
slice an odd number of times (even-odd), so a contour inside another is a hole, and so is what a keyhole's channel leads around.
Contours that overlap in part are one area together, unless they are CLOSEDPLANAR_XOR; one that is listed twice counts once.
Of a centre that lies exactly on an edge, the upper and left edges belong to the inside, as of pixels in the half-open interval.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from catalog.errors import CatalogError
from catalog.matching import Outlined

if TYPE_CHECKING:
    import highdicom as hd
    from pydicom import Dataset

__all__ = ["RT_STRUCTURE_SET", "enclosed", "inside", "label_map", "rois"]

RT_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_EXCLUSIVE = "CLOSEDPLANAR_XOR"
_PLANAR = ("CLOSED_PLANAR", _EXCLUSIVE)
_OFF_PLANE = 0.1
"""Slices that a contour may lie beside the plane of its slice: what rounding of decimals comes to."""


def rois(dataset: "Dataset") -> list[Outlined]:
    """The ROIs that have contours; one without was planned, and says nothing."""
    drawn = {int(roi.ReferencedROINumber) for roi in dataset.get("ROIContourSequence") or () if roi.get("ContourSequence")}
    codes = {}
    for observed in dataset.get("RTROIObservationsSequence") or ():
        for code in observed.get("RTROIIdentificationCodeSequence") or ():
            codes[int(observed.ReferencedROINumber)] = (str(code.get("CodingSchemeDesignator")), str(code.get("CodeValue")))
    return [
        Outlined(number, str(roi.get("ROIName") or ""), codes.get(number, ()))
        for roi in dataset.get("StructureSetROISequence") or ()
        if (number := int(roi.ROINumber)) in drawn
    ]


def label_map(
    dataset: "Dataset", like: "hd.Volume | hd.VolumeGeometry", values: Mapping[int, int], *, about: str = ""
) -> np.ndarray:
    """A label map (uint8) on the grid of ``like`` (slices first) of the ROIs in ``values``: ROI number → voxel value.

    Raises CatalogError where a contour is not closed and planar, lies between slices, beside a slice's plane or beyond the
    image, where an ROI is in another frame of reference, or where ROIs of different values overlap.
    """
    names = {int(roi.ROINumber): str(roi.get("ROIName") or "") for roi in dataset.get("StructureSetROISequence") or ()}
    _refuse_other_frame(dataset, like, values, about)
    painted = np.zeros(like.spatial_shape, np.uint8)
    to_index = np.linalg.inv(like.affine)
    for roi in dataset.get("ROIContourSequence") or ():
        number = int(roi.ReferencedROINumber)
        if number not in values:
            continue
        said = f"ROI {names.get(number, number)!r}"
        combined = inside if _is_exclusive(roi) else enclosed
        planes: dict[int, list[np.ndarray]] = defaultdict(list)
        for points in _contours(roi, said, about):
            place, outline = _on_slice(points, to_index, like.spatial_shape, said, about)
            planes[place].append(outline)
        for place, outlines in planes.items():
            drawn = combined(outlines, like.spatial_shape[1:])
            if other := set(np.unique(painted[place][drawn]).tolist()) - {0, values[number]}:
                against = [repr(names.get(n, str(n))) for n, value in values.items() if value in other]
                problem = f"{said} overlaps {' and '.join(against)} in slice {place + 1}"
                raise CatalogError(problem, about=about, remedy="a label map has one structure a voxel: take one of them")
            painted[place][drawn] = values[number]
    return painted


def enclosed(outlines: Sequence[np.ndarray], shape: Sequence[int]) -> np.ndarray:
    """As ``inside``, but outlines that overlap in part are one area together: only what lies within another is a hole."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    areas = sparse.vstack([sparse.csr_array(inside([one], shape).reshape(1, -1), dtype=np.int32) for one in outlines], "csr")
    shared, size = (areas @ areas.T).tocoo(), areas.sum(axis=1)
    first, second = shared.coords
    crossing = shared.data < np.minimum(size[first], size[second])  # neither lies within the other
    if not crossing.any():
        return inside(outlines, shape)
    links = sparse.coo_array((crossing[crossing], (first[crossing], second[crossing])), shared.shape)
    count, area = connected_components(links, directed=False)
    united = [areas[area == number].sum(axis=0) > 0 for number in range(count)]
    found: np.ndarray = np.logical_xor.reduce(united).reshape(*shape)
    return found


def inside(outlines: Sequence[np.ndarray], shape: Sequence[int]) -> np.ndarray:
    """Which pixel centres of a slice (rows, columns) lie inside ``outlines``, by the even-odd rule; bool.

    Each outline is an array (points, 2) of row and column, 0 the centre of the first pixel; its last point leads to its first.
    Each row is cut with each edge, and a crossing toggles the pixels right of it: exact, and in one pass over the edges, where
    the point-in-polygon tests of plotting libraries take edges times pixels.
    """
    rows, columns = shape
    toggled = np.zeros((rows, columns + 1), bool)
    for outline in outlines:
        start, end = outline, np.roll(outline, -1, axis=0)
        downwards = (start[:, 0] < end[:, 0])[:, None]
        upper, lower = np.where(downwards, start, end), np.where(downwards, end, start)
        first, last = (np.ceil(edge[:, 0]).clip(0, rows).astype(int) for edge in (upper, lower))
        cuts = last - first
        edge = np.repeat(np.arange(len(outline)), cuts)
        row = np.arange(cuts.sum()) - np.repeat(np.cumsum(cuts) - cuts, cuts) + first[edge]
        a, b = upper[edge], lower[edge]
        at = a[:, 1] + (row - a[:, 0]) * (b[:, 1] - a[:, 1]) / (b[:, 0] - a[:, 0])
        np.logical_xor.at(toggled, (row, np.ceil(at).clip(0, columns).astype(int)), True)
    found: np.ndarray = np.logical_xor.accumulate(toggled, axis=1)[:, :columns]
    return found


def _is_exclusive(roi: "Dataset") -> bool:
    return any(contour.get("ContourGeometricType") == _EXCLUSIVE for contour in roi.get("ContourSequence") or ())


def _contours(roi: "Dataset", said: str, about: str) -> Iterator[np.ndarray]:
    """The points (n, 3) in LPS mm of each contour; of those that are the same line, wherever it begins, one."""
    drawn = set()
    for contour in roi.get("ContourSequence") or ():
        kind = str(contour.get("ContourGeometricType") or "without a type")
        if kind not in _PLANAR:
            problem = f"{said} has a contour that is {kind}, which encloses nothing"
            raise CatalogError(problem, about=about, remedy="leave that ROI out, or draw it as closed contours")
        points = np.array(contour.get("ContourData") or (), float)
        if points.size % 3 or not np.isfinite(points).all():
            raise CatalogError(f"{said} has a contour of {points.size} numbers", about=about, remedy="mend the file")
        line = _line(points.reshape(-1, 3))
        if points.size and line not in drawn:
            drawn.add(line)
            yield points.reshape(-1, 3)


def _line(points: np.ndarray) -> frozenset[frozenset[tuple[float, ...]]]:
    """The edges of a closed contour: the same from whichever point, and whichever way around."""
    corners = [tuple(point) for point in points.tolist()]
    edges = zip(corners, corners[1:] + corners[:1], strict=True)
    return frozenset(frozenset(edge) for edge in edges if edge[0] != edge[1])


def _on_slice(points: np.ndarray, to_index: np.ndarray, shape: Sequence[int], said: str, about: str) -> tuple[int, np.ndarray]:
    """The slice that a contour lies on, and its points there as (row, column)."""
    indices = points @ to_index[:3, :3].T + to_index[:3, 3]
    along = indices[:, 0]
    place = round(float(along.mean()))
    if np.ptp(along) > 2 * _OFF_PLANE:
        problem = f"{said} has a contour across slices {along.min() + 1:.1f} to {along.max() + 1:.1f}: not in a slice's plane"
        raise CatalogError(problem, about=about, remedy="name the series that it was drawn on")
    if np.abs(along - place).max() > _OFF_PLANE:
        problem = f"{said} has a contour between the slices, at {along.mean() + 1:.2f}"
        raise CatalogError(problem, about=about, remedy="name the series that it was drawn on; nothing is resampled")
    # A centre just outside the image may not be enclosed: it would be lost.
    beyond = (indices[:, 1:].min(0) <= -1).any() or (indices[:, 1:].max(0) > np.array(shape[1:])).any()
    if beyond or not 0 <= place < shape[0]:
        raise CatalogError(f"{said} reaches beyond the image", about=about, remedy="name the series that it was drawn on")
    return place, indices[:, 1:]


def _refuse_other_frame(
    dataset: "Dataset", like: "hd.Volume | hd.VolumeGeometry", values: Mapping[int, int], about: str
) -> None:
    ours = like.frame_of_reference_uid
    for roi in dataset.get("StructureSetROISequence") or ():
        theirs = str(roi.get("ReferencedFrameOfReferenceUID") or "")
        if int(roi.ROINumber) in values and ours and theirs and ours != theirs:
            problem = f"ROI {str(roi.get('ROIName'))!r} is in the FrameOfReferenceUID {theirs}, the image in {ours}"
            raise CatalogError(problem, about=about, remedy="outline this series itself; nothing is resampled")
