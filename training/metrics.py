"""How well a label map agrees with another."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from catalog.labelset import Structure

__all__ = ["dice_by_structure", "mean_dice"]


def dice_by_structure(
    pred: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], structures: Sequence[Structure], states: Mapping[str, str]
) -> dict[str, float | None]:
    """Dice coefficient 2|P∩T| / (|P|+|T|) of each structure between two label maps of one shape.

    None for a structure whose state is neither ``present`` nor ``absent``; 1 where both maps are without it.
    """
    known = [s for s in structures if states.get(s.name) in ("present", "absent")]
    return {s.name: _dice(pred == s.value, truth == s.value) if s in known else None for s in structures}


def mean_dice(dices: Mapping[str, float | None]) -> float | None:
    """The mean over the structures that have a value; None where none has."""
    known = [value for value in dices.values() if value is not None]
    return sum(known) / len(known) if known else None


def _dice(pred: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    total = int(pred.sum()) + int(truth.sum())
    return 2 * int((pred & truth).sum()) / total if total else 1.0
