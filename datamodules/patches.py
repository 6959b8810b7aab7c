"""Where training patches lie: most around a structure, each a box cut from a prepared case with room to turn in.

All draws are keyed by (seed, visit of a volume, patch of that visit): a patch does not depend on when or where it is cut.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from datamodules.augment import GROW, TURN, Draw, draw
from datamodules.plan import Plan
from datamodules.sample import Sample, normalised

__all__ = ["Box", "box_size", "cut"]

FOREGROUND = 0.7  # of the patches lie around a voxel of a structure

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Box:
    """What a patch is made of: ``image`` (C, *box) float32, normalised, ``mask`` (*box) uint8, and what ``augment`` does."""

    image: torch.Tensor
    mask: torch.Tensor
    annotated: torch.Tensor
    present: torch.Tensor
    draw: Draw | None


def box_size(plan: Plan) -> Size:
    """The box (z, y, x) around a patch: larger by what a turn and a scale may reach, by an even number of voxels."""
    if not plan.augment:
        return plan.patch
    z, y, x = plan.patch
    lean, flat = math.sin(TURN), plan.dimensions == 2
    reach = ((z + lean * y), (y + lean * (x if flat else x + z)), (x + lean * y))
    sides = [side + 2 * math.ceil((wide * GROW - side) / 2) for side, wide in zip(plan.patch, reach, strict=True)]
    return (1 if flat else sides[0], sides[1], sides[2])


def cut(sample: Sample, plan: Plan, key: tuple[int, int, int]) -> Box:
    """One box of ``sample``, on its device; outside of the volume lie its lowest value and background.

    The structure that a foreground patch lies around is drawn first, then a voxel of it: small structures count as large ones.
    """
    rng = np.random.default_rng(key)
    corner = _corner(rng, sample, plan.patch)
    size = box_size(plan)
    start = [c - (b - p) // 2 for c, b, p in zip(corner, size, plan.patch, strict=True)]
    inside = [(max(0, s), min(n, s + b)) for s, b, n in zip(start, size, sample.mask.shape, strict=True)]
    of = tuple(slice(a, max(a, b)) for a, b in inside)
    to = tuple(slice(a - s, max(a, b) - s) for (a, b), s in zip(inside, start, strict=True))
    low = (sample.intensity[:, 1] - sample.intensity[:, 3]) / sample.intensity[:, 4]
    image = low[:, None, None, None].expand(-1, *size).clone()
    image[(slice(None), *to)] = normalised(sample.image[(slice(None), *of)], sample.intensity)
    mask = sample.mask.new_zeros(size)
    mask[to] = sample.mask[of]
    return Box(image, mask, sample.annotated, sample.present, draw(rng, plan, key) if plan.augment else None)


def _corner(rng: np.random.Generator, sample: Sample, size: Size) -> list[int]:
    """The patch's first voxel: within the volume where that is large enough, else so that the volume is in its middle."""
    shape = sample.mask.shape
    free = [int(rng.integers(0, n - p + 1)) if n > p else -((p - n) // 2) for n, p in zip(shape, size, strict=True)]
    if not len(sample.centres) or rng.random() >= FOREGROUND:
        return free
    centres = sample.centres.numpy()
    wanted = rng.choice(np.unique(centres[:, 0]))
    voxel = rng.choice(centres[centres[:, 0] == wanted][:, 1:])
    within = [int(rng.integers(p // 4, 3 * p // 4 + 1)) for p in size]
    near = zip(voxel, within, shape, size, free, strict=True)
    return [min(max(int(v) - w, 0), n - p) if n > p else f for v, w, n, p, f in near]
