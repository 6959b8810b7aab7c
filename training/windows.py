"""How a network that was trained on patches goes over a whole volume, in validation and in prediction alike."""

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers.inferer import Inferer, SlidingWindowInfererAdapt
from torch.nn import functional

from datamodules.plan import Plan

__all__ = ["windows"]


def windows(plan: Plan) -> Inferer:
    """Windows of the plan's patch, ``plan.batch`` at once, overlapping by ``plan.overlap`` and blended by a Gaussian.

    Called with (B, C, D, H, W) and a function from (n, C, *patch) to (n, K, *patch) it returns (B, K, D, H, W). Where the
    GPU's memory does not hold that, it is stitched on the CPU and stays there. A volume smaller than a window lies in its
    middle, each channel's lowest value around it, as in training: neither its border repeated nor a smaller window will do,
    networks that normalise by instance answer differently to them.
    """
    return _TrainedWindows(plan.patch, plan.batch, plan.overlap, "gaussian")


class _TrainedWindows(SlidingWindowInfererAdapt):  # type: ignore[misc]
    """MONAI's windows, but for what is around a volume that is smaller than one: it pads all channels with one number."""

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        lacking = [max(0, side - n) for side, n in zip(self.roi_size, inputs.shape[2:], strict=True)]
        if not any(lacking):
            return super().__call__(inputs, network, *args, **kwargs)
        sides = [part for gap in reversed(lacking) for part in (gap // 2, gap - gap // 2)]
        floor = inputs.amin((2, 3, 4), keepdim=True)
        found = super().__call__(functional.pad(inputs - floor, sides) + floor, network, *args, **kwargs)
        within = [slice(gap // 2, gap // 2 + n) for gap, n in zip(lacking, inputs.shape[2:], strict=True)]
        return found[(..., *within)]
