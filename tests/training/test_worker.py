"""What is kept of an epoch: the weights that were validated, averaged where the plan says so, of the best epochs."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from datamodules.plan import Plan
from training.worker import Keeper, callbacks


class Counting(pl.LightningModule):  # type: ignore[misc]
    """Its one weight counts the steps; an epoch is a step, and epoch e scores ``scores[e]``."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.net.weight)
        self.scores, self.trained, self.validated = scores, [], []  # type: ignore[var-annotated]

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        self.trained.append(float(self.net.weight.detach()))
        return -self.net.weight.sum()

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.validated.append(float(self.net.weight))
        self.log("val_score", self.scores[self.trainer.current_epoch])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def trained(folder: Path, scores: list[float], **plan: Any) -> tuple[Counting, Keeper]:
    made = Counting(scores)
    asked = Plan(spacing=(1.0, 1.0, 1.0), structures=("liver",), values=(1,), patch=(16, 16, 16), **plan)
    keeper = Keeper(asked.ensemble)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=len(scores),
        callbacks=list(callbacks(asked, keeper, validated=True)),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    data = DataLoader(torch.zeros(1, 1))
    trainer.fit(made, data, data)
    return made, keeper


def kept(keeper: Keeper) -> list[float]:
    return [float(state["weight"]) for state in keeper.states]


def test_the_best_epochs_are_kept_the_later_of_equals_first(tmp_path: Path) -> None:
    _, keeper = trained(tmp_path, [0.1, 0.7, 0.3, 0.7, 0.2], ensemble=3)
    assert kept(keeper) == [4.0, 2.0, 3.0]


def test_averaged_weights_validate_and_are_kept_and_others_train(tmp_path: Path) -> None:
    made, keeper = trained(tmp_path, [0.1, 0.7, 0.7], ema=0.5, ensemble=2)
    assert made.trained == [0.0, 1.0, 2.0]
    assert made.validated == [1.0, 1.5, 2.25]
    assert kept(keeper) == [2.25, 1.5]


def test_no_patience_is_left_after_as_many_epochs_without_a_better_one(tmp_path: Path) -> None:
    made, keeper = trained(tmp_path, [0.5, 0.4, 0.5, 0.6, 0.7], patience=2)
    assert len(made.validated) == 3
    assert kept(keeper) == [3.0]


def test_a_keeper_goes_on_from_its_state() -> None:
    first, second = Keeper(2), Keeper(2)
    first.load_state_dict({"kept": [[0.5, 2, {"weight": torch.ones(1)}]]})
    second.load_state_dict(first.state_dict())
    assert kept(second) == [1.0]
