"""The network that a plan names, and the device and precision that it runs in."""

import inspect
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any

import monai.networks.nets
import torch
from monai.utils import OptionalImportError
from torch import nn

from datamodules.plan import Plan
from training.errors import TrainingError
from training.topology import arguments, classes, divisor

__all__ = ["autocast", "device", "logits", "network", "outputs", "precision"]

COARSEST = 4
SAME = {"in_channels": ("n_input_channels",), "out_channels": ("num_classes",)}  # what some of MONAI's classifiers call them


def network(plan: Plan) -> nn.Module:
    """An untrained network of the plan, float32, on the CPU (or on torch's default device).

    It takes (B, channels, D, H, W), without D where the plan has two dimensions, and gives logits of 1 + structures classes,
    class 0 background, voxel by voxel (segmentation), or (B, structures) logits (classification); see ``outputs``.

    ``plan.network`` is a class of ``monai.networks.nets`` or ``package.module:Class``; it is made with the keywords
    ``spatial_dims``, ``in_channels``, ``out_channels`` and ``plan.network_args``; what these leave out is derived from the plan
    for some of MONAI's (``topology.arguments``). TrainingError where there is no such class, where the arguments do not fit
    it, or where the patch cannot be halved as often as the network does.
    """
    if plan.task == "vista3d":
        from training.vista_net import Vista3D

        return Vista3D(plan)
    kind = _kind(plan.network)
    args = {**arguments(plan), **plan.network_args}
    fixed = {"spatial_dims": plan.dimensions, "in_channels": len(plan.channels), "out_channels": classes(plan)}
    _check_patch(plan)
    try:
        net = kind(**{_own_name(kind, name): value for name, value in fixed.items()}, **args)
    except OptionalImportError as problem:
        raise TrainingError(f"{plan.network} needs a package: {str(problem).splitlines()[0]}", about="plan") from None
    except (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError) as problem:
        remedy = f"see the arguments of {plan.network}"
        raise TrainingError(f"network_args do not fit {plan.network}: {problem}", about="plan", remedy=remedy) from None
    if not isinstance(net, nn.Module):
        raise TrainingError(f"{plan.network} is no torch.nn.Module", about="plan", remedy="name a class that is one")
    return _laid_out(net) if precision(plan, device()) == "bf16-mixed" and device().type == "cpu" else net


def outputs(net: nn.Module, image: torch.Tensor, plan: Plan) -> list[torch.Tensor]:
    """All that a segmentation network says of (B, C, D, H, W): (B, K, D, H, W) logits, then in training the coarser heads of
    deep supervision, if it has any. A two-dimensional network sees (B, C, H, W): its patches have D = 1.
    """
    flat = plan.dimensions == 2
    said: Any = net(image[:, :, 0] if flat else image)
    if isinstance(said, torch.Tensor):
        said = said.unbind(1) if said.ndim == plan.dimensions + 3 else [said]  # DynUNet: (B, heads, K, …)
    return [head[:, :, None] if flat else head for head in said]


def logits(net: nn.Module, image: torch.Tensor, plan: Plan) -> torch.Tensor:
    """(B, C, D, H, W) → (B, K, D, H, W), the finest of ``outputs``."""
    return outputs(net, image, plan)[0]


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(plan: Plan, on: torch.device) -> str:
    """Lightning's name of what ``plan.precision`` means ``on`` a device: ``bf16-mixed`` or ``32-true``.

    ``auto`` on a CPU is bf16 only where the network's coarsest grid is known to have COARSEST voxels an axis: on smaller ones
    torch 2.14's gradients of 3-D convolutions in bf16 were seen to hold what happened to lie in memory, not a number at times.
    """
    if plan.precision == "auto":
        sound = on.type != "cpu" or (plan.task == "segmentation" and _coarsest(plan) >= COARSEST)
        return "bf16-mixed" if _computes_bf16(on) and sound else "32-true"
    return "bf16-mixed" if plan.precision == "bf16" else "32-true"


def autocast(plan: Plan, on: torch.device) -> AbstractContextManager[object]:
    """The same outside of Lightning."""
    enabled = precision(plan, on) == "bf16-mixed"
    context: AbstractContextManager[object] = torch.autocast(on.type, dtype=torch.bfloat16, enabled=enabled)
    return context


def _coarsest(plan: Plan) -> int:
    """The shortest side of the network's coarsest grid; 0 where the network is not one whose halvings are known."""
    by = divisor(plan)
    sides = [side // part for side, part in zip(plan.patch, by, strict=True)][-plan.dimensions :]
    return min(sides) if max(by) > 1 else 0


def _computes_bf16(on: torch.device) -> bool:
    """Whether the device has instructions for bf16; a CPU that only emulates them is slower than in float32."""
    if on.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch's own names, and not promised
    return on.type == "cpu" and any(bool(getattr(torch.cpu, name, bool)()) for name in asked)


def _kind(name: str) -> Any:
    """What makes the network: a class, or one of MONAI's functions (``resnet18``)."""
    module, _, wanted = name.rpartition(":")
    if not module:
        kind = getattr(monai.networks.nets, wanted, None)
        if not callable(kind):
            remedy = "see monai.networks.nets, or name your own as package.module:Class"
            raise TrainingError(f"MONAI has no network {name!r}", about="plan", remedy=remedy)
        return kind
    try:
        kind = getattr(import_module(module), wanted)
    except Exception as problem:  # importing runs the user's code
        remedy = "its package must be installed or on PYTHONPATH"
        raise TrainingError(f"network {name!r} cannot be imported: {problem}", about="plan", remedy=remedy) from None
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TrainingError(f"{name} is no torch.nn.Module", about="plan", remedy="name a class that is one")
    return kind


def _own_name(kind: Any, name: str) -> str:
    """What ``kind`` calls one of our arguments."""
    asked = monai.networks.nets.ResNet if inspect.isfunction(kind) and kind.__name__.startswith("resnet") else kind
    known = {name for base in getattr(asked, "__mro__", ())[:-1] for name in inspect.signature(base).parameters}
    return next((same for same in SAME.get(name, ()) if same in known), name)


def _check_patch(plan: Plan) -> None:
    """TrainingError that names the divisor which the patch lacks."""
    by = divisor(plan)
    if any(side % part for side, part in zip(plan.patch, by, strict=True)):
        by_axis = " × ".join(map(str, by))
        raise TrainingError(
            f"{plan.network} cannot halve a patch of {plan.patch} as often as it has to",
            about="plan",
            remedy=f"make each side of the patch a multiple of {by_axis} (z, y, x)",
        )


def _laid_out(net: nn.Module) -> nn.Module:
    """Channels last: on a CPU bf16 convolutions are faster so, and their results keep the weights' layout."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in net.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])
    return net
