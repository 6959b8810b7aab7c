"""The Lightning module: a network of the plan, learning from labels that may leave structures out."""

from typing import Any

import pytorch_lightning as pl
import torch
from monai.inferers.inferer import SlidingWindowInfererAdapt
from torch.nn import functional

from datamodules.plan import Plan
from training.network import network

__all__ = ["SegmentationModule", "masked_loss"]

WARM_UP = 0.1  # of the steps until the learning rate is reached
SMOOTH = 1.0  # voxels added above and below in the soft Dice: an empty structure that is predicted empty costs nothing


class SegmentationModule(pl.LightningModule):  # type: ignore[misc]
    """Trains the plan's network on batches of VolumeDataModule; logs ``train_loss``, ``val_dice``, ``val_dice_<structure>``."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.net = network(plan)
        self._windows = SlidingWindowInfererAdapt(plan.patch, plan.batch, plan.overlap, "gaussian", padding_mode="replicate")
        self._dices: list[list[float | None]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 1, D, H, W) images → (B, 1 + structures, D, H, W) logits."""
        logits: torch.Tensor = self.net(image)
        return logits

    def classes(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 1, D, H, W) prepared volumes of any size → (B, D, H, W) classes, by sliding windows."""
        logits = self._windows(image, self.net)
        assert isinstance(logits, torch.Tensor)
        return logits.argmax(1)

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        """One batch's loss."""
        loss = masked_loss(self(batch["image"]), batch["mask"], batch["annotated"])
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["mask"]), sync_dist=True)
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        """One whole volume's Dice, on the prepared grid."""
        self._dices.append(_dices(self.classes(batch["image"])[0], batch["mask"][0], batch["annotated"][0]))

    def on_validation_epoch_end(self) -> None:
        """Average over the volumes in which a structure was annotated, then over the structures."""
        means = {}
        for name, column in zip(self.plan.structures, zip(*self._dices, strict=True), strict=False):
            known = [dice for dice in column if dice is not None]
            if known:
                means[f"val_dice_{name}"] = sum(known) / len(known)
        if means:
            self.log_dict({"val_dice": sum(means.values()) / len(means), **means}, sync_dist=True)
        self._dices.clear()

    def configure_optimizers(self) -> Any:
        """AdamW; the learning rate climbs to the plan's and falls to nothing as a cosine over all steps."""
        plan = self.plan
        optimizer = torch.optim.AdamW(self.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.learning_rate, total_steps=plan.steps + 1, pct_start=WARM_UP)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


def masked_loss(logits: torch.Tensor, mask: torch.Tensor, annotated: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus soft Dice for labels that need not cover every structure.

    ``logits`` (B, 1 + S, D, H, W), ``mask`` (B, D, H, W) classes, ``annotated`` (B, S) bool. Where a case's label says nothing
    of a structure, its probability is added to the background's and its voxels count as background (the marginal loss of Shi
    et al., Medical Image Analysis 2021): background or that structure, both are right, and nothing is learned of which.
    """
    log_p = _merged(logits.float().log_softmax(1), annotated)
    known = torch.cat([annotated.new_ones(len(annotated), 1), annotated], 1)
    target = torch.where(known.gather(1, mask.flatten(1).long()).view_as(mask), mask, 0).long()
    entropy = functional.nll_loss(log_p, target)
    truth = functional.one_hot(target, log_p.shape[1]).movedim(-1, 1)[:, 1:]
    p = log_p[:, 1:].exp() * annotated[:, :, None, None, None]
    both, sizes = ((p * truth).sum((0, 2, 3, 4)), (p + truth).sum((0, 2, 3, 4)))
    dice = 1 - (2 * both + SMOOTH) / (sizes + SMOOTH)
    asked = annotated.any(0)
    return entropy + (dice * asked).sum() / asked.sum().clamp_min(1)


def _merged(log_p: torch.Tensor, annotated: torch.Tensor) -> torch.Tensor:
    """Log probabilities with those of the structures not annotated added to the background's."""
    if annotated.all():
        return log_p
    unknown = ~annotated[:, :, None, None, None]
    rest = log_p[:, 1:].masked_fill(~unknown, -torch.inf)
    background = torch.cat([log_p[:, :1], rest], 1).logsumexp(1, keepdim=True)
    return torch.cat([background, log_p[:, 1:].masked_fill(unknown, -30.0)], 1)


def _dices(classes: torch.Tensor, truth: torch.Tensor, annotated: torch.Tensor) -> list[float | None]:
    dices: list[float | None] = []
    for index, known in enumerate(annotated.tolist(), 1):
        found, true = classes == index, truth == index
        total = int(found.sum() + true.sum())
        dices.append(None if not known else 2 * int((found & true).sum()) / total if total else 1.0)
    return dices
