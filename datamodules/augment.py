"""What is done to a batch of boxes on its device: turn and scale a little, then contrast, gamma, noise and blur; never flips.

The set is nnU-Net's (Isensee et al., Nature Methods 2021) without mirroring: left is not right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from datamodules.plan import Plan

__all__ = ["GROW", "TURN", "Draw", "augment", "draw"]

SHRINK, GROW = 0.85, 1.15
TURN = 0.2  # radians
AFFINE, NOISY, BLURRED, BENT = 0.7, 0.3, 0.15, 0.3  # of the patches
CONTRAST, BRIGHTNESS, NOISE, GAMMA, COARSEST = 0.2, 0.2, 0.3, (0.7, 1.5), 0.5


@dataclass(frozen=True)
class Draw:
    """What was drawn for one patch: ``affine`` maps its voxels' offsets from its centre to the box's (x, y, z); ``coarse`` is
    the share of the voxels, an axis, that a blur leaves."""

    affine: np.ndarray
    contrast: float
    brightness: float
    gamma: float
    noise: float
    coarse: float
    seed: int


def draw(rng: np.random.Generator, plan: Plan, key: Sequence[int]) -> Draw:
    """Draw for one patch; ``key`` seeds its noise."""
    turn = rng.random() < AFFINE
    return Draw(
        affine=_affine(rng, flat=plan.dimensions == 2) if turn else np.eye(3),
        contrast=float(rng.uniform(1 - CONTRAST, 1 + CONTRAST)),
        brightness=float(rng.uniform(-BRIGHTNESS, BRIGHTNESS)),
        gamma=float(rng.uniform(*GAMMA)) if rng.random() < BENT else 1.0,
        noise=float(rng.uniform(0, NOISE)) if rng.random() < NOISY else 0.0,
        coarse=float(rng.uniform(COARSEST, 1)) if rng.random() < BLURRED else 1.0,
        seed=int(np.random.SeedSequence(list(key)).generate_state(1)[0]),
    )


def augment(
    image: torch.Tensor, mask: torch.Tensor, draws: Sequence[Draw], size: tuple[int, int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, C, *box) float32 images and (B, *box) uint8 masks → (B, C, *size) and (B, *size), by a draw a patch."""
    image, mask = _resampled(image, mask, draws, size)
    for index, drawn in enumerate(draws):
        if drawn.coarse < 1:
            image[index] = _blurred(image[index], drawn.coarse)
        if drawn.gamma != 1:
            image[index] = _bent(image[index], drawn.gamma)
    contrast, brightness, noise = (
        torch.tensor([getattr(drawn, name) for drawn in draws], device=image.device)[:, None, None, None, None]
        for name in ("contrast", "brightness", "noise")
    )
    image = image * contrast + brightness
    for index, drawn in enumerate(draws):
        if drawn.noise:
            generator = torch.Generator(image.device).manual_seed(drawn.seed)
            image[index] += torch.randn(image[index].shape, generator=generator, device=image.device) * noise[index]
    return image, mask


def _resampled(
    image: torch.Tensor, mask: torch.Tensor, draws: Sequence[Draw], size: tuple[int, int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    box = np.array(image.shape[:1:-1], float)  # x, y, z
    patch = np.array(size[::-1], float)
    theta = np.zeros((len(draws), 3, 4))
    theta[:, :, :3] = np.stack([drawn.affine * patch / box[:, None] for drawn in draws])
    grid = functional.affine_grid(
        torch.tensor(theta, dtype=torch.float32, device=image.device), [len(draws), 1, *size], align_corners=False
    )
    moved = functional.grid_sample(image, grid, padding_mode="border", align_corners=False)
    drawn = functional.grid_sample(mask[:, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False)
    return moved, drawn[:, 0].to(torch.uint8)


def _affine(rng: np.random.Generator, *, flat: bool) -> np.ndarray:
    """A turn about two axes (in the plane alone where it is ``flat``) and a scale, in the order x, y, z."""
    (a, b), scale = rng.uniform(-TURN, TURN, 2), rng.uniform(SHRINK, GROW)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    turned = about_z * np.array([scale, scale, 1]) if flat else about_z @ about_x * scale
    return np.asarray(turned)


def _blurred(image: torch.Tensor, coarse: float) -> torch.Tensor:
    """(C, D, H, W) as a coarser grid would have it."""
    shape = image.shape[1:]
    small = [max(1, round(side * coarse)) for side in shape]
    reduced = functional.interpolate(image[None], size=small, mode="area")
    return functional.interpolate(reduced, size=list(shape), mode="trilinear", align_corners=False)[0]


def _bent(image: torch.Tensor, gamma: float) -> torch.Tensor:
    """(C, D, H, W) with the values between a channel's lowest and highest bent by a power."""
    low, high = (bound(image, dim=(1, 2, 3), keepdim=True) for bound in (torch.amin, torch.amax))
    span = (high - low).clamp_min(1e-6)
    return ((image - low) / span).clamp(0, 1) ** gamma * span + low
