"""The segmentation module on batches made by hand: what it learns, measures and logs."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from datamodules.plan import Plan
from training.errors import TrainingError
from training.module import Batch, SegmentationModule

pytestmark = pytest.mark.filterwarnings("ignore:::pytorch_lightning")  # its advice on workers and devices
TINY = {"channels": [8, 8, 16], "strides": [2, 2]}
BASE = {"spacing": (1.0, 1.0, 1.0), "structures": ("a", "b"), "values": (1, 2), "patch": (8, 16, 16), "learning_rate": 0.02}


def plan(**changes: object) -> Plan:
    return Plan.from_dict({**BASE, "network": "UNet", "network_args": TINY, **changes})


def case(shape: tuple[int, int, int], *, batch: int = 1, only_first: bool = False, repeat: bool = False) -> Batch:
    """Two boxes, each of its own brightness."""
    mask = torch.zeros(batch, *shape, dtype=torch.uint8)
    mask[..., 2:8, 2:8] = 1
    if not only_first:
        mask[..., 9:14, 9:14] = 2
    image = mask[:, None].float() + 0.1 * torch.randn(batch, 1, *shape, generator=torch.Generator().manual_seed(0))
    annotated = torch.tensor([[True, not only_first]] * batch)
    present = torch.tensor([[True, not only_first]] * batch)
    return {"image": image, "mask": mask, "annotated": annotated, "present": present, "counted": torch.tensor([not repeat])}


def fitted(module: SegmentationModule, train: Batch, validation: list[Batch], steps: int) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, DataLoader([train] * steps, batch_size=None), DataLoader(validation, batch_size=None))
    return trainer


@pytest.mark.parametrize("patch", [(8, 16, 16), (1, 16, 16)])
def test_it_overfits_a_batch_and_logs_what_it_reaches(patch: tuple[int, int, int]) -> None:
    module = SegmentationModule(plan(patch=patch, steps=40))
    whole = (patch[0], 20, 18)  # larger than a window
    trainer = fitted(module, case(patch, batch=2), [case(whole), case(whole, only_first=True)], 40)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert set(logged) == {"train_loss", "val_loss", "val_dice", "val_score", "val_dice_a", "val_dice_b"}
    assert logged["val_dice"] == logged["val_score"] > 0.8
    assert logged["val_dice"] == pytest.approx((logged["val_dice_a"] + logged["val_dice_b"]) / 2)
    assert module.classes(case(whole)["image"]).shape == (1, *whole)


def test_a_repeated_case_and_a_structure_not_annotated_count_for_nothing() -> None:
    module = SegmentationModule(plan(steps=1))
    shape = (8, 16, 16)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    once, with_repeat = (
        trainer.validate(module, DataLoader(cases, batch_size=None), verbose=False)[0]
        for cases in ([case(shape)], [case(shape), case(shape, only_first=True, repeat=True)])
    )
    assert once == with_repeat
    assert (
        "val_dice_b"
        not in trainer.validate(module, DataLoader([case(shape, only_first=True)], batch_size=None), verbose=False)[0]
    )


class OnlyFirst(nn.Module):
    """Says the first structure everywhere."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([0 * image, 0 * image + 9, 0 * image], 1)


def test_an_absent_structure_scores_one_only_where_nothing_is_predicted() -> None:
    empty = case((8, 16, 16))
    empty["mask"] = torch.zeros_like(empty["mask"])
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    module = SegmentationModule(plan(), make=lambda _: OnlyFirst())
    said = trainer.validate(module, DataLoader([empty], batch_size=None), verbose=False)[0]
    assert (said["val_dice_a"], said["val_dice_b"], said["val_dice"]) == (0.0, 1.0, 0.5)


def test_one_seed_is_one_network() -> None:
    weights = [SegmentationModule(plan(seed=seed)).net.state_dict() for seed in (1, 1, 2)]
    first, same, other = (next(iter(state.values())) for state in weights)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_the_learning_rate_climbs_to_the_plans_and_falls_to_nothing() -> None:
    made = SegmentationModule(plan(steps=20)).configure_optimizers()
    rates = []
    for _ in range(20):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert max(rates) == pytest.approx(0.02, rel=0.01)
    assert rates.index(max(rates)) in (1, 2)
    assert rates[-1] < 0.001


def test_a_network_of_another_shape_is_refused() -> None:
    module = SegmentationModule(plan(), make=lambda _: nn.Conv3d(1, 3, 3))
    with pytest.raises(TrainingError, match=r"\(2, 3, 6, 14, 14\) where \(2, 3, 8, 16, 16\)"):
        module.loss(case((8, 16, 16), batch=2))
