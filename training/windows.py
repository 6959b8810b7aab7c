"""How a network that was trained on patches goes over a whole volume, in validation and in prediction alike."""

from monai.inferers.inferer import Inferer, SlidingWindowInfererAdapt

from datamodules.plan import Plan

__all__ = ["windows"]


def windows(plan: Plan) -> Inferer:
    """Windows of the plan's patch, ``plan.batch`` at once, overlapping by ``plan.overlap`` and blended by a Gaussian.

    Called with (B, C, D, H, W) and a function from (n, C, *patch) to (n, K, *patch) it returns (B, K, D, H, W). Where the
    GPU's memory does not hold that, it is stitched on the CPU and stays there. A volume smaller than a window is padded with
    its border and cut back.
    """
    return SlidingWindowInfererAdapt(plan.patch, plan.batch, plan.overlap, "gaussian", padding_mode="replicate")
