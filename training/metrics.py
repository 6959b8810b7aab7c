"""How well a label map agrees with another: Dice, and by case and structure what a reader would want to know of a contour.

Distances are in mm and go from surface to surface (MONAI's, by Euclidean distance transforms of the voxels' edges).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from catalog.labelset import Structure

__all__ = ["TOLERANCE", "dice_by_structure", "mean_dice", "structure_metrics"]

TOLERANCE = 2.0
"""mm by which a surface may lie beside the label's and still agree: of the order of what readers differ by (Nikolov et al.,
"Clinically Applicable Segmentation of Head and Neck Anatomy", J Med Internet Res 23, 2021, use 1 to 4 mm by organ)."""


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


def structure_metrics(pred: torch.Tensor, truth: torch.Tensor, spacing: Sequence[float]) -> dict[str, float]:
    """One structure of one case: ``pred`` and ``truth`` are (D, H, W) bool on one grid of ``spacing`` mm (z, y, x).

    Where the label has the structure: ``dice``; ``hd95``, the 95th percentile of the distances between the surfaces, the worse
    of both ways, in mm; ``surface_dice``, the share of both surfaces that lies within TOLERANCE of the other (Nikolov et al.);
    ``missed``, 1 where nothing was predicted: ``hd95`` is then undefined and left out, the others are 0. Where the label is
    without it: ``fp_ml``, the volume that was predicted all the same, in ml, and ``dice``, 1 where that is nothing, else 0.
    """
    if not truth.any():
        false = int(pred.sum())
        return {"dice": float(not false), "fp_ml": false * float(np.prod(spacing)) / 1000}
    if not pred.any():
        return {"dice": 0.0, "surface_dice": 0.0, "missed": 1.0}
    both = 2 * int((pred & truth).sum()) / (int(pred.sum()) + int(truth.sum()))
    near, far = _surfaces(pred, truth, spacing)
    return {"dice": both, "hd95": far, "surface_dice": near, "missed": 0.0}


def _surfaces(pred: torch.Tensor, truth: torch.Tensor, spacing: Sequence[float]) -> tuple[float, float]:
    """(surface Dice, HD95 in mm), within the box around both."""
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    box = _box(pred | truth)
    flat = pred.shape[0] == 1
    one, other = (part[box].float()[None, None] for part in (pred, truth))
    steps = list(spacing)
    if flat:
        one, other, steps = one[:, :, 0], other[:, :, 0], steps[1:]
    agreed = compute_surface_dice(one, other, [TOLERANCE], include_background=True, spacing=steps)
    apart = compute_hausdorff_distance(one, other, include_background=True, percentile=95, spacing=steps)
    return float(agreed), float(apart)


def _box(drawn: torch.Tensor) -> tuple[slice, ...]:
    """What holds all of ``drawn``, and a voxel around it."""
    places = drawn.nonzero()
    low, high = places.amin(0), places.amax(0)
    return tuple(slice(max(0, int(a) - 1), int(b) + 2) for a, b in zip(low, high, strict=True))


def _dice(pred: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    total = int(pred.sum()) + int(truth.sum())
    return 2 * int((pred & truth).sum()) / total if total else 1.0
