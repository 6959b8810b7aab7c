"""The Lightning modules: a network of the plan, how it is optimised, and what a segmentation learns from and is measured by."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from datamodules.plan import Plan
from training.errors import TrainingError
from training.loss import supervised_loss, volume_loss
from training.network import logits, network, outputs
from training.windows import windows

__all__ = ["Batch", "PlanModule", "SegmentationModule"]

WARM_UP = 0.1  # of the steps until the learning rate is reached
Batch = dict[str, torch.Tensor]


class PlanModule(pl.LightningModule):  # type: ignore[misc]
    """A network of the plan under AdamW, on batches of VolumeDataModule. ``make`` is called after seeding.

    A subclass gives ``loss`` and ``validation_step``; what it validates goes case by case into ``tally`` and comes out of
    ``means``, over all processes. Logs ``train_loss``; a subclass logs ``val_score``, the more the better.
    """

    measures: tuple[str, ...] = ()
    """The names of what ``tally`` takes, in order."""

    def __init__(self, plan: Plan, make: Callable[[Plan], nn.Module] = network) -> None:
        super().__init__()
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.net = make(plan)
        self._tally: torch.Tensor | None = None

    def setup(self, stage: str) -> None:
        """Compile the network on a GPU, in place: its parameters keep their names. A CPU gains less than compiling takes."""
        if stage == "fit" and self.trainer.strategy.root_device.type == "cuda":
            self.net.compile()

    def loss(self, batch: Batch) -> torch.Tensor:
        """One training batch's loss, a scalar; over the batch of all processes where it is more than a mean of cases."""
        raise NotImplementedError

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        """One batch's loss."""
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["image"]), sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW; the learning rate climbs to the plan's and falls to nothing as a cosine over all steps."""
        plan = self.plan
        optimizer = torch.optim.AdamW(self.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.learning_rate, total_steps=plan.steps + 1, pct_start=WARM_UP)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def tally(self, values: torch.Tensor, counted: torch.Tensor) -> None:
        """Take one case's (measures,) values, nan where it has none; ``counted`` (1,) bool is False for a repeated case."""
        known = ~values.isnan() & counted
        case = torch.stack([values.nan_to_num() * known, known]).float().to(self.device)
        self._tally = case if self._tally is None else self._tally + case

    def means(self) -> dict[str, float]:
        """The mean of each measure over the cases of all processes since the last call; only of those that any case had."""
        if self._tally is None:
            return {}
        sums, counts = self.trainer.strategy.reduce(self._tally, reduce_op="sum").tolist()
        self._tally = None
        return {name: s / n for name, s, n in zip(self.measures, sums, counts, strict=True) if n}


class SegmentationModule(PlanModule):
    """Voxel by voxel; logs ``val_loss``, ``val_dice``, ``val_dice_<structure>``, and ``val_score``, which is ``val_dice``."""

    def __init__(self, plan: Plan, make: Callable[[Plan], nn.Module] = network) -> None:
        super().__init__(plan, make)
        self.measures = ("val_loss", *(f"val_dice_{name}" for name in plan.structures))
        self._windows = windows(plan)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) patches → (B, 1 + structures, D, H, W) logits."""
        return logits(self.net, image, self.plan)

    def classes(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) prepared volumes of any size → (B, D, H, W) classes, by sliding windows."""
        return self._scores(image).argmax(1)

    def probabilities(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) prepared volumes of any size → (B, 1 + structures, D, H, W), by sliding windows."""
        return self._scores(image).float().softmax(1)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Dice and cross-entropy; see ``supervised_loss``. TrainingError where the network's answer has another shape."""
        said = outputs(self.net, batch["image"], self.plan)
        asked = (len(batch["mask"]), 1 + len(self.plan.structures), *batch["mask"].shape[1:])
        if said[0].shape != asked:
            found = tuple(said[0].shape)
            raise TrainingError(f"{self.plan.network} gives {found} where {asked} is asked for", about="plan")
        return supervised_loss(said, batch["mask"], batch["annotated"], across=True)

    def validation_step(self, batch: Batch, index: int) -> None:
        """One whole case's loss and Dice, on the prepared grid."""
        scores = self._scores(batch["image"])
        mask, annotated = batch["mask"].to(scores.device), batch["annotated"].to(scores.device)
        dices = _dices(scores.argmax(1)[0], mask[0], annotated[0])
        loss = volume_loss(scores, mask, annotated)
        self.tally(torch.cat([loss[None], dices]).to(self.device), batch["counted"].to(self.device))

    def on_validation_epoch_end(self) -> None:
        """Each structure's mean over the cases that it is annotated in, and the mean of those."""
        means = self.means()
        dices = [value for name, value in means.items() if name.startswith("val_dice_")]
        if dices:
            mean = sum(dices) / len(dices)
            means |= {"val_dice": mean, "val_score": mean}
        self.log_dict(means)

    def _scores(self, image: torch.Tensor) -> torch.Tensor:
        scores = self._windows(image, self)
        assert isinstance(scores, torch.Tensor)
        return scores


def _dices(found: torch.Tensor, truth: torch.Tensor, annotated: torch.Tensor) -> torch.Tensor:
    """(S,) Dice coefficients of two (D, H, W) class maps, nan where not annotated.

    Of a structure that is absent it is 1 where nothing is predicted, else 0.
    """
    known = torch.arange(1, len(annotated) + 1, device=found.device)
    both, predicted, true = (
        torch.stack([(part == index).sum() for index in known])
        for part in (torch.where(found == truth, found, 0), found, truth)
    )
    total = predicted + true
    dice = torch.where(total > 0, 2 * both / total.clamp_min(1), 1.0)
    return torch.where(annotated, dice, torch.nan)
