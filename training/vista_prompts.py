"""Prompts as a reader would give them, drawn from a label: what is asked for, where is clicked, and where next.

Structures are drawn by MONAI's ``sample_prompt_pairs``; its clicks lie anywhere, ours also at a structure's border, where a
reader corrects. Next clicks lie in the error of a first answer (He et al., CVPR 2025, take the largest connected part of the
error; here a voxel of the eroded error, which needs no way over the CPU).
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from monai.apps.vista3d.sampler import sample_prompt_pairs
from torch.nn import functional

from training.vista_net import NOT_A_POINT

__all__ = ["Clicks", "Prompting", "drawn", "prompting", "with_next"]

PRESENT, ABSENT = 4, 2  # most structures asked for of those that a patch shows, and of those that it does not
MOST_CLICKS = 5  # of each sign: the bundle's max_point
BORDER = 4  # voxels around a structure in which half of the clicks outside it lie


@dataclass(frozen=True)
class Clicks:
    """``points`` (n, N, 3) voxels (z, y, x); ``inside`` (n, N): 1 in the structure, 0 outside, NOT_A_POINT for none."""

    points: torch.Tensor
    inside: torch.Tensor


@dataclass(frozen=True)
class Prompting:
    """What one patch is asked for: ``structures`` by class (0 is the plan's first), the first ``len(clicks.points)`` of them,
    those that the patch shows, by clicks too; ``truth`` is (n, 1, D, H, W) float32, a mask for each."""

    structures: tuple[int, ...]
    truth: torch.Tensor
    clicks: Clicks | None


@contextmanager
def drawn(*key: int) -> Iterator[None]:
    """Within, Python's ``random`` follows from ``key`` alone; after it, goes on as if nothing had been drawn."""
    before = random.getstate()
    random.seed(repr(key))
    try:
        yield
    finally:
        random.setstate(before)


def prompting(mask: torch.Tensor, annotated: torch.Tensor) -> Prompting | None:
    """Draw prompts for a patch: ``mask`` (D, H, W) classes, ``annotated`` (S,) bool. A structure that is not annotated is never
    asked for; None where none is."""
    known = [index + 1 for index in annotated.nonzero().flatten().tolist()]
    shown = bool(torch.isin(mask, mask.new_tensor(known)).any()) if known else False
    drawn_classes, points, inside, _ = sample_prompt_pairs(
        mask[None, None],
        known,
        max_foreprompt=PRESENT,
        max_backprompt=ABSENT,
        drop_label_prob=0,
        drop_point_prob=0,
        point_sampler=_clicks if shown else None,  # its way to pad needs a structure that is there
        mask=mask,
    )
    if drawn_classes is None:
        return None
    classes = drawn_classes.flatten()
    truth = (mask == classes[:, None, None, None])[:, None].float()
    assert points is not None and inside is not None
    asked = int((inside != NOT_A_POINT).any(1).sum())
    clicks = Clicks(points[:asked].long(), inside[:asked].long()) if asked else None
    return Prompting(tuple((classes - 1).tolist()), truth, clicks)


def with_next(clicks: Clicks, logits: torch.Tensor, truth: torch.Tensor) -> Clicks:
    """``clicks`` and one more for each object, in the larger of its errors (missed or too much), not at the error's border.

    ``logits`` and ``truth`` are (n, 1, D, H, W); an object without an error gets NOT_A_POINT.
    """
    found = logits > 0
    errors = torch.cat([found & (truth == 0), ~found & (truth > 0)], 1)  # what a click outside and one inside would mend
    core = -_widest(-errors.float(), 1) > 0
    points, inside = [], []
    for error, eroded in zip(errors, core, strict=True):
        sign = int(error.sum((1, 2, 3)).argmax())
        voxels = (eroded[sign] if eroded[sign].any() else error[sign]).nonzero()
        points.append(voxels[random.randrange(len(voxels))] if len(voxels) else clicks.points.new_zeros(3))
        inside.append(sign if len(voxels) else NOT_A_POINT)
    added = clicks.inside.new_tensor(inside)[:, None]
    return Clicks(torch.cat([clicks.points, torch.stack(points)[:, None]], 1), torch.cat([clicks.inside, added], 1))


def _clicks(classes: Sequence[int], mask: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """As ``sample_prompt_pairs`` takes a point sampler's answer: (N, 3) voxels and (N,) signs for each class."""
    positive = min(MOST_CLICKS, int(abs(random.gauss(0, MOST_CLICKS // 2))) + 1)
    negative = min(MOST_CLICKS, int(abs(random.gauss(0, MOST_CLICKS // 2))))
    points, signs = [], []
    for value in classes:
        structure = mask == value
        near = (_widest(structure[None, None].float(), BORDER)[0, 0] > 0) & ~structure
        drawn = [
            *_voxels(structure, positive, 1),
            *_voxels(near, (negative + 1) // 2, 0),
            *_voxels(~structure, negative // 2, 0),
        ]
        drawn += [(torch.zeros_like(drawn[0][0]), NOT_A_POINT)] * (positive + negative - len(drawn))
        points.append(torch.stack([voxel for voxel, _ in drawn]))
        signs.append(mask.new_tensor([sign for _, sign in drawn], dtype=torch.long))
    return points, signs


def _voxels(region: torch.Tensor, count: int, sign: int) -> list[tuple[torch.Tensor, int]]:
    """``count`` voxels of a region, none of an empty one."""
    voxels = region.nonzero() if count else region.new_zeros((0, 3), dtype=torch.long)
    return [(voxels[random.randrange(len(voxels))], sign) for _ in range(count if len(voxels) else 0)]


def _widest(image: torch.Tensor, radius: int) -> torch.Tensor:
    """The largest value within ``radius`` voxels along each axis, an axis at a time; image (n, c, D, H, W)."""
    for axis in range(3):
        size = [1, 1, 1]
        size[axis] = 2 * radius + 1
        image = functional.max_pool3d(image, size, stride=1, padding=[length // 2 for length in size])
    return image
