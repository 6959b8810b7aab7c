"""`voxloop bench infer`: VISTA3D's network over a large volume, by our windows and by stock MONAI's."""

import statistics
from dataclasses import dataclass, replace

import torch
from torch import nn

from datamodules.plan import Plan
from experiments.baselines import monai_stock
from experiments.bench import BenchResult, compare
from training.frozen import FrozenNet
from training.network import device
from training.windows import windows

__all__ = ["FULL", "SMALL", "Setting", "bench"]

STOCK_OVERLAP = 0.625
PLAN_OVERLAP = 0.25


@dataclass(frozen=True)
class Setting:
    """``size`` of the volume, side of the ``window`` (voxels), width of the network (``embed``), windows at once (``batch``).

    ``precision`` is a plan's.
    """

    size: tuple[int, int, int]
    window: int
    embed: int
    batch: int
    precision: str


FULL = Setting((320, 320, 256), window=128, embed=48, batch=4, precision="auto")
SMALL = Setting((64, 64, 64), window=32, embed=8, batch=4, precision="32")
"""What takes seconds without a GPU. Not in bf16: with random weights its masks are not those of float32."""


def bench(*, n: int = 10, rounds: int = 3, setting: Setting | None = None) -> BenchResult:
    """Segment ``n`` classes of a random volume with the same random weights, both ways ending with logits (stock) or masks
    (ours) on the device. Without a GPU in SMALL, and ``small`` says so.

    ``ours`` is at the plan's overlap, ``baseline`` at the stock's own, ``same_overlap_ratio`` compares both at that. Figures:
    ``dice``, how well the masks agree at the same overlap, mean over the classes, ``worst_dice`` the lowest class's and
    ``plan_overlap_dice`` at the plan's; ``seconds``, ``same_overlap_seconds`` and ``stock_seconds`` a volume.
    """
    chosen = setting or (FULL if device().type == "cuda" else SMALL)
    net, volume = monai_stock.setting(chosen.size, embed=chosen.embed)
    net, volume = net.to(device()), volume.to(device())
    ways = {overlap: _Ours(net, chosen, n, overlap) for overlap in (PLAN_OVERLAP, STOCK_OVERLAP)}

    def stock() -> torch.Tensor:
        return _done(monai_stock.infer(net, volume, classes=n, window=chosen.window, overlap=STOCK_OVERLAP))

    expected = stock()[0] > 0
    agreed = {overlap: _dices(way(volume), expected) for overlap, way in ways.items()}
    same = compare("infer", lambda: ways[STOCK_OVERLAP](volume), stock, n=n, rounds=rounds)
    result = compare("infer", lambda: ways[PLAN_OVERLAP](volume), stock, n=n, rounds=rounds)
    figures = {
        "small": chosen == SMALL,
        "same_overlap_ratio": same.ratio,
        "dice": statistics.mean(agreed[STOCK_OVERLAP]),
        "worst_dice": min(agreed[STOCK_OVERLAP]),
        "plan_overlap_dice": statistics.mean(agreed[PLAN_OVERLAP]),
        "seconds": result.ours,
        "same_overlap_seconds": same.ours,
        "stock_seconds": result.baseline,
    }
    return replace(result, figures={**result.figures, **figures})


class _Ours:
    """(1, 1, D, H, W) volumes → (classes, D, H, W) bool masks, all on the device; one network is frozen for all overlaps."""

    def __init__(self, net: nn.Module, setting: Setting, classes: int, overlap: float) -> None:
        names = tuple(f"class {number}" for number in range(1, classes + 1))
        plan = Plan.from_dict(
            {
                "spacing": (1, 1, 1),
                "patch": (setting.window,) * 3,
                "structures": names,
                "values": tuple(range(1, classes + 1)),
                "batch": setting.batch,
                "overlap": overlap,
                "precision": setting.precision,
            }
        )
        self._windows, self._net = windows(plan), FrozenNet(_ByClass(net, classes), plan)

    def __call__(self, volume: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return _done(self._windows(volume, self._net)[0] > 0)


class _ByClass(nn.Module):
    """VISTA3D's network asked for its first classes, all of several windows at once and the encoder run once for all classes;
    MONAI's own ``forward`` empties the GPU's cache after every window as well."""

    def __init__(self, net: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = net.image_encoder, net.class_head
        self.register_buffer("prompts", torch.arange(1, classes + 1, device=next(net.parameters()).device)[:, None])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        _, features = self.encoder(image, with_point=False, with_label=True)
        logits: torch.Tensor = self.head(features, self.prompts)[0].transpose(0, 1)
        return logits


def _done(result: torch.Tensor) -> torch.Tensor:
    """``result``, once the device has computed it."""
    if result.is_cuda:
        torch.cuda.synchronize()
    return result


def _dices(ours: torch.Tensor, expected: torch.Tensor) -> list[float]:
    """A class each; 1 where both are empty."""
    both, total = (ours & expected).flatten(1).sum(1), ours.flatten(1).sum(1) + expected.flatten(1).sum(1)
    return [float(dice) for dice in torch.where(total > 0, 2 * both / total.clamp_min(1), 1.0)]
