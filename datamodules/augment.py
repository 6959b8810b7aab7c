"""Changing the intensities of training patches: nnU-Net's set, but no flips (left is not right)."""

import numpy as np
import torch
from monai.networks.layers.convutils import gaussian_1d
from monai.networks.layers.simplelayers import separable_filtering
from torch.nn import functional

from datamodules.patches import flat

__all__ = ["augment"]

BLURRED, SIGMA = 0.15, (0.5, 1.0)  # share of the patches; standard deviation in voxels
COARSE, ZOOM = 0.15, (0.5, 1.0)  # the resolution that is simulated, of the patch's own
BENT, GAMMA, INVERTED = 0.3, (0.7, 1.5), 0.25  # of the bent, so many from the bright end
STRETCHED, CONTRAST = 0.3, (0.75, 1.25)
SHIFTED, BRIGHTNESS = 0.3, (-0.2, 0.2)  # in the unit of the normalised image, its standard deviation
NOISY, NOISE = 0.2, (0.0, 0.3)

TINY = 1e-6


def augment(rng: np.random.Generator, image: torch.Tensor) -> torch.Tensor:
    """(C, D, H, W) float32, normalised → the same, each channel changed on its own by what ``rng`` draws."""
    return torch.stack([_channel(rng, channel) for channel in image])


def _channel(rng: np.random.Generator, x: torch.Tensor) -> torch.Tensor:
    if rng.random() < BLURRED:
        x = _blurred(x, rng.uniform(*SIGMA))
    if rng.random() < COARSE:
        x = _coarse(x, rng.uniform(*ZOOM))
    if rng.random() < BENT:
        gamma, sign = rng.uniform(*GAMMA), -1 if rng.random() < INVERTED else 1
        x = sign * _bent(sign * x, gamma)
    if rng.random() < STRETCHED:
        x = torch.lerp(x.mean(), x, rng.uniform(*CONTRAST))
    if rng.random() < SHIFTED:
        x = x + rng.uniform(*BRIGHTNESS)
    if rng.random() < NOISY:
        strength, seed = rng.uniform(*NOISE), int(rng.integers(2**63))
        noise = torch.Generator(x.device).manual_seed(seed)
        x = x + strength * torch.randn(x.shape, generator=noise, device=x.device)
    return x


def _blurred(x: torch.Tensor, sigma: float) -> torch.Tensor:
    kernel, along = gaussian_1d(torch.tensor(sigma), truncated=3.0, normalize=True), torch.ones(1)
    kernels = [along if flat(tuple(x.shape)) else kernel, kernel, kernel]
    blurred: torch.Tensor = separable_filtering(x[None, None], kernels, mode="replicate")[0, 0]
    return blurred


def _coarse(x: torch.Tensor, zoom: float) -> torch.Tensor:
    """As if it had been taken with larger voxels."""
    kept = 1 if flat(tuple(x.shape)) else 0
    size = [*x.shape[:kept], *(max(1, round(n * zoom)) for n in x.shape[kept:])]
    small = functional.interpolate(x[None, None], size=size, mode="nearest-exact")
    return functional.interpolate(small, size=list(x.shape), mode="trilinear", align_corners=False)[0, 0]


def _bent(x: torch.Tensor, gamma: float) -> torch.Tensor:
    """A gamma curve between its lowest and highest value; mean and standard deviation stay as they were."""
    std, mean = torch.std_mean(x)
    low, high = torch.aminmax(x)
    bent = ((x - low) / (high - low).clamp_min(TINY)).pow(gamma)
    new_std, new_mean = torch.std_mean(bent)
    return (bent - new_mean) * (std / new_std.clamp_min(TINY)) + mean
