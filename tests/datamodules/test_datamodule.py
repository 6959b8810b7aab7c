"""Patches are a function of seed and epoch, whoever cuts them and whatever is kept; every row is counted."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from datamodules._petastorm import seal, write
from datamodules.datamodule import VolumeDataModule, Volumes, visits
from datamodules.dataset import DatasetInfo
from datamodules.errors import DataError
from datamodules.patches import box_size, cut
from datamodules.plan import Plan
from datamodules.sample import Sample
from experiments.synthetic import LABEL_SET

CPU = torch.device("cpu")
PLAN = Plan(
    spacing=(2.0, 1.0, 1.0), structures=("liver", "spleen"), values=(1, 2), patch=(8, 16, 16), batch=2, validate_every=5
)


def case(index: int, shape: Sequence[int] = (10, 20, 22)) -> Sample:
    rng = np.random.default_rng(index)
    mask = torch.zeros(*shape, dtype=torch.uint8)
    mask[shape[0] // 2, 3:9, 4:8] = 1
    mask[shape[0] // 2, 12:15, 12:15] = 2
    image = torch.from_numpy(rng.integers(0, 100, (1, *shape)).astype(np.int16))
    numbers, states = torch.tensor([[1.0, 0.0, 99.0, 50.0, 30.0]]), torch.tensor([True, index % 2 == 0])
    places = mask.nonzero()
    centres = torch.cat([mask[tuple(places.T)].long()[:, None], places], 1).int()
    return Sample(f"c{index}", f"1.{index}", "", "", image, numbers, mask, states, torch.tensor([True, True]), centres)


def dataset(folder: Path, train: int = 5, validation: int = 3) -> DatasetInfo:
    for role, number in (("train", train), ("validation", validation)):
        for index in range(number):
            write(folder / role / f"{index}.parquet", case(index))
        seal(folder / role)
    return DatasetInfo(folder, {"train": train, "validation": validation}, "digest", (), PLAN, LABEL_SET)


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    return dataset(tmp_path_factory.mktemp("dataset"))


def epoch(
    info: DatasetInfo, number: int = 0, *, rank: int = 0, ranks: int = 1, memory: int | None = None, plan: Plan = PLAN
) -> list[dict[str, Any]]:
    return list(batches(VolumeDataModule(info, plan, memory=memory), number, rank, ranks))


def batches(data: VolumeDataModule, number: int = 0, rank: int = 0, ranks: int = 1) -> Iterator[dict[str, Any]]:
    strategy = SimpleNamespace(root_device=CPU)
    data.trainer = SimpleNamespace(current_epoch=number, global_rank=rank, world_size=ranks, strategy=strategy)  # type: ignore[assignment]
    for batch in data.train_dataloader():
        yield data.on_after_batch_transfer(batch, 0)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in ("image", "mask", "annotated", "present"))


def test_five_rows_and_two_processes_see_equally_many(info: DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    visit = Volumes.visit
    monkeypatch.setattr(Volumes, "visit", lambda self, order: asked.append(len(order)) or visit(self, order))  # type: ignore[func-returns-value]
    parts = [epoch(info, rank=rank, ranks=2) for rank in range(2)]
    assert asked == [3, 3]
    assert [len(part) for part in parts] == [PLAN.validate_every] * 2
    for whole, one, other in zip(epoch(info), *parts, strict=True):
        assert torch.equal(whole["image"], torch.cat([one["image"], other["image"]]))
        assert torch.equal(whole["mask"], torch.cat([one["mask"], other["mask"]]))


def test_an_epoch_is_a_function_of_seed_and_number(info: DatasetInfo) -> None:
    data = VolumeDataModule(info, PLAN)
    running = [list(batches(data, number)) for number in range(3)]
    assert all(map(same, running[2], epoch(info, 2)))
    assert not same(running[0][0], running[1][0])
    assert not same(running[0][0], epoch(info, plan=replace(PLAN, seed=1))[0])
    assert running[0][0]["image"].shape == (PLAN.batch, 1, *PLAN.patch)


def test_what_is_kept_in_memory_changes_nothing(info: DatasetInfo) -> None:
    streamed, kept = VolumeDataModule(info, PLAN, memory=0), VolumeDataModule(info, PLAN)
    for number in range(3):
        assert all(map(same, batches(streamed, number), batches(kept, number)))


def test_with_everything_in_memory_the_disk_is_left_alone(tmp_path: Path) -> None:
    info = dataset(tmp_path)
    volumes = Volumes(tmp_path / "train", 5, device=CPU, memory=2**20)
    assert [sample.case for sample in volumes.visit([3, 0, 1, 2, 4, 0])] == ["c3", "c0", "c1", "c2", "c4", "c0"]
    assert volumes.in_memory
    for path in info.path.rglob("*.parquet"):
        path.unlink()
    assert [sample.case for sample in volumes.visit([4, 4])] == ["c4", "c4"]


def test_every_volume_comes_once_before_any_comes_again() -> None:
    order = visits(3, 7, 0, 21)
    assert all(sorted(order[start : start + 7]) == list(range(7)) for start in (0, 7, 14))
    assert order[5:12] == visits(3, 7, 5, 7)
    assert order[:7] != order[7:14]


def test_a_lost_volume_does_not_pass_unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = dataset(tmp_path)
    with pytest.raises(DataError, match="5 volumes were read, 6 were expected"):
        epoch(replace(info, rows={"train": 6}))
    read = __import__("datamodules.datamodule", fromlist=["samples"]).samples
    monkeypatch.setattr("datamodules.datamodule.samples", lambda folder, order: list(read(folder, order))[:-1].__iter__())
    with pytest.raises(DataError, match="5 volumes were read, 6 were expected"):
        epoch(info)


def test_processes_that_cannot_share_a_batch_are_told(info: DatasetInfo) -> None:
    with pytest.raises(DataError, match="3 processes cannot share 2 patches"):
        epoch(info, ranks=3)


def test_no_training_case_is_said(info: DatasetInfo) -> None:
    with pytest.raises(DataError, match="no labelled training case"):
        VolumeDataModule(replace(info, rows={"validation": 1}), PLAN).train_dataloader()


def test_validation_is_shared_and_a_repeat_is_not_counted(info: DatasetInfo) -> None:
    parts = []
    for rank in range(2):
        data = VolumeDataModule(info, PLAN)
        trainer = SimpleNamespace(global_rank=rank, world_size=2, strategy=SimpleNamespace(root_device=CPU))
        data.trainer = trainer  # type: ignore[assignment]
        parts.append(list(data.val_dataloader()))
    assert [[bool(batch["counted"]) for batch in part] for part in parts] == [[True, True], [True, False]]
    assert parts[0][0]["image"].shape == (1, 1, 10, 20, 22)
    assert torch.equal(parts[0][0]["image"][0], case(0).normalised())


def test_most_patches_lie_around_a_structure() -> None:
    plan = replace(PLAN, augment=False, patch=(4, 6, 6))
    holds = [bool(cut(case(0), plan, (0, visit, 0)).mask.any()) for visit in range(100)]
    assert np.mean(holds) > 0.6


def test_without_augmentation_a_patch_is_the_image(info: DatasetInfo) -> None:
    plan, whole = replace(PLAN, augment=False), case(1)
    box = cut(whole, plan, (0, 1, 0))
    assert box_size(plan) == plan.patch
    windows = whole.normalised()[0].unfold(0, 8, 1).unfold(1, 16, 1).unfold(2, 16, 1).reshape(-1, 8, 16, 16)
    assert (windows == box.image[0]).flatten(1).all(1).any()


def test_a_turn_moves_image_and_mask_together() -> None:
    whole = case(0, (16, 40, 40))
    bright = replace(whole, image=whole.mask[None].to(torch.int16) * 40, intensity=torch.tensor([[1.0, 0.0, 99.0, 0.0, 1.0]]))
    from datamodules.augment import augment

    plan = replace(PLAN, patch=(8, 24, 24))
    for visit in range(12):
        box = cut(bright, plan, (0, visit, 0))
        assert box.draw is not None
        calm = replace(box.draw, contrast=1, brightness=0, gamma=1, noise=0, coarse=1)
        image, mask = augment(box.image[None], box.mask[None], [calm], plan.patch)
        assert image.shape[2:] == mask.shape[1:] == plan.patch
        assert bool(((image[0, 0] > 45).float() * (mask[0] != 2)).mean() < 0.01)


def test_small_and_flat_volumes_are_padded() -> None:
    low = torch.tensor((0.0 - 50) / 30)
    box = cut(case(0, (4, 10, 10)), replace(PLAN, augment=False), (0, 0, 0))
    assert torch.equal(box.image[0, 0], low.expand(16, 16))
    flat = cut(case(0, (1, 20, 22)), replace(PLAN, patch=(1, 16, 16)), (0, 0, 0))
    assert flat.image.shape[1] == 1
