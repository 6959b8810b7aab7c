"""Diameters are the longest distance between corners of voxels, as trying all of them says."""

import numpy as np
import pytest

from catalog import measure
from catalog.measure import Box, boxes, diameter, in_plane_diameter, intensities

ANYWHERE = (slice(0), slice(0), slice(0))


def corners(inside: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    each = np.argwhere(inside)[:, None] + np.array(list(np.ndindex(2, 2, 2)))
    found: np.ndarray = each.reshape(-1, 3) * spacing
    return found


def longest(points: np.ndarray) -> float:
    return float(np.linalg.norm(points[:, None] - points[None], axis=-1).max())


@pytest.mark.parametrize("at_once", [1024, 16])  # 16: the hull is taken, and distances in several parts
def test_they_are_what_trying_every_corner_gives(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_AT_ONCE", at_once)
    rng = np.random.default_rng(1)
    for share in np.linspace(0.02, 1, 60):
        inside, spacing = rng.random(rng.integers(1, 8, 3)) < share, rng.uniform(0.4, 3, 3)
        inside.flat[0] = True
        box, points = Box(ANYWHERE, inside), corners(inside, spacing)
        assert diameter(box, spacing) == pytest.approx(longest(points), abs=1e-6)
        slices = [corners(inside[[index]], spacing)[:, 1:] for index in range(len(inside)) if inside[index].any()]
        assert in_plane_diameter(box, spacing) == pytest.approx(max(map(longest, slices)), abs=1e-6)


def test_of_a_sphere_and_a_plane_of_many_voxels() -> None:
    z, y, x = np.indices((101, 101, 101)) - 50
    sphere = Box(ANYWHERE, x**2 + y**2 + z**2 <= 50**2)
    assert diameter(sphere, np.ones(3)) == pytest.approx(100, abs=np.sqrt(3))
    assert in_plane_diameter(sphere, np.ones(3)) == pytest.approx(100, abs=np.sqrt(2))
    for plane in (x == 0, y == 0, z == 0, x == y):
        assert diameter(Box(ANYWHERE, plane), np.array([2.0, 1, 1])) <= longest(np.array([[0, 0, 0], [202, 101, 101]]))
        assert diameter(Box(ANYWHERE, plane), np.array([2.0, 1, 1])) >= np.hypot(101, 101)


def test_one_voxel_has_its_own_diagonal() -> None:
    box = Box(ANYWHERE, np.ones((1, 1, 1), bool))
    assert diameter(box, np.array([3.0, 4, 12])) == pytest.approx(13)
    assert in_plane_diameter(box, np.array([7.0, 3, 4])) == pytest.approx(5)


def test_boxes_are_where_a_structure_is() -> None:
    array = np.zeros((4, 5, 6), np.uint8)
    array[1:3, 2, 3:5] = 7
    array[1, 2, 3] = 2
    found = dict(boxes(array, {"seven": 7, "two": 2, "none": 3, "beyond": 200}))
    assert found["none"] is None and found["beyond"] is None
    assert found["seven"] is not None and found["seven"].voxels == 3
    assert found["seven"].place == (slice(1, 3), slice(2, 3), slice(3, 5))


def test_intensities_are_numpys() -> None:
    values = np.random.default_rng(2).normal(40, 20, 1001).astype(np.float32)
    found = intensities(values)
    assert found["mean"] == pytest.approx(values.mean(), rel=1e-5) and found["std"] == pytest.approx(values.std(), rel=1e-5)
    assert (found["min"], found["median"], found["max"]) == (values.min(), np.median(values), values.max())
    assert found["p10"] == pytest.approx(np.percentile(values, 10)) and found["p90"] == pytest.approx(np.percentile(values, 90))
