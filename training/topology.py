"""How deep a plan's network goes: what its constructor needs beyond channels, derived from patch and spacing."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datamodules.plan import SMALL_UNET, Plan
from training.errors import TrainingError

__all__ = ["arguments", "classes", "divisor"]

SMALLEST = 4  # voxels: no axis is halved below
HEADS = 2  # of deep supervision, beside the output itself
FILTERS = 32
Axes = tuple[int, ...]


@dataclass(frozen=True)
class Stages:
    """A U-Net's: ``kernels[k]`` is the convolutions' of stage k, ``strides[k]`` how it is come to, the first all ones."""

    kernels: tuple[Axes, ...]
    strides: tuple[Axes, ...]


def classes(plan: Plan) -> int:
    """How many numbers the network gives: background and structures a voxel, or the structures of an image."""
    return len(plan.structures) + (plan.task != "classification")


def arguments(plan: Plan) -> dict[str, Any]:
    """Constructor arguments by default, for the networks that need some; the plan's ``network_args`` go before them."""
    derive = _DERIVED.get(plan.network)
    return derive(plan) if derive else {}


def divisor(plan: Plan) -> tuple[int, int, int]:
    """What each side of a patch must be a multiple of, (z, y, x); 1 where the network is not known to ask for anything."""
    find = _DIVISORS.get(plan.network)
    by = find({**arguments(plan), **plan.network_args}, plan.dimensions) if find else (1,) * plan.dimensions
    first, second, third = (1,) * (3 - plan.dimensions) + by
    return first, second, third


def stages(patch: Axes, spacing: tuple[float, ...]) -> Stages:
    """nnU-Net's planning (Isensee et al., Nature Methods 2021; ``get_pool_and_conv_props``) for a patch that stays as it is.

    Each stage halves the axes whose spacing (mm) is below twice the finest of those that can be halved: even, and not below
    SMALLEST voxels after. A kernel is 1 along an axis until the stage whose spacing is below twice the finest.
    """
    size, mm = list(patch), list(spacing)
    kernel = [1] * len(size)
    kernels: list[Axes] = []
    strides: list[Axes] = [tuple(kernel)]
    while True:
        able = [axis for axis, n in enumerate(size) if n % 2 == 0 and n >= 2 * SMALLEST]
        finest = min((mm[axis] for axis in able), default=math.inf)
        halved = [axis for axis in able if mm[axis] < 2 * finest]
        if not halved or (len(halved) == 1 and size[halved[0]] < 3 * SMALLEST):
            break
        kernel = [3 if k == 3 or step < 2 * min(mm) else 1 for k, step in zip(kernel, mm, strict=True)]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in range(len(size))))
        size = [n // 2 if axis in halved else n for axis, n in enumerate(size)]
        mm = [step * 2 if axis in halved else step for axis, step in enumerate(mm)]
    return Stages((*kernels, (3,) * len(size)), tuple(strides))


def _own(plan: Plan) -> tuple[Axes, tuple[float, ...]]:
    """Patch and spacing of the network's axes."""
    return plan.patch[-plan.dimensions :], plan.spacing[-plan.dimensions :]


def _halvings(plan: Plan, most: int) -> int:
    """How often all sides of the patch can be halved together, at most ``most`` times; where never, once, to be refused."""
    patch, _ = _own(plan)
    fit = (n for n in range(most, 0, -1) if all(side % 2**n == 0 and side // 2**n >= SMALLEST for side in patch))
    return next(fit, 1)


def _dynunet(plan: Plan) -> dict[str, Any]:
    given = plan.network_args
    derived = stages(*_own(plan))
    strides = given.get("strides", derived.strides)
    if len(strides) < 3:
        raise TrainingError(
            f"DynUNet has to halve a patch twice, and {plan.patch} allows {len(strides) - 1}",
            about="plan",
            remedy="make each side of the patch a multiple of 4, and 16 voxels or more",
        )
    kernels = derived.kernels if len(derived.kernels) == len(strides) else (3,) * len(strides)
    supervised = {"deep_supervision": True, "deep_supr_num": min(HEADS, len(strides) - 2)} if plan.deep_supervision else {}
    return {"kernel_size": kernels, "strides": strides, "upsample_kernel_size": strides[1:], **supervised}


def _segresnet(plan: Plan) -> dict[str, Any]:
    levels = (1, 2, 2, 4)[: 1 + _halvings(plan, 3)]
    return {"init_filters": FILTERS, "blocks_down": levels, "blocks_up": (1,) * (len(levels) - 1)}


def _segresnet_ds(plan: Plan) -> dict[str, Any]:
    levels = (1, 2, 2, 4, 4)[: 1 + _halvings(plan, 4)]
    depth = min(1 + HEADS, len(levels) - 1) if plan.deep_supervision else 1
    return {"init_filters": FILTERS, "blocks_down": levels, "norm": "INSTANCE", "dsdepth": depth}


def _swin_unetr(plan: Plan) -> dict[str, Any]:
    width = plan.network_args.get("feature_size", 24)
    if width % 12:
        raise TrainingError(f"feature_size {width} does not fit SwinUNETR", about="plan", remedy="give a multiple of 12")
    if plan.dimensions != 3:
        raise TrainingError(
            "SwinUNETR is used in three dimensions", about="plan", remedy="take another network, or a 3-D patch"
        )
    return {"feature_size": width}


def _unet(plan: Plan) -> dict[str, Any]:
    return {} if {"channels", "strides"} & set(plan.network_args) else dict(SMALL_UNET)


def _densenet(plan: Plan) -> dict[str, Any]:
    if min(_own(plan)[0]) < 32:
        raise TrainingError(
            f"{plan.network} halves an image five times, and {plan.patch} is too small",
            about="plan",
            remedy="give the patch 32 voxels a side, or take resnet10",
        )
    return {}


def _efficientnet(plan: Plan) -> dict[str, Any]:
    return {"model_name": "efficientnet-b0", "pretrained": False}


_DERIVED: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "DynUNet": _dynunet,
    "SegResNet": _segresnet,
    "SegResNetDS": _segresnet_ds,
    "SwinUNETR": _swin_unetr,
    "UNet": _unet,
    **dict.fromkeys(("DenseNet121", "DenseNet169", "DenseNet201", "DenseNet264"), _densenet),
    "EfficientNetBN": _efficientnet,
}


def _by_strides(args: dict[str, Any], dimensions: int) -> Axes:
    steps = [step if isinstance(step, list | tuple) else (step,) * dimensions for step in args.get("strides", ())]
    return tuple(math.prod(step[axis] for step in steps) for axis in range(dimensions))


def _by_levels(args: dict[str, Any], dimensions: int) -> Axes:
    return (2 ** (len(args["blocks_down"]) - 1),) * dimensions


_DIVISORS: dict[str, Callable[[dict[str, Any], int], Axes]] = {
    "DynUNet": _by_strides,
    "UNet": _by_strides,
    "AttentionUnet": _by_strides,
    "SegResNet": _by_levels,
    "SegResNetDS": _by_levels,
    "SwinUNETR": lambda args, dimensions: (args.get("patch_size", 2) ** 5,) * dimensions,
    "UNETR": lambda args, dimensions: (16,) * dimensions,
    "VNet": lambda args, dimensions: (16,) * dimensions,
    "BasicUNet": lambda args, dimensions: (16,) * dimensions,
}
