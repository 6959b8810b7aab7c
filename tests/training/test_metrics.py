"""Dice by structure."""

import numpy as np
import pytest

from experiments.synthetic import LABEL_SET
from training.metrics import dice_by_structure, mean_dice


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
