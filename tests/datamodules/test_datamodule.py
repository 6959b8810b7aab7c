"""What the data module feeds: real Petastorm files, no Spark."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from datamodules import DataError, Plan
from datamodules._petastorm import samples, seal, write
from datamodules.cache import Cache, Volumes
from datamodules.datamodule import VolumeDataModule
from datamodules.dataset import DatasetInfo
from datamodules.prefetch import Batch
from datamodules.sample import Sample
from experiments.synthetic import LABEL_SET

PLAN = Plan((1.0, 1.0, 1.0), ("liver", "spleen"), (1, 2), (8, 8, 8), batch=2, patches=2, validate_every=5)
STILL = replace(PLAN, augment=False, patches=1)
CPU = torch.device("cpu")
ROWS = 5


def case(index: int, shape: tuple[int, int, int] = (12, 14, 10)) -> Sample:
    """Around ``100 · index``, so that a patch tells whose it is; a structure in the middle."""
    rng = np.random.default_rng(index)
    mask = np.zeros(shape, np.uint8)
    mask[4:7, 5:9, 3:6] = 1 + index % 2
    image = torch.from_numpy((100 * index + rng.integers(-9, 10, (1, *shape))).astype(np.int16))
    centres = np.c_[np.full(int((mask > 0).sum()), 1 + index % 2), np.argwhere(mask)].astype(np.int32)
    states = torch.tensor([True, index != 1]), torch.tensor([index % 2 == 0, index % 2 == 1])
    intensity = torch.tensor([[1.0, -50.0, 2000.0, 0.0, 1.0]])
    return Sample(f"case{index}", "", "", "", image, intensity, torch.from_numpy(mask), *states, torch.from_numpy(centres))


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetInfo:
    """Five cases to train on and three to validate with."""
    for role, rows in (("train", range(ROWS)), ("validation", range(10, 13))):
        for row in rows:
            write(tmp_path / role / f"{row:02d}.parquet", case(row))
        seal(tmp_path / role)
    return DatasetInfo(tmp_path, {"train": ROWS, "validation": 3}, "digest", (), PLAN, LABEL_SET)


def module(dataset: DatasetInfo, plan: Plan, rank: int = 0, ranks: int = 1, *, memory: int | None = None) -> VolumeDataModule:
    """As one of ``ranks`` processes sees it."""
    made, strategy = VolumeDataModule(dataset, plan, memory=memory), SimpleNamespace(root_device=CPU)
    made.trainer = SimpleNamespace(global_rank=rank, world_size=ranks, current_epoch=0, strategy=strategy)
    return made


def whose(batches: Sequence[Batch]) -> list[int]:
    """The rows that unmoved patches come from."""
    return [round(float(image.max()) / 100) for batch in batches for image in batch["image"]]


def same(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


def test_an_epoch_is_seeded_and_complete(dataset: DatasetInfo) -> None:
    first, again = (list(module(dataset, PLAN).train_dataloader()) for _ in range(2))
    assert len(first) == len(module(dataset, PLAN).train_dataloader()) == PLAN.validate_every
    assert same(first, again)
    assert {name: (tuple(t.shape), t.dtype) for name, t in first[0].items()} == {
        "image": ((2, 1, 8, 8, 8), torch.float32),
        "mask": ((2, 8, 8, 8), torch.uint8),
        "annotated": ((2, 2), torch.bool),
        "present": ((2, 2), torch.bool),
    }
    other = list(module(dataset, replace(PLAN, seed=1)).train_dataloader())
    assert not same(first, other) and not same(first, list(module(dataset, PLAN).epoch(1)))


def test_five_rows_are_visited_alike_by_two_ranks(dataset: DatasetInfo) -> None:
    plan = replace(STILL, validate_every=10)
    ranks = [whose(list(module(dataset, plan, rank, 2).train_dataloader())) for rank in range(2)]
    assert [len(rows) for rows in ranks] == [10, 10]
    visits = [row for pair in zip(*ranks, strict=True) for row in pair]
    chain = [visits[start : start + ROWS] for start in range(0, 20, ROWS)]
    assert all(sorted(part) == list(range(ROWS)) for part in chain)  # each permutation, whole
    assert len({tuple(part) for part in chain}) > 1


@pytest.mark.parametrize("ranks", [2, 4])
def test_all_ranks_together_see_what_one_does(dataset: DatasetInfo, ranks: int) -> None:
    plan = replace(PLAN, batch=4, validate_every=5)  # an epoch ends within a group
    for number in range(2):
        alone = list(module(dataset, plan).epoch(number))
        parts = [list(module(dataset, plan, rank, ranks).epoch(number)) for rank in range(ranks)]
        for whole, *shares in zip(alone, *parts, strict=True):
            for rank, share in enumerate(shares):
                assert all(torch.equal(whole[name][rank::ranks], share[name]) for name in whole)


def test_a_batch_that_cannot_be_shared_is_refused(dataset: DatasetInfo) -> None:
    with pytest.raises(DataError, match="a batch of 2 does not divide among 3 processes"):
        module(dataset, PLAN, 0, 3).train_dataloader()


def test_a_group_gives_patches_of_its_cases_in_turn(dataset: DatasetInfo) -> None:
    batches = list(module(dataset, replace(STILL, patches=3, validate_every=6)).train_dataloader())
    rows = [whose([batch]) for batch in batches]
    assert rows[0] == rows[1] == rows[2] != rows[3] == rows[4] == rows[5]
    assert not torch.equal(batches[0]["image"], batches[1]["image"])


@pytest.mark.parametrize("memory", [0, 5000, 10_000, None])
def test_what_is_kept_changes_nothing(dataset: DatasetInfo, memory: int | None) -> None:
    data, other = module(dataset, PLAN, memory=memory), module(dataset, PLAN, memory=0)
    for number in range(3):
        assert same(list(data.epoch(number)), list(other.epoch(number)))


def test_once_all_is_kept_the_disk_is_left_alone(dataset: DatasetInfo) -> None:
    data = module(dataset, PLAN)
    list(data.epoch(0)), list(data.val_dataloader())
    expected = list(module(dataset, PLAN).epoch(1))
    for role in ("train", "validation"):
        (dataset.path / role).rename(dataset.path / f"{role}.away")
    assert same(list(data.epoch(1)), expected)
    assert len(list(data.val_dataloader())) == 3


def test_each_case_is_given_once_by_file_name(dataset: DatasetInfo) -> None:
    data = module(dataset, PLAN)
    assert [sample.case for sample in data.samples("validation")] == ["case10", "case11", "case12"]
    assert list(data.samples("holdout")) == []


def test_no_more_is_kept_than_there_is_room_for() -> None:
    room = case(0).nbytes * 2 + 100
    cache = Cache(CPU, room)
    for row in range(5):
        assert cache.take("train", row, case(row)).case == f"case{row}"
    assert [cache.get("train", row) is not None for row in range(5)] == [True, True, False, False, False]


def test_epoch_three_is_the_same_in_a_fresh_module(dataset: DatasetInfo) -> None:
    running = module(dataset, PLAN)
    told = [list(running.epoch(number)) for number in range(4)]
    assert same(told[3], list(module(dataset, PLAN).epoch(3)))


class Listener(pl.LightningModule):
    """Keeps what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.heard, self.validated = torch.nn.Linear(1, 1), list[Batch](), list[bool]()

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        self.heard.append(batch)
        return self.net(batch["image"].mean()[None]).sum()

    def validation_step(self, batch: Batch, _: int) -> None:
        self.validated += batch["counted"].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-6)


