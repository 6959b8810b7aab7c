"""Fine-tuning VISTA3D: each structure learns to be found by its class and to be drawn from a reader's clicks."""

from pathlib import Path

import torch
from monai.losses.dice import DiceCELoss
from torch import distributed, nn

from datamodules.plan import Plan
from training.loss import processes
from training.module import Batch, SegmentationModule
from training.vista_net import Features, Vista3D
from training.vista_prompts import Prompting, drawn, prompting, with_next
from training.vista_weights import load_weights

__all__ = ["Vista3DModule", "prompted_loss"]

_LOSS = DiceCELoss(sigmoid=True, squared_pred=True, smooth_nr=0, smooth_dr=1e-5)  # the bundle's


class Vista3DModule(SegmentationModule):
    """Trains a ``Vista3D``, on ``weights`` where given (see ``load_weights``), and validates it by class prompts."""

    net: Vista3D

    def __init__(self, plan: Plan, *, weights: Path | None = None) -> None:
        super().__init__(plan, Vista3D)
        if weights:
            load_weights(self.net, weights, sha256=plan.network_args.get("weights_sha256", ""))

    def setup(self, stage: str) -> None:
        """Compile the encoder on a GPU, in place; the heads see another number of prompts at each step."""
        if stage == "fit" and self.trainer.strategy.root_device.type == "cuda":
            self.net.image_encoder.compile()

    def loss(self, batch: Batch) -> torch.Tensor:
        """One batch's loss; see ``prompted_loss``."""
        return prompted_loss(self.net, batch, (self.plan.seed, self.global_step))


def prompted_loss(net: Vista3D, batch: Batch, key: tuple[int, ...]) -> torch.Tensor:
    """Dice and cross-entropy of each prompt's own mask: by class, by clicks, and by these and one more in the first answer's
    error; the encoder runs once for all. ``batch`` is VolumeDataModule's. The prompts follow from ``key`` and a patch's place
    in the step, whichever process computes it. A structure that is not annotated is never asked for.
    """
    features = net.encode(batch["image"])
    loss = _touched(net)
    for number, place in enumerate(_places(len(batch["mask"]))):
        with drawn(*key, place):
            if prompts := prompting(batch["mask"][number], batch["annotated"][number]):
                loss = loss + _patch_loss(net, _one(features, number), prompts) / len(batch["mask"])
    return loss


def _patch_loss(net: Vista3D, features: Features, prompts: Prompting) -> torch.Tensor:
    loss: torch.Tensor = _LOSS(net.by_class(features, prompts.structures).transpose(0, 1).float(), prompts.truth)
    if prompts.clicks:
        asked = prompts.structures[: len(prompts.clicks.points)]
        truth = prompts.truth[: len(asked)]
        first = net.by_clicks(features, asked, prompts.clicks.points, prompts.clicks.inside)
        clicks = with_next(prompts.clicks, first.detach(), truth)
        second = net.by_clicks(features, asked, clicks.points, clicks.inside)
        loss = loss + (_LOSS(first.float(), truth) + _LOSS(second.float(), truth)) / 2
    return loss


def _one(features: Features, number: int) -> Features:
    assert features.clicks is not None and features.classes is not None
    return Features(features.clicks[number : number + 1], features.classes[number : number + 1])


def _touched(net: nn.Module) -> torch.Tensor:
    """Zero, with a gradient of zero for every parameter that learns: processes agree on who has one, whatever each prompts."""
    return 0.0 * torch.stack([parameter.sum() for parameter in net.parameters() if parameter.requires_grad]).sum()


def _places(count: int) -> range:
    """Where in the step's patches those of this process lie: every R-th of R processes (see VolumeDataModule)."""
    return range(distributed.get_rank() if processes() > 1 else 0, count * processes(), processes())
