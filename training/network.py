"""The network that a plan names, and the device it runs on."""

from contextlib import AbstractContextManager

import monai.networks.nets
import torch
from torch import nn

from datamodules.plan import Plan
from training.errors import TrainingError

__all__ = ["autocast", "device", "network"]


def network(plan: Plan) -> nn.Module:
    """An untrained network of the plan: (B, 1, D, H, W) images to (B, 1 + structures, D, H, W) logits, class 0 background."""
    kind = getattr(monai.networks.nets, plan.network, None)
    if not isinstance(kind, type):
        raise TrainingError(f"MONAI has no network {plan.network!r}", about="plan", remedy="see monai.networks.nets")
    try:
        net = kind(spatial_dims=3, in_channels=1, out_channels=1 + len(plan.structures), **plan.network_args)
    except (TypeError, ValueError) as problem:
        raise TrainingError(f"network_args do not fit {plan.network}: {problem}", about="plan") from None
    assert isinstance(net, nn.Module)
    return net


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(on: torch.device) -> AbstractContextManager[object]:
    """bf16 on a GPU; a CPU keeps float32."""
    context: AbstractContextManager[object] = torch.autocast(on.type, dtype=torch.bfloat16, enabled=on.type == "cuda")
    return context