def trainer(folder: Path, epochs: int) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(accelerator="cpu", max_epochs=epochs, num_sanity_val_steps=0, default_root_dir=folder, **quiet)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_lightning_resumes_at_the_epochs_boundary(dataset: DatasetInfo, tmp_path: Path) -> None:
    whole, first, second = Listener(), Listener(), Listener()
    trainer(tmp_path, 3).fit(whole, VolumeDataModule(dataset, PLAN))
    assert len(whole.heard) == 3 * PLAN.validate_every and whole.validated == [True] * 9
    stopped = trainer(tmp_path, 2)
    stopped.fit(first, VolumeDataModule(dataset, PLAN))
    stopped.save_checkpoint(tmp_path / "last.ckpt")
    trainer(tmp_path, 3).fit(second, VolumeDataModule(dataset, PLAN), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert same(first.heard + second.heard, whole.heard)
    assert not same(first.heard[:5], first.heard[5:])


@pytest.mark.parametrize(("ranks", "padded"), [(1, []), (2, [False, True]), (4, [False, False, False, True])])
def test_every_rank_validates_as_many_cases(dataset: DatasetInfo, ranks: int, padded: list[bool]) -> None:
    parts = [list(module(dataset, PLAN, rank, ranks).val_dataloader()) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    counted = [(row, bool(batch["counted"])) for part in parts for batch in part for row in whose([batch])]
    assert sorted(row for row, real in counted if real) == [10, 11, 12]
    assert len(counted) - 3 == sum(padded)
    assert whose(parts[0])[0] == 10  # by file name
    batch = parts[0][0]
    assert batch["image"].shape == (1, 1, 12, 14, 10) and batch["mask"].shape == (1, 12, 14, 10)
    assert torch.equal(batch["image"][0], case(10).normalised()) and torch.equal(batch["mask"][0], case(10).mask)


def test_no_validation_case_is_no_batch(dataset: DatasetInfo) -> None:
    none = replace(dataset, rows={"train": ROWS})
    assert list(module(none, PLAN).val_dataloader()) == []
    with pytest.raises(DataError, match="no labelled training case"):
        module(replace(dataset, rows={"validation": 3}), PLAN).train_dataloader()


def test_what_a_label_does_not_say_is_carried(dataset: DatasetInfo) -> None:
    batches = list(module(dataset, replace(STILL, validate_every=5)).train_dataloader())
    rows = whose(batches)
    told = [(a.tolist(), p.tolist()) for batch in batches for a, p in zip(batch["annotated"], batch["present"], strict=True)]
    assert all(annotated == [True, row != 1] for row, (annotated, _) in zip(rows, told, strict=True))
    assert all(present == [row % 2 == 0, row % 2 == 1] for row, (_, present) in zip(rows, told, strict=True))


def test_a_case_that_is_gone_or_damaged_is_said(dataset: DatasetInfo) -> None:
    last = dataset.path / "train" / "04.parquet"
    last.write_bytes(last.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"train: cannot be read: .*remove the dataset's folder"):
        list(module(dataset, PLAN).train_dataloader())
    last.unlink()
    with pytest.raises(DataError, match=r"train: cannot be read: .*remove the dataset's folder"):
        list(module(dataset, PLAN).train_dataloader())


def test_a_reader_that_ends_early_does_not_pass_unseen(dataset: DatasetInfo) -> None:
    folder = dataset.path / "train"

    def short(order: Sequence[int]) -> Iterator[Sample]:
        return islice(samples(folder, order), len(order) - 1)

    def long(order: Sequence[int]) -> Iterator[Sample]:
        return samples(folder, [*order, 0])

    def given(read: object) -> Iterator[tuple[int, Sample]]:
        return Volumes(read, ROWS, Cache(CPU, 0), role="train", about="the folder").shuffled(0, range(7))  # type: ignore[arg-type]

    with pytest.raises(DataError, match="the folder: 4 cases were read, 5 were asked for"):
        list(given(short))
    found = given(long)
    assert [visit for visit, _ in islice(found, 4)] == [0, 1, 2, 3]
    with pytest.raises(DataError, match="more than the 5 cases"):  # before the last is given, which nobody may ask beyond
        next(found)
    assert len(list(given(partial(samples, folder)))) == 7


def test_an_iterator_that_is_left_leaves_no_thread(dataset: DatasetInfo) -> None:
    before = threading.active_count()
    for taken in (0, 1, 3):
        batches = iter(module(dataset, replace(PLAN, validate_every=50)).train_dataloader())
        assert len(list(islice(batches, taken))) == taken
        assert threading.active_count() >= before + (taken > 0)
        del batches
        assert threading.active_count() == before
    first = iter(module(dataset, PLAN).train_dataloader())
    next(first)
    list(module(dataset, PLAN).train_dataloader())  # beside one that stands still
    first.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
