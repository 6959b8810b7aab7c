"""Contours become the voxels whose centre they enclose, on the slice that they lie on."""

from collections.abc import Sequence

import highdicom as hd
import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from pydicom.dataset import Dataset

from catalog import CatalogError
from catalog.rtstruct import enclosed, inside, label_map, rois


def circle(row: float, column: float, radius: float, points: int = 400) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.c_[row + radius * np.sin(angle), column + radius * np.cos(angle)]


def test_a_circle_has_its_area() -> None:
    drawn = inside([circle(100.3, 99.6, 80.2)], (200, 201))
    assert drawn.sum() == pytest.approx(np.pi * 80.2**2, rel=1e-3)


def test_a_contour_within_another_is_a_hole() -> None:
    drawn = inside([circle(50, 50, 40), circle(50, 50, 20)], (101, 101))
    assert drawn.sum() == pytest.approx(np.pi * (40**2 - 20**2), rel=5e-3)
    assert not drawn[50, 50] and drawn[50, 80]


def test_a_keyhole_is_a_hole() -> None:
    """One contour: around, in by a channel, around the hole the other way, and out by the same channel."""
    outer, hole = circle(50, 50, 40.4), circle(50, 50, 20.4)
    keyhole = np.concatenate([outer, outer[:1], hole[:1], hole[::-1]])
    np.testing.assert_array_equal(inside([keyhole], (101, 101)), inside([outer, hole], (101, 101)))


def test_contours_that_overlap_in_part_are_one_area() -> None:
    one, other, hole = circle(50, 40, 30), circle(50, 60, 30), circle(50, 50, 5)
    both = inside([one], (101, 101)) | inside([other], (101, 101))
    np.testing.assert_array_equal(enclosed([one, other], (101, 101)), both)
    np.testing.assert_array_equal(enclosed([one, hole, other], (101, 101)), both & ~inside([hole], (101, 101)))


def test_a_contour_in_a_hole_is_an_island() -> None:
    nested = [circle(50, 50, 40), circle(50, 50, 30), circle(50, 45, 12), circle(50, 55, 12), circle(50, 90.5, 3)]
    island = inside(nested[2:3], (101, 101)) | inside(nested[3:4], (101, 101))
    rim = inside(nested[:1], (101, 101)) ^ inside(nested[1:2], (101, 101)) | inside(nested[4:], (101, 101))
    np.testing.assert_array_equal(enclosed(nested, (101, 101)), island | rim)


def test_apart_from_overlap_it_is_the_even_odd_rule() -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        row, column = rng.uniform(20, 40, 2)
        nested = [circle(row, column, radius, 40) for radius in sorted(rng.uniform(0.3, 19, 5))]
        apart = [np.array([[80, 2 + 9 * place], [86, 2 + 9 * place], [83, 8 + 9 * place]], float) for place in range(4)]
        outlines = [*nested, *apart]
        np.testing.assert_array_equal(enclosed(outlines, (90, 60)), inside(outlines, (90, 60)))


def test_it_is_what_a_point_in_polygon_test_says() -> None:
    rng = np.random.default_rng(5)
    centres = np.stack(np.indices((40, 50)), -1).reshape(-1, 2)
    for corners in (3, 4, 7, 30):
        polygon = rng.uniform(-5, 55, (corners, 2))  # crosses itself, and the border
        expected = Polygon(polygon).contains_points(centres).reshape(40, 50)
        np.testing.assert_array_equal(inside([polygon], (40, 50)), expected)


def test_pixels_on_an_edge_belong_to_one_of_two_neighbours() -> None:
    left = np.array([[2, 1], [2, 4], [6, 4], [6, 1]], float)
    right = left + np.array([0, 3])
    a, b = inside([left], (9, 9)), inside([right], (9, 9))
    assert not (a & b).any()
    assert (a | b).sum() == 4 * 6


GRIDS = {
    "axial": np.array([[0, 0, 0.8], [0, 0.9, 0], [-2.5, 0, 0]]),
    "sagittal": np.array([[3, 0, 0], [0, 0, 0.9], [0, -0.8, 0]]),
}


def grid(name: str) -> hd.VolumeGeometry:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = GRIDS[name], [-60.1, 33.3, 700]
    return hd.VolumeGeometry(affine, (6, 30, 40), "PATIENT", frame_of_reference_uid="1.2.3")


