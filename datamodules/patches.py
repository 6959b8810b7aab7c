"""Training patches cut from prepared volumes: half of them around a structure, lightly augmented, by one seeded generator."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

__all__ = ["Patch", "augment", "cut"]

FOREGROUND = 0.7  # of the patches lie around a voxel of a structure
SHRINK, GROW = 0.85, 1.15
TURN = 0.2  # radians
CONTRAST, BRIGHTNESS, NOISE = 0.2, 0.2, 0.3


@dataclass(frozen=True)
class Patch:
    """``image`` (1, D, H, W) float32, ``mask`` (D, H, W) uint8 classes, ``annotated`` (structures,) bool."""

    image: torch.Tensor
    mask: torch.Tensor
    annotated: torch.Tensor


def cut(rng: np.random.Generator, volume: Patch, size: tuple[int, int, int]) -> Patch:
    """A patch of ``size`` voxels; a smaller volume is padded with its lowest value and background first.

    The structure that a foreground patch lies around is drawn first, then a voxel of it: small structures count as large ones.
    """
    volume = _padded(volume, size)
    shape = volume.mask.shape
    corner = [int(rng.integers(0, n - p + 1)) for n, p in zip(shape, size, strict=True)]
    present = torch.unique(volume.mask).tolist()[1:] if rng.random() < FOREGROUND else []
    if present:
        voxels = (volume.mask == present[rng.integers(len(present))]).nonzero()
        within = [int(rng.integers(p // 4, 3 * p // 4 + 1)) for p in size]
        chosen = voxels[rng.integers(len(voxels))].tolist()
        corner = [min(max(v - w, 0), n - p) for v, w, n, p in zip(chosen, within, shape, size, strict=True)]
    box = tuple(slice(start, start + p) for start, p in zip(corner, size, strict=True))
    return Patch(volume.image[(slice(None), *box)], volume.mask[box], volume.annotated)


def augment(rng: np.random.Generator, patch: Patch) -> Patch:
    """Turn and scale a little, change contrast and brightness, add noise; never flips (left is not right)."""
    image, mask = patch.image, patch.mask
    if rng.random() < FOREGROUND:
        grid = functional.affine_grid(_affine(rng, mask.shape)[None], [1, 1, *mask.shape], align_corners=False)
        image = functional.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]
        moved = functional.grid_sample(mask[None, None].float(), grid, mode="nearest", align_corners=False)
        mask = moved[0, 0].to(torch.uint8)
    image = image * rng.uniform(1 - CONTRAST, 1 + CONTRAST) + rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    if rng.random() < NOISE:
        image = image + torch.from_numpy(rng.standard_normal(image.shape, np.float32)) * rng.uniform(0, NOISE)
    return Patch(image.float(), mask, patch.annotated)


def _affine(rng: np.random.Generator, shape: torch.Size) -> torch.Tensor:
    """A turn about two axes and a scale, for ``affine_grid`` (coordinates -1…1, order x, y, z)."""
    (a, b), scale = rng.uniform(-TURN, TURN, 2), rng.uniform(SHRINK, GROW)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    half = np.array(shape[::-1]) / 2  # a turn is one in voxels, not in fractions of unequal sides
    turn = (about_z @ about_x * scale) * half / half[:, None]
    return torch.tensor(np.c_[turn, np.zeros(3)], dtype=torch.float32)


def _padded(volume: Patch, size: tuple[int, int, int]) -> Patch:
    missing = [max(0, p - n) for p, n in zip(size, volume.mask.shape, strict=True)]
    if not any(missing):
        return volume
    sides = [side for gap in reversed(missing) for side in (gap // 2, gap - gap // 2)]
    image = functional.pad(volume.image, sides, value=float(volume.image.min()))
    return Patch(image, functional.pad(volume.mask, sides), volume.annotated)
