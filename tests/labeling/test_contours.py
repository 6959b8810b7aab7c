"""The added path length counts the contour that had to be drawn, and nothing else."""

import numpy as np
import pytest
from scipy import ndimage

from labeling.contours import added_path_length


def square(side: int, at: int = 2, value: int = 1) -> np.ndarray:
    mask = np.zeros((3, 12, 12), np.uint8)
    mask[1, at : at + side, at : at + side] = value
    return mask


def test_is_nothing_where_nothing_was_changed() -> None:
    assert added_path_length(square(5), square(5)) == 0


def test_is_the_whole_contour_where_nothing_was_suggested() -> None:
    assert added_path_length(square(5), np.zeros((3, 12, 12), np.uint8)) == 16


def test_counts_what_was_added_at_one_side_only() -> None:
    wider = square(5)
    wider[1, 2:7, 7] = 1
    # The new column is contour; of the old one its ends still are, and were before.
    assert added_path_length(wider, square(5)) == 5


def test_erasing_a_whole_structure_draws_nothing_and_erasing_a_part_draws_its_new_edge() -> None:
    assert added_path_length(np.zeros((3, 12, 12), np.uint8), square(5)) == 0
    assert added_path_length(square(3), square(5)) == 3 * 3 - 1 - 5  # two of its sides lie on the suggestion's


def test_counts_each_structure_for_itself() -> None:
    assert added_path_length(square(5, value=2), square(5, value=1)) == 16


def test_a_contour_at_the_edge_of_the_slice_is_one() -> None:
    full = np.ones((1, 4, 4), np.uint8)
    assert added_path_length(full, np.zeros_like(full)) == 12


@pytest.mark.parametrize("seed", range(5))
def test_is_never_more_than_the_contour_and_the_contour_never_more_than_the_voxels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    final, suggestion = (rng.integers(0, 3, (2, 9, 9), np.uint8) for _ in range(2))
    whole = added_path_length(final, np.zeros_like(final))
    assert 0 <= added_path_length(final, suggestion) <= whole <= np.count_nonzero(final)


def uncropped(final: np.ndarray, suggestion: np.ndarray) -> int:
    """By the definition, each structure over the whole of both maps."""

    def contour(structure: np.ndarray) -> np.ndarray:
        inner: np.ndarray = ndimage.binary_erosion(structure, np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], bool))
        return structure & ~inner

    values = set(np.unique(final).tolist()) - {0}
    return sum(int(np.count_nonzero(contour(final == value) & ~contour(suggestion == value))) for value in values)


@pytest.mark.parametrize("seed", range(20))
def test_is_the_same_wherever_the_structures_lie(seed: int) -> None:
    """Boxes that touch the borders, lie within one another or apart, and structures that only one map has."""
    rng = np.random.default_rng(seed)
    maps = np.zeros((2, 5, 14, 15), np.uint8)
    for drawn in maps:
        for _ in range(6):
            corner, size = rng.integers(-3, 14, 3), rng.integers(1, 12, 3)
            place = tuple(slice(max(0, at), max(0, at + side)) for at, side in zip(corner - [4, 0, 0], size, strict=True))
            drawn[place] = rng.choice([0, 1, 2, 7, 255])
    assert added_path_length(*maps) == uncropped(*maps)


def test_looks_at_a_structure_only_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Label sets have a hundred structures, and volumes a hundred million voxels."""
    eroded, erosion = [], ndimage.binary_erosion

    def count(structure: np.ndarray, *given: np.ndarray) -> np.ndarray:
        eroded.append(structure.size)
        return np.asarray(erosion(structure, *given))

    monkeypatch.setattr(ndimage, "binary_erosion", count)
    assert added_path_length(square(3), square(5)) == 3
    assert eroded == [5 * 5, 5 * 5]
