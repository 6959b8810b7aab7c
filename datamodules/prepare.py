"""From a volume as it was stored to what a network sees, and back: the one preprocessing of training and serving.

Canonical orientation is ``HPL``: the array's axes run towards head, posterior and left, as an axial series' (slices, rows,
columns) do. Reorienting only permutes and flips axes, so an oblique series stays oblique. Resampling keeps the outer faces of
the volume: the new grid has the whole number of voxels nearest to the plan's spacing, and voxel *centres* are mapped by
``(i + ½) · old/new - ½`` (PyTorch's ``align_corners=False`` and ``nearest-exact``), so nothing shifts.
"""

from dataclasses import dataclass

import highdicom as hd
import numpy as np
import torch
from torch.nn import functional

from datamodules.plan import Plan

__all__ = ["CANONICAL", "Prepared", "prepare", "prepare_mask", "restore"]

CANONICAL = "HPL"
WINDOW = (-1000.0, 1000.0)  # Hounsfield units kept by the normalization "ct"


@dataclass(frozen=True)
class Prepared:
    """``image`` is (1, D, H, W) float32, normalised, in the canonical orientation; the geometries are what restore needs."""

    image: torch.Tensor
    canonical: hd.VolumeGeometry
    original: hd.VolumeGeometry


def prepare(volume: hd.Volume, plan: Plan) -> Prepared:
    """Bring ``volume`` (three axes, LPS mm, rescaled values) into the plan's orientation, spacing and intensities."""
    canonical = volume.to_patient_orientation(CANONICAL)
    image = torch.from_numpy(np.ascontiguousarray(canonical.array, dtype=np.float32))
    size = _grid(canonical.get_geometry(), plan)
    return Prepared(normalize(_linear(image, size), plan)[None], canonical.get_geometry(), volume.get_geometry())


def prepare_mask(mask: hd.Volume, plan: Plan) -> torch.Tensor:
    """A label map (voxel values of the label set) as classes, (D, H, W) uint8 on the grid of ``prepare``.

    A value that is none of the plan's becomes background.
    """
    canonical = mask.to_patient_orientation(CANONICAL)
    classes = np.zeros(256, np.uint8)
    classes[list(plan.values)] = np.arange(1, len(plan.values) + 1)
    labels = torch.from_numpy(classes[np.asarray(canonical.array, dtype=np.uint8)])
    return _nearest(labels, _grid(canonical.get_geometry(), plan))


def restore(result: torch.Tensor, prepared: Prepared) -> hd.Volume:
    """Bring what a network said of ``prepared`` back to the original grid: same shape, same affine.

    ``result`` is (D, H, W) classes of an integer type (nearest voxel), (D, H, W) float32 (linear; an entropy map), or
    (C, D, H, W) float32 scores (linear, then the class with the highest: smoother borders than resampled classes).
    """
    size = prepared.canonical.spatial_shape
    if result.ndim == 4:
        array = _argmax(result, size)
    else:
        array = _linear(result, size) if result.is_floating_point() else _nearest(result, size)
    restored = prepared.canonical.with_array(array.cpu().numpy()).match_geometry(prepared.original)
    return prepared.original.with_array(np.ascontiguousarray(restored.array))  # not the affine of two permutations


def normalize(image: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Intensities by ``plan.normalization``, from this volume alone.

    ``zscore``: clipped to the 0.5th and 99.5th percentile, mean 0, standard deviation 1. ``percentile``: those
    percentiles become -1 and 1. ``ct``: -1000…1000 HU become -1…1.
    """
    if plan.normalization == "ct":
        return image.clamp(*WINDOW) / WINDOW[1]
    low, high = (float(q) for q in np.percentile(image.numpy(), (0.5, 99.5)))
    clipped = image.clamp(low, high)
    if plan.normalization == "percentile":
        return (clipped - low) / max(high - low, 1e-6) * 2 - 1
    return (clipped - clipped.mean()) / clipped.std(correction=0).clamp_min(1e-6)


def _grid(geometry: hd.VolumeGeometry, plan: Plan) -> tuple[int, int, int]:
    """The whole number of voxels nearest to the plan's spacing, an axis."""
    sizes = zip(geometry.spatial_shape, geometry.spacing, plan.spacing, strict=True)
    first, second, third = (max(1, round(n * old / new)) for n, old, new in sizes)
    return first, second, third


def _linear(image: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    if tuple(image.shape) == tuple(size):
        return image
    return functional.interpolate(image[None, None], size=list(size), mode="trilinear", align_corners=False)[0, 0]


def _nearest(labels: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    if tuple(labels.shape) == tuple(size):
        return labels
    return functional.interpolate(labels[None, None], size=list(size), mode="nearest-exact")[0, 0]


def _argmax(scores: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """The class with the highest resampled score, one class at a time: a large volume's scores are never held resampled."""
    best = _linear(scores[0], size)
    labels = torch.zeros(tuple(size), dtype=torch.uint8, device=scores.device)
    for index in range(1, len(scores)):
        score = _linear(scores[index], size)
        labels[score > best] = index
        best = torch.maximum(best, score)
    return labels
