"""Patch and batch from the device's memory, and the network that suits the device."""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import psutil
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from datamodules.plan import LARGEST_PATCH, SMALL_UNET, Plan
from training.errors import TrainingError
from training.network import device, network, precision
from training.topology import classes, divisor

__all__ = ["chosen", "device_memory", "sized", "step_bytes", "suited"]

BATCH, BATCHES = 2, (4, 8)  # the least; and what a GPU takes where it fits: powers of two are shared by as many processes
FINEST = 8  # voxels: no side shrinks by less
STATE = 4  # copies of the weights in float32: themselves, their gradient, AdamW's two moments
LOSS = 28  # bytes a score that Dice and cross-entropy hold: copies in float32, and gradients on the way back
PASSING = 3  # times the largest saved tensor: gradients on their way back
MARGIN = 1.2  # for convolutions' workspaces and what the allocator cannot use
ON_A_GPU: dict[str, Any] = {
    "network": "DynUNet",
    "network_args": {},
    "deep_supervision": True,
    "learning_rate": 1e-3,
    "ema": 0.999,
    "steps": 5000,
    "validate_every": 250,
}
VISTA3D: dict[str, Any] = {"network": "VISTA3D", "network_args": {}, "learning_rate": 1e-4}  # the rate is the bundle's
VISTA3D_SIDE = 16, 32, 128  # of a patch: a multiple of, at least, and what the published weights were trained on
ON_A_CPU: dict[str, Any] = {"ema": 0.99, "steps": 5000, "validate_every": 500}
DEFAULT: dict[str, Any] = {item.name: item.default for item in fields(Plan) if item.default is not MISSING}
OWN_NETWORKS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("UNet", SMALL_UNET),
    ("DynUNet", {}),
    ("DenseNet121", {}),
    ("resnet10", {}),
    ("VISTA3D", {}),
)


def device_memory() -> int:
    """Bytes free on the GPU where there is one, else in this machine."""
    if device().type == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def suited(plan: Plan, on: torch.device, given: Collection[str] = ()) -> Plan:
    """``plan`` with a network for the device, and the fields that go with it, unless ``network`` is among the ``given`` ones.

    A segmentation takes DynUNet with deep supervision on a GPU and, for some minutes unless the steps are given, the plan's
    small network on a CPU; a classification takes DenseNet121, or ResNet-10 where an image has fewer than the 32 voxels that
    DenseNet halves away. VISTA3D takes its own arguments, patch and learning rate unless those are given.
    """
    if plan.task == "vista3d":
        own = {**VISTA3D, "patch": _vista3d_patch(plan, on)}
        return replace(plan, **{name: value for name, value in own.items() if name not in given or name == "network"})
    if {"network", "network_args"} & set(given):
        return plan
    if plan.task == "classification":
        fits = min(plan.patch[-plan.dimensions :]) >= 32
        return replace(plan, network="DenseNet121" if fits else "resnet10", network_args={})
    if plan.task != "segmentation" or (on.type == "cpu" and "steps" in given):
        return plan
    own = ON_A_GPU if on.type == "cuda" else ON_A_CPU
    return replace(plan, **{name: value for name, value in own.items() if name not in given})


def chosen(plan: Plan) -> dict[str, Any]:
    """The fields of ``plan`` that somebody chose, as JSON holds them: those that are no device's default. All of them where the
    network is somebody's.
    """
    stored = plan.to_dict()
    if (plan.network, plan.network_args) not in OWN_NETWORKS:
        return stored
    tables = (DEFAULT, ON_A_CPU, ON_A_GPU, VISTA3D, *({"batch": batch} for batch in BATCHES))
    return {
        name: value
        for name, value in stored.items()
        if name in DEFAULT and name != "network" and value not in [table[name] for table in tables if name in table]
    }


