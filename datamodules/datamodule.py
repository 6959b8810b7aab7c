"""A dataset as Lightning reads it: seeded patches to train on, whole cases to validate on."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch

from datamodules.augment import augment
from datamodules.cache import Cache, Volumes
from datamodules.dataset import DatasetInfo
from datamodules.errors import DataError
from datamodules.patches import cut, draw
from datamodules.plan import Plan
from datamodules.prefetch import Batch, ahead
from datamodules.prepare import by_plan
from datamodules.sample import Sample

__all__ = ["Batches", "VolumeDataModule"]

VALIDATED_AHEAD = 1  # whole cases are large


class Batches:
    """So many batches, from the start at each iteration: what Lightning takes for a loader."""

    def __init__(self, number: int, make: Callable[[], Iterator[Batch]]) -> None:
        self._number, self._make = number, make

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[Batch]:
        return self._make()


class VolumeDataModule(pl.LightningDataModule):  # type: ignore[misc]
    """``dataset`` (or its folder) by ``plan``. An epoch is ``plan.validate_every`` batches of ``plan.batch`` patches, over all
    processes together.

    Training batches, on the trainer's device (the CPU without one): {"image": (B, C, D, H, W) float32, "mask": (B, D, H, W)
    uint8 classes, "annotated" and "present": (B, structures) bool}. A validation batch is one whole case, with "counted" (1,)
    bool, False for one that only gives every process as many.

    Cases are visited along an endless chain of seeded permutations, in groups of ``plan.batch``; a group gives ``plan.patches``
    batches. All that is drawn is keyed by seed, visit and patch, so that the patches of an epoch depend on nothing but the plan
    and the epoch's number: not on the processes, nor on what is kept or on timing.

    The cases that were read are kept on the device, ``memory`` bytes of them (see Cache): once all are, the disk is left alone.
    """

    def __init__(self, dataset: DatasetInfo | Path, plan: Plan, *, memory: int | None = None) -> None:
        super().__init__()
        self.info = dataset if isinstance(dataset, DatasetInfo) else DatasetInfo.read(dataset)
        self._plan, self._memory = plan, memory
        self._cache: Cache | None = None

    def samples(self, role: str) -> Iterator[Sample]:
        """Each case of ``role`` once, by file name, on the CPU."""
        return self._volumes(role, Cache(torch.device("cpu"), 0)).in_order(range(self.info.rows.get(role, 0)))

    def train_dataloader(self) -> Batches:
        """This process's part of the trainer's current epoch."""
        plan, (_, ranks) = self._plan, self._process()
        if not self.info.rows.get("train"):
            raise DataError("no labelled training case", about=str(self.info.path), remedy="label a case of the train split")
        if plan.batch % ranks:
            raise DataError(
                f"a batch of {plan.batch} does not divide among {ranks} processes", about="plan", remedy="set batch"
            )
        return Batches(plan.validate_every, lambda: self._ahead(self.epoch, max(2, plan.patches)))

    def val_dataloader(self) -> Batches:
        """This process's part of the validation cases; none where the dataset has none."""
        _, ranks = self._process()
        number = -(-self.info.rows.get("validation", 0) // ranks)
        return Batches(number, lambda: self._ahead(lambda: self._validation(number), VALIDATED_AHEAD))

    def epoch(self, number: int | None = None) -> Iterator[Batch]:
        """This process's training batches of an epoch, by default the trainer's current one, made as they are asked for."""
        plan, (rank, ranks) = self._plan, self._process()
        if number is None:
            number = self.trainer.current_epoch if self.trainer else 0
        first, last = number * plan.validate_every, (number + 1) * plan.validate_every
        groups = range(first // plan.patches, -(-last // plan.patches))
        visits = range(groups.start * plan.batch + rank, groups.stop * plan.batch, ranks)
        visited = self._volumes("train", self._kept()).shuffled(plan.seed, visits)
        for group in groups:
            start = group * plan.patches
            numbers = range(max(first - start, 0), min(last - start, plan.patches))
            yield from self._group(list(islice(visited, plan.batch // ranks)), numbers)

    def _group(self, members: list[tuple[int, Sample]], numbers: Iterable[int]) -> Iterator[Batch]:
        for number in numbers:
            yield _stacked([self._patch(sample, visit, number) for visit, sample in members])

    def _patch(self, sample: Sample, visit: int, number: int) -> Batch:
        rng = np.random.default_rng((self._plan.seed, 1, visit, number))
        image, mask = cut(sample, draw(rng, sample, self._plan), self._plan.patch)
        return _batch(sample, augment(rng, image) if self._plan.augment else image, mask)

    def _validation(self, number: int) -> Iterator[Batch]:
        (rank, ranks), rows = self._process(), self.info.rows.get("validation", 0)
        turns = [rank + ranks * turn for turn in range(number)]
        cases = self._volumes("validation", self._kept()).in_order([turn % rows for turn in turns])
        for turn, sample in zip(turns, cases, strict=True):
            case = _stacked([_batch(sample, sample.normalised(), sample.mask)])
            yield {**case, "counted": torch.tensor([turn < rows], device=sample.image.device)}

    def _volumes(self, role: str, cache: Cache) -> Volumes:
        from datamodules._petastorm import samples

        folder, plan = self.info.path / role, self._plan

        def read(order: Sequence[int]) -> Iterator[Sample]:
            return (by_plan(sample, plan) for sample in samples(folder, order))

        return Volumes(read, self.info.rows.get(role, 0), cache, role=role, about=str(folder))

    def _kept(self) -> Cache:
        if self._cache is None or self._cache.device != self._device():
            self._cache = Cache(self._device(), self._memory)
        return self._cache

    def _ahead(self, make: Callable[[], Iterator[Batch]], buffer: int) -> Iterator[Batch]:
        return ahead(make, self._device(), buffer=buffer)

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def _process(self) -> tuple[int, int]:
        """(rank, number of processes)."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def _batch(sample: Sample, image: torch.Tensor, mask: torch.Tensor) -> Batch:
    return {"image": image, "mask": mask, "annotated": sample.annotated, "present": sample.present}


def _stacked(patches: list[Batch]) -> Batch:
    return {name: torch.stack([patch[name] for patch in patches]) for name in patches[0]}
