"""A network that answers and learns no more: on the device, in evaluation mode, in the numbers and the form it is fast in."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from datamodules.plan import Plan
from training.network import device, logits, precision

__all__ = ["FrozenNet"]

_log = logging.getLogger(__name__)


class FrozenNet:
    """``net`` of ``plan``, called with (B, C, D, H, W) windows on ``device()`` for (B, K, D, H, W) float32 logits.

    On a GPU windows of the plan's patch go through the compiled network, whose first answer waits for it; others, and all on a
    CPU, through the network as it is. Where the plan's precision is bf16 a GPU computes in float16, as fast and eight times as
    exact; beyond 65504 that has no numbers, and what comes out is not finite: see ``widen``.
    """

    def __init__(self, net: nn.Module, plan: Plan) -> None:
        self._plan, self._device = plan, device()
        self._net = net.to(self._device).eval()
        self._compiled: nn.Module | None = torch.compile(self._net, dynamic=False) if self._device.type == "cuda" else None
        self._dtype = _dtype(plan, self._device)
        self._dropout = [part for part in net.modules() if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0]

    @property
    def net(self) -> nn.Module:
        """The network itself, on the device."""
        return self._net

    @property
    def has_dropout(self) -> bool:
        """Whether ``sample`` gives anything but the one answer."""
        return bool(self._dropout)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """The answer to some windows."""
        with torch.inference_mode(), torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            if self._compiled is None or tuple(image.shape[2:]) != self._plan.patch:
                return logits(self._net, image, self._plan).float()
            return self._by_compiled(self._compiled, image)

    def sample(self, image: torch.Tensor, seed: int) -> torch.Tensor:
        """The answer of one of the networks that dropout makes of this one, the same for the same ``seed``, so that all windows
        of a volume are asked the same one."""
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []), self._dropping():
            torch.manual_seed(seed)
            return self(image)

    def widen(self) -> bool:
        """Compute in bf16 from now on where it was float16; whether that changed anything."""
        changed = bool(self._dtype == torch.float16)
        if changed:
            _log.warning("%s exceeds what float16 holds: it is asked in bf16", self._plan.network)
            self._dtype = torch.bfloat16
        return changed

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        for part in self._dropout:
            part.train()
        try:
            yield
        finally:  # the network may be another predictor's too
            for part in self._dropout:
                part.eval()

    def _by_compiled(self, compiled: nn.Module, image: torch.Tensor) -> torch.Tensor:
        """A batch that is not full is filled up: another size would be compiled anew."""
        lacking = self._plan.batch - len(image)
        full = torch.cat([image, image[-1:].expand(lacking, -1, -1, -1, -1)]) if lacking > 0 else image
        try:
            return logits(compiled, full, self._plan)[: len(image)].float()
        except RuntimeError as problem:
            from torch._dynamo.exc import TorchDynamoException  # takes a second to import

            if not isinstance(problem, TorchDynamoException):  # no memory left: the windows know what to do
                raise
            _log.warning("%s cannot be compiled and is slower: %s", self._plan.network, str(problem).splitlines()[0])
            self._compiled = None
            return logits(self._net, image, self._plan).float()


def _dtype(plan: Plan, on: torch.device) -> torch.dtype:
    if precision(plan, on) == "32-true":
        return torch.float32
    return torch.float16 if on.type == "cuda" else torch.bfloat16