def _vista3d_patch(plan: Plan, on: torch.device) -> tuple[int, ...]:
    """The plan's patch as VISTA3D takes it; a GPU takes the published one of a volume that has more than the largest."""
    by, least, published = VISTA3D_SIDE
    full = published if on.type == "cuda" else LARGEST_PATCH
    return tuple(full if side >= LARGEST_PATCH else max(least, -(-side // by) * by) for side in plan.patch)


def sized(plan: Plan, memory: int, *, on: torch.device | None = None, given: Collection[str] = ()) -> Plan:
    """``plan`` with a patch and a batch that train within ``memory`` bytes of the device ``on`` (default: ``device()``).

    The sides of the patch become multiples of what the network asks for; then the longest shrinks until two patches fit, and
    on a GPU the batch grows to 4 or 8 where that fits. Fields among the ``given`` ones stay as they are, whatever they need; so
    does all of a ``vista3d`` plan, whose network was trained on its patch. TrainingError where nothing fits.
    """
    if plan.task == "vista3d":
        return plan
    where = on or device()
    if "patch" not in given:
        plan = _rounded(plan)
    if "batch" not in given:
        plan = replace(plan, batch=BATCH)
    need = _need(plan, where)
    while "patch" not in given and need.bytes(plan.batch) > memory:
        plan = _smaller(plan, need.bytes(plan.batch), memory)
        need = _need(plan, where)
    fitting = [batch for batch in BATCHES if need.bytes(batch) <= memory]
    return replace(plan, batch=fitting[-1]) if fitting and "batch" not in given and where.type == "cuda" else plan


def step_bytes(plan: Plan, on: torch.device) -> int:
    """About how many bytes of the device a training step holds at its peak: weights and their state, and for each patch of
    the batch what the network saves for its way back, counted on shapes alone. TrainingError where the network cannot run.
    """
    return _need(plan, on).bytes(plan.batch)


@dataclass(frozen=True)
class _Need:
    """Bytes of the weights and their state, and of a patch."""

    weights: int
    patch: int

    def bytes(self, batch: int) -> int:
        return int(MARGIN * (self.weights + batch * self.patch))


def _need(plan: Plan, on: torch.device) -> _Need:
    with torch.random.fork_rng(devices=[]):
        net = network(plan)
    saved, largest, heads = _saved(net, plan, precision(plan, on) == "bf16-mixed")
    weights = sum(parameter.numel() for parameter in net.parameters()) * 4
    scores = 0 if plan.task == "classification" else heads * classes(plan) * math.prod(plan.patch)
    return _Need(STATE * weights, saved + PASSING * largest + LOSS * scores)


def _saved(net: nn.Module, plan: Plan, bf16: bool) -> tuple[int, int, int]:
    """Of one patch: the bytes that autograd keeps beside the weights, those of its largest tensor, and the number of heads."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with _shapes_alone(plan), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        image = torch.empty(2, len(plan.channels), *plan.patch[-plan.dimensions :])  # two: batch norms refuse one
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            said = net.train()(image)
        for parameter in net.parameters():
            kept.pop(parameter.untyped_storage()._cdata, None)
    heads = len(said) if not isinstance(said, torch.Tensor) else said.shape[1] if said.ndim == plan.dimensions + 3 else 1
    return sum(kept.values()) // 2, max(kept.values(), default=0) // 2, heads


@contextmanager
def _shapes_alone(plan: Plan) -> Iterator[None]:
    """Tensors without content: what a network does takes no time and no memory."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    except (RuntimeError, ValueError, TypeError, IndexError) as problem:
        said = f"{plan.network} cannot take a patch of {plan.patch}: {str(problem).splitlines()[0]}"
        raise TrainingError(said, about="plan", remedy="give another patch, or a network that takes it") from None


def _rounded(plan: Plan) -> Plan:
    """The sides at the nearest multiples of the network's divisor."""
    first, second, third = (max(1, round(side / by)) * by for side, by in zip(plan.patch, divisor(plan), strict=True))
    return replace(plan, patch=(first, second, third))


def _smaller(plan: Plan, needed: int, memory: int) -> Plan:
    """The longest side that has three multiples of what the network asks for gives up one: a norm needs some voxels at the
    bottom of the network."""
    by = [max(part, FINEST) for part in divisor(plan)]
    able = [axis for axis in range(3) if plan.patch[axis] >= 3 * by[axis]]
    if not able:
        said = f"a step of {plan.network} needs {needed / 2**30:.1f} GiB, and there are {memory / 2**30:.1f}"
        raise TrainingError(said, about="plan", remedy="take a smaller network")
    axis = max(able, key=lambda at: plan.patch[at])
    first, second, third = (side - by[at] if at == axis else side for at, side in enumerate(plan.patch))
    return replace(plan, patch=(first, second, third))
