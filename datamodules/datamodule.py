"""A dataset as Lightning reads it: seeded patches to train on, whole volumes to validate on."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from monai.data.thread_buffer import ThreadBuffer
from torch.utils.data import DataLoader, IterableDataset

from datamodules._petastorm import rows
from datamodules.dataset import DatasetInfo
from datamodules.errors import DataError
from datamodules.patches import Patch, augment, cut
from datamodules.plan import Plan

__all__ = ["VolumeDataModule", "Volumes"]

MEMORY = 2 * 1024**3  # bytes of prepared volumes that are kept after the first epoch
AHEAD = 4  # patches cut from a volume at each visit when it has to be read from disk again
Batch = dict[str, torch.Tensor]


class Volumes:
    """The volumes of one role: read from disk once, kept in memory when they fit into ``memory`` bytes.

    Every pass is counted: DataError when the reader gives another number of volumes than the dataset was built with.
    """

    def __init__(self, folder: Path, expected: int, *, memory: int = MEMORY, shard: int = 0, shards: int = 1) -> None:
        self._folder, self._shard, self._shards = folder, shard, shards
        self._expected = len(range(shard, expected, shards))
        self._memory = memory
        self._kept: list[Patch] | None = None

    def __len__(self) -> int:
        return self._expected

    @property
    def in_memory(self) -> bool:
        """Whether later passes leave the disk alone."""
        return self._kept is not None

    def in_turn(self, rng: np.random.Generator | None = None) -> Iterator[Patch]:
        """Each volume once: by path, or in an order drawn from ``rng``."""
        if self._kept is None:
            yield from self._read(None if rng is None else int(rng.integers(2**31)))
            return
        order = range(len(self._kept)) if rng is None else rng.permutation(len(self._kept))
        for index in order:
            yield self._kept[index]

    def _read(self, seed: int | None) -> Iterator[Patch]:
        kept: list[Patch] | None = []
        seen = held = 0
        for row in rows(self._folder, shard=self._shard, shards=self._shards, seed=seed):
            volume = _volume(row)
            seen, held = seen + 1, held + volume.image.nbytes + volume.mask.nbytes
            if kept is not None and held <= self._memory:
                kept.append(volume)
            else:
                kept = None
            yield volume
        if seen != self._expected:
            remedy = "remove this folder; the next training builds it again"
            raise DataError(f"{seen} volumes were read, {self._expected} were written", about=str(self._folder), remedy=remedy)
        self._kept = kept


class VolumeDataModule(pl.LightningDataModule):  # type: ignore[misc]
    """``dataset`` (or its folder) by ``plan``. An epoch is ``plan.validate_every`` batches of ``plan.batch`` patches.

    Batches are {"image": (B, 1, D, H, W) float32, "mask": (B, D, H, W) uint8 classes, "annotated": (B, structures) bool};
    validation batches are one whole volume. One seed gives the same patches again, whatever the timing.
    """

    def __init__(self, dataset: DatasetInfo | Path, plan: Plan, *, memory: int = MEMORY) -> None:
        super().__init__()
        self.info = dataset if isinstance(dataset, DatasetInfo) else DatasetInfo.read(dataset)
        self._plan, self._memory = plan, memory
        self._train: Volumes | None = None

    def volumes(self, role: str) -> Volumes:
        """The prepared volumes of ``role``."""
        return Volumes(self.info.path / role, self.info.rows.get(role, 0), memory=self._memory)

    def train_dataloader(self) -> DataLoader[Batch]:
        """This epoch's patches, cut on a thread of its own."""
        if not self.info.rows.get("train"):
            raise DataError("no labelled training case", about=str(self.info.path), remedy="label a case of the train split")
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self._train is None:
            folder, number = self.info.path / "train", self.info.rows["train"]
            self._train = Volumes(folder, number, memory=self._memory, shard=rank, shards=ranks)
        train, seed = self._train, (self._plan.seed, rank, self.trainer.current_epoch if self.trainer else 0)
        stream = _Stream(lambda: _ahead(_patches(train, self._plan, np.random.default_rng(seed))))
        return DataLoader(stream, batch_size=None, num_workers=0)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Each validation volume, whole; none where the dataset has none."""
        volumes = self.volumes("validation")
        read = (lambda: map(_one, volumes.in_turn())) if len(volumes) else (lambda: iter(()))
        return DataLoader(_Stream(read), batch_size=None, num_workers=0)


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

    for item in ThreadBuffer(carried(), buffer_size=2):
        if isinstance(item, Exception):
            raise item
        yield item


def _patches(volumes: Volumes, plan: Plan, rng: np.random.Generator) -> Iterator[Batch]:
    """One epoch's batches; passes over the volumes follow one another until it is full."""
    batch: list[Patch] = []
    left = plan.validate_every
    while left:
        for volume in volumes.in_turn(rng):
            for _ in range(1 if volumes.in_memory else min(AHEAD, plan.batch * left)):
                patch = cut(rng, volume, plan.patch)
                batch.append(augment(rng, patch) if plan.augment else patch)
                if len(batch) == plan.batch:
                    yield _stacked(batch)
                    batch, left = [], left - 1
                if not left:
                    break
            if not left and volumes.in_memory:
                break


def _one(volume: Patch) -> Batch:
    return _stacked([volume])


def _stacked(patches: list[Patch]) -> Batch:
    names = ("image", "mask", "annotated")
    return {name: torch.stack([getattr(patch, name) for patch in patches]) for name in names}


def _volume(row: dict[str, Any]) -> Patch:
    image, mask, annotated = (torch.from_numpy(row[name]) for name in ("image", "mask", "annotated"))
    return Patch(image[None], mask, annotated.bool())
