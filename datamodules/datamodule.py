"""A dataset as Lightning reads it: seeded patches to train on, whole cases to validate on.

The volumes are visited in an endless chain of permutations: visit v is of volume ``perm(seed, v // n)[v % n]``. Visits come in
groups of ``plan.batch``, and a group gives ``plan.patches`` steps, the j-th patch of each of its volumes. Of R processes,
process r takes every R-th of a group's volumes from the r-th on. So a step is the same patches whatever the number of
processes, what is kept in memory and where a training was resumed: an epoch is a function of the seed and its number.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from monai.data.thread_buffer import ThreadBuffer
from torch.utils.data import DataLoader, IterableDataset

from datamodules._petastorm import samples
from datamodules.augment import augment
from datamodules.dataset import DatasetInfo
from datamodules.errors import DataError
from datamodules.patches import Box, cut
from datamodules.plan import Plan
from datamodules.sample import Sample

__all__ = ["VolumeDataModule", "Volumes", "visits"]

MEMORY = 2 * 1024**3  # bytes of prepared volumes that a CPU keeps; a GPU keeps half of what it has free
AHEAD = 3  # batches that are made while the network works
Batch = dict[str, Any]


def visits(seed: int, volumes: int, first: int, number: int) -> list[int]:
    """The volumes of ``number`` visits from visit ``first`` on."""
    found: list[int] = []
    passes: dict[int, np.ndarray] = {}
    for visit in range(first, first + number):
        turn, place = divmod(visit, volumes)
        if turn not in passes:
            passes[turn] = np.random.default_rng((seed, turn)).permutation(volumes)
        found.append(int(passes[turn][place]))
    return found


class Volumes:
    """The cases of one role, on a device: read from disk, and kept there for as long as they fit into ``memory`` bytes."""

    def __init__(self, folder: Path, number: int, *, device: torch.device, memory: int) -> None:
        self._folder, self._number, self._device, self._left = folder, number, device, memory
        self._kept: dict[int, Sample] = {}
        there = len(list(folder.glob("*.parquet")))
        if there != number:
            raise _lost(folder, there, number)

    def __len__(self) -> int:
        return self._number

    @property
    def in_memory(self) -> bool:
        """Whether the disk is not needed any more."""
        return len(self._kept) == self._number

    def visit(self, order: Sequence[int]) -> Iterator[Sample]:
        """The cases numbered in ``order``. DataError where the reader gives another number than was asked of it."""
        kept = [index in self._kept for index in order]
        asked = [index for index, known in zip(order, kept, strict=True) if not known]
        reader, given = samples(self._folder, asked), 0
        for index, known in zip(order, kept, strict=True):
            if known:
                yield self._kept[index]
                continue
            sample = next(reader, None)
            if sample is None:
                raise _lost(self._folder, given, len(asked))
            given += 1
            yield self._keep(index, sample)
        if (more := sum(1 for _ in reader)) > 0:
            raise _lost(self._folder, given + more, len(asked))

    def _keep(self, index: int, sample: Sample) -> Sample:
        """``sample`` on the device if it stays there; else where it is: only what is cut from it goes there."""
        if index in self._kept:
            return self._kept[index]
        if sample.nbytes > self._left:
            return sample
        self._left -= sample.nbytes
        self._kept[index] = sample.to(self._device)
        return self._kept[index]


class VolumeDataModule(pl.LightningDataModule):  # type: ignore[misc]
    """``dataset`` (or its folder) by ``plan``. An epoch is ``plan.validate_every`` steps of ``plan.batch`` patches over all
    processes.

    A training batch, after the transfer, is {"image": (B, C, D, H, W) float32, "mask": (B, D, H, W) uint8 classes,
    "annotated" and "present": (B, structures) bool}. A validation batch is one whole case with the same keys and "counted":
    (1,) bool, False where it is repeated so that all processes have as many. ``memory``: bytes of volumes that stay on the
    device (default: half of what a GPU has free, 2 GiB on a CPU).
    """

    def __init__(self, dataset: DatasetInfo | Path, plan: Plan, *, memory: int | None = None) -> None:
        super().__init__()
        self.info = dataset if isinstance(dataset, DatasetInfo) else DatasetInfo.read(dataset)
        self._plan, self._memory = plan, memory
        self._opened: dict[str, Volumes] = {}

    def samples(self, role: str) -> Iterator[Sample]:
        """Each case of ``role`` once, by file name, on the CPU."""
        return samples(self.info.path / role) if self.info.rows.get(role) else iter(())

    def train_dataloader(self) -> DataLoader[Batch]:
        """This epoch's boxes, cut on a thread of its own; ``on_after_batch_transfer`` makes patches of them."""
        if not self.info.rows.get("train"):
            raise DataError("no labelled training case", about=str(self.info.path), remedy="label a case of the train split")
        rank, ranks = self._rank()
        if self._plan.batch % ranks:
            remedy = f"make batch in the plan a multiple of {ranks}"
            raise DataError(f"{ranks} processes cannot share {self._plan.batch} patches a step", about="plan", remedy=remedy)
        epoch = self.trainer.current_epoch if self.trainer else 0
        return DataLoader(_Stream(lambda: _ahead(self._boxes(epoch, rank, ranks))), batch_size=None, num_workers=0)

    def val_dataloader(self) -> DataLoader[Batch]:
        """This process's validation cases, whole; none where the dataset has none."""
        number = self.info.rows.get("validation", 0)
        rank, ranks = self._rank()
        order = [(index if index < number else 0, index < number) for index in range(rank, -(-number // ranks) * ranks, ranks)]

        def whole() -> Iterator[Batch]:
            volumes = self._volumes("validation") if order else None
            found = volumes.visit([index for index, _ in order]) if volumes is not None else iter(())
            for sample, (_, counted) in zip(found, order, strict=True):
                yield _whole(sample.to(self._device()), counted)

        return DataLoader(_Stream(whole), batch_size=None, num_workers=0)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Boxes → patches, on the device."""
        draws = batch.pop("draws", None)
        if draws is not None:
            batch["image"], batch["mask"] = augment(batch["image"], batch["mask"], draws, self._plan.patch)
        return batch

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """The tensors; what was drawn stays where it is."""
        return {key: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for key, v in batch.items()}

    def _boxes(self, epoch: int, rank: int, ranks: int) -> Iterator[Batch]:
        """Epoch ``epoch``'s batches of this process."""
        plan, volumes = self._plan, self._volumes("train")
        groups = -(-plan.validate_every // plan.patches)
        first, left = epoch * groups * plan.batch, plan.validate_every
        numbers = [v for v in range(first, first + groups * plan.batch) if (v - first) % plan.batch % ranks == rank]
        order = visits(plan.seed, len(volumes), first, groups * plan.batch)
        found = volumes.visit([order[v - first] for v in numbers])
        share = plan.batch // ranks
        for start in range(0, len(numbers), share):
            group = [(number, next(found)) for number in numbers[start : start + share]]
            for patch in range(min(plan.patches, left)):
                yield _stacked([cut(sample, plan, (plan.seed, number, patch)) for number, sample in group], self._device())
            left -= plan.patches
        for _ in found:  # to its end, where the count is checked
            raise DataError("more volumes than were asked for", about=str(self.info.path))

    def _volumes(self, role: str) -> Volumes:
        if role not in self._opened:
            free = MEMORY
            if self._device().type == "cuda":
                free = torch.cuda.mem_get_info(self._device())[0] // 2
            memory = (free if self._memory is None else self._memory) // 4 * (3 if role == "train" else 1)
            number = self.info.rows[role]
            self._opened[role] = Volumes(self.info.path / role, number, device=self._device(), memory=memory)
        return self._opened[role]

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _device(self) -> torch.device:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        assert isinstance(device, torch.device)
        return device


class _Stream(IterableDataset[Batch]):  # type: ignore[misc]
    def __init__(self, make: Callable[[], Iterator[Batch]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Batch]:
        return self._make()


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """``batches`` made on a thread. MONAI's buffer drops what its thread raises, so errors travel as items."""

    def carried() -> Iterator[Batch | Exception]:
        try:
            yield from batches
        except Exception as problem:
            yield problem

    for item in ThreadBuffer(carried(), buffer_size=AHEAD):
        if isinstance(item, Exception):
            raise item
        yield item


def _stacked(boxes: Sequence[Box], device: torch.device) -> Batch:
    names = ("image", "mask", "annotated", "present")
    batch: Batch = {name: torch.stack([getattr(box, name).to(device) for box in boxes]) for name in names}
    draws = [box.draw for box in boxes if box.draw is not None]
    return {**batch, "draws": draws} if draws else batch


def _whole(sample: Sample, counted: bool) -> Batch:
    states = {"annotated": sample.annotated[None], "present": sample.present[None]}
    return {"image": sample.normalised()[None], "mask": sample.mask[None], **states, "counted": torch.tensor([counted])}


def _lost(folder: Path, given: int, expected: int) -> DataError:
    remedy = "remove its dataset's folder; the next training builds it again"
    return DataError(f"{given} volumes were read, {expected} were expected", about=str(folder), remedy=remedy)