def structure_set(on: hd.VolumeGeometry, *contours: tuple[int, np.ndarray], kind: str = "CLOSED_PLANAR") -> Dataset:
    """ROIs ``one``, ``two``, …; each contour is of the ROI with its number, its points (slice, row, column)."""
    made = Dataset()
    numbers = sorted({number for number, _ in contours})
    made.StructureSetROISequence, made.ROIContourSequence = [], []
    for number in numbers:
        named, drawn = Dataset(), Dataset()
        named.ROINumber, named.ROIName = number, ("one", "two", "three")[number - 1]
        named.ReferencedFrameOfReferenceUID = on.frame_of_reference_uid
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for one, points in contours:
            if one == number:
                contour = Dataset()
                contour.ContourGeometricType = kind
                contour.ContourData = np.round(on.map_indices_to_reference(points), 3).ravel().tolist()
                contour.NumberOfContourPoints = len(points)
                drawn.ContourSequence.append(contour)
        made.StructureSetROISequence.append(named)
        made.ROIContourSequence.append(drawn)
    return made


def square(place: float, first: float = 4.5, last: float = 12.5) -> np.ndarray:
    corners: Sequence[tuple[float, float]] = ((first, first), (first, last), (last, last), (last, first))
    return np.array([(place, row, column) for row, column in corners])


@pytest.mark.parametrize("name", GRIDS)
def test_contours_lie_on_their_slice(name: str) -> None:
    on = grid(name)
    array = label_map(structure_set(on, (1, square(2)), (1, square(3)), (2, square(5, 20.5, 25.5))), on, {1: 7, 2: 1})
    expected = np.zeros(on.spatial_shape, np.uint8)
    expected[2:4, 5:13, 5:13] = 7
    expected[5, 21:26, 21:26] = 1
    np.testing.assert_array_equal(array, expected)


def test_what_does_not_fit_is_refused() -> None:
    on = grid("axial")
    tilted = square(2) + np.array([[0, 0, 0], [0, 0, 0], [0.8, 0, 0], [0.8, 0, 0]])
    for contours, why in [
        ([(1, square(2.5))], "between the slices, at 3.50"),
        ([(1, tilted)], "not in a slice's plane"),
        ([(1, square(6))], "beyond the image"),
        ([(1, square(2, -5, 5))], "beyond the image"),
        ([(1, square(2)), (2, square(2, 10.5, 20.5))], "'two' overlaps 'one' in slice 3"),
    ]:
        with pytest.raises(CatalogError, match=why):
            label_map(structure_set(on, *contours), on, {1: 1, 2: 2})  # type: ignore[arg-type]
    with pytest.raises(CatalogError, match="OPEN_PLANAR"):
        label_map(structure_set(on, (1, square(2)), kind="OPEN_PLANAR"), on, {1: 1})
    elsewhere = structure_set(on, (1, square(2)))
    elsewhere.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "9.9"
    with pytest.raises(CatalogError, match=r"FrameOfReferenceUID 9\.9"):
        label_map(elsewhere, on, {1: 1})


def test_rois_that_overlap_may_be_one_structure() -> None:
    on = grid("axial")
    array = label_map(structure_set(on, (1, square(2)), (2, square(2, 10.5, 20.5))), on, {1: 3, 2: 3})
    assert np.count_nonzero(array) == 8 * 8 + 10 * 10 - 2 * 2


def test_an_roi_without_contours_says_nothing() -> None:
    made = structure_set(grid("axial"), (1, square(2)), (2, square(3)))
    made.ROIContourSequence[1].ContourSequence = []
    assert [(one.number, one.name) for one in rois(made)] == [(1, "one")]


@pytest.mark.parametrize("again", [square(2), square(2)[::-1], np.roll(square(2), 1, axis=0)])
@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_a_contour_that_is_listed_twice_counts_once(again: np.ndarray, kind: str) -> None:
    on = grid("axial")
    closed = np.concatenate([again, again[:1]])
    array = label_map(structure_set(on, (1, square(2)), (1, again), (1, closed), kind=kind), on, {1: 1})
    assert np.count_nonzero(array) == 8 * 8


def test_overlap_is_taken_out_only_where_the_contours_say_so() -> None:
    on = grid("axial")
    drawn = (1, square(2)), (1, square(2, 10.5, 20.5))
    assert np.count_nonzero(label_map(structure_set(on, *drawn), on, {1: 1})) == 8 * 8 + 10 * 10 - 2 * 2
    exclusive = structure_set(on, *drawn, kind="CLOSEDPLANAR_XOR")
    assert np.count_nonzero(label_map(exclusive, on, {1: 1})) == 8 * 8 + 10 * 10 - 2 * 2 * 2
