"""Dice by structure, and what is said of one structure of one case."""

import numpy as np
import pytest
import torch

from experiments.synthetic import LABEL_SET
from training.metrics import TOLERANCE, dice_by_structure, mean_dice, structure_metrics

SPACING = (4.0, 1.0, 0.5)


def box(*corner: int) -> torch.Tensor:
    """4 × 8 × 10 voxels with their first voxel at ``corner``."""
    drawn = torch.zeros(20, 30, 40, dtype=torch.bool)
    z, y, x = corner
    drawn[z : z + 4, y : y + 8, x : x + 10] = True
    return drawn


def test_overlap_absence_and_silence() -> None:
    truth = np.array([1, 1, 1, 0, 2, 0])
    pred = np.array([1, 1, 0, 0, 0, 0])
    states = {"liver": "present", "spleen": "present"}
    found = dice_by_structure(pred, truth, LABEL_SET.structures, states)
    assert found == {"liver": pytest.approx(0.8), "spleen": 0.0}
    silent = dice_by_structure(pred, truth, LABEL_SET.structures, states | {"spleen": "not_annotated"})
    assert dice_by_structure(pred, truth, LABEL_SET.structures, {"liver": "present"})["spleen"] is None
    assert silent["spleen"] is None
    assert mean_dice(silent) == pytest.approx(0.8)
    assert dice_by_structure(pred, truth * (truth == 1), LABEL_SET.structures, {"spleen": "absent"})["spleen"] == 1.0
    assert mean_dice({"liver": None}) is None


def test_the_same_is_perfect() -> None:
    found = structure_metrics(box(5, 5, 5), box(5, 5, 5), SPACING)
    assert found == {"dice": 1.0, "hd95": 0.0, "surface_dice": pytest.approx(1.0), "missed": 0.0}


@pytest.mark.parametrize(("moved", "mm"), [((6, 5, 5), 4.0), ((5, 8, 5), 3.0), ((5, 5, 11), 3.0), ((5, 5, 7), 1.0)])
def test_distances_are_in_mm_along_each_axis(moved: tuple[int, int, int], mm: float) -> None:
    found = structure_metrics(box(*moved), box(5, 5, 5), SPACING)
    assert found["hd95"] == pytest.approx(mm)
    assert (found["surface_dice"] > 0.999) == (mm <= TOLERANCE)


def test_flat_images_have_distances_too() -> None:
    one, other = torch.zeros(1, 30, 40, dtype=torch.bool), torch.zeros(1, 30, 40, dtype=torch.bool)
    one[0, 5:15, 5:15] = other[0, 8:18, 5:15] = True
    assert structure_metrics(one, other, SPACING)["hd95"] == pytest.approx(3.0)


def test_what_is_not_there_costs_its_volume() -> None:
    nothing = torch.zeros(20, 30, 40, dtype=torch.bool)
    assert structure_metrics(box(5, 5, 5), nothing, SPACING) == {"dice": 0.0, "fp_ml": pytest.approx(320 * 2 / 1000)}
    assert structure_metrics(nothing, nothing, SPACING) == {"dice": 1.0, "fp_ml": 0.0}


def test_a_missed_structure_has_no_distance() -> None:
    assert structure_metrics(torch.zeros(20, 30, 40, dtype=torch.bool), box(5, 5, 5), SPACING) == {
        "dice": 0.0,
        "surface_dice": 0.0,
        "missed": 1.0,
    }
