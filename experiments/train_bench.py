"""`voxloop bench train`: a SegResNet trained by our data module and module, and by stock MONAI, on the same cases."""

import logging
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytorch_lightning as pl
import torch

from datamodules import DatasetInfo, Plan
from datamodules._petastorm import seal, write
from datamodules.datamodule import VolumeDataModule
from datamodules.prepare import compact, intensity, prepare_mask, resampled
from datamodules.sample import Sample
from experiments.baselines import monai_stock
from experiments.bench import BenchResult, device_name
from experiments.synthetic import LABEL_SET, cases
from training.modules import module
from training.network import device, precision

__all__ = ["bench", "made"]

BATCH, PATCH, EPOCHS = 8, 32, 2
SPACING = (1.0, 1.0, 1.0)


def bench(folder: Path, *, n: int = 24, rounds: int = 2, batch: int = BATCH, patch: int = PATCH) -> BenchResult:
    """Train on ``n`` synthetic cases under ``folder``, made where they are not there, both ways in turn, after a round that is
    not counted: ``batch`` patches of ``patch``³ voxels a step, as many in each of EPOCHS epochs. Needs no Spark.

    ``ours`` and ``baseline`` are seconds a patch of the epochs after a training's first, end to end; ``patches_per_s`` and
    ``stock_patches_per_s`` their inverse, ``loss`` and ``stock_loss`` the mean of the last epoch's. Without a GPU the form is
    small, and ``small`` says so.
    """
    info, files = made(folder, n, batch=batch, patch=patch)
    pairs: list[tuple[_Epochs, _Epochs]] = []
    for turn in range(rounds + 1):
        first, second = (_ours, _stock) if turn % 2 else (_stock, _ours)
        done = {way: way(info, files, n, batch, patch) for way in (first, second)}
        if turn:
            pairs.append((done[_ours], done[_stock]))
    ratios = [theirs.seconds / mine.seconds for mine, theirs in pairs]
    ours, stock = (statistics.median(part.seconds for part in parts) for parts in zip(*pairs, strict=True))
    figures: dict[str, Any] = {
        "patches_per_s": 1 / ours,
        "stock_patches_per_s": 1 / stock,
        "loss": statistics.mean(mine.loss for mine, _ in pairs),
        "stock_loss": statistics.mean(theirs.loss for _, theirs in pairs),
        "precision": precision(info.plan, device()),
        "small": device().type != "cuda",
    }
    return BenchResult("train", device_name(), n, ours, stock, statistics.median(ratios), figures)


def made(folder: Path, n: int, *, batch: int = BATCH, patch: int = PATCH) -> tuple[DatasetInfo, Path]:
    """The same ``n`` synthetic cases as a dataset of ours and as a folder of NIfTI files; both can be carried elsewhere."""
    files, path = folder / f"nifti-{n}", folder / f"dataset-{n}"
    plan = Plan(
        spacing=SPACING,
        structures=tuple(structure.name for structure in LABEL_SET.structures),
        values=tuple(structure.value for structure in LABEL_SET.structures),
        patch=(patch, patch, patch),
        normalization=("percentile",),
        batch=batch,
        patches=1,
        steps=EPOCHS * (n // batch),
        validate_every=n // batch,
        network="SegResNet",
        network_args={"init_filters": 32, "blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1]},
        learning_rate=1e-3,
    )
    if not (path / "dataset.json").exists():
        for kind in ("images", "labels"):
            (files / kind).mkdir(parents=True, exist_ok=True)
        for name, image, mask in cases(n):
            nibabel.save(image.to_nibabel(), files / "images" / f"{name}.nii.gz")
            nibabel.save(mask.to_nibabel(), files / "labels" / f"{name}.nii.gz")
            array, _ = resampled([image], plan)
            stored, numbers = compact(array, intensity(array, plan))
            drawn, known = prepare_mask(mask, plan), torch.ones(2, dtype=torch.bool)
            places = drawn.nonzero()
            centres = torch.cat([drawn[tuple(places.T)].long()[:, None], places], 1).int()[:: max(1, len(places) // 4000)]
            sample = Sample(name, "", name, "", stored, numbers, drawn, known, known, centres)
            write(path / "train" / f"{name}.parquet", sample)
        DatasetInfo(path, {"train": seal(path / "train")}, f"train-{n}", (), plan, LABEL_SET).write(path, {})
    return replace(DatasetInfo.read(path), plan=plan), files


@dataclass
class _Epochs(pl.Callback):  # type: ignore[misc]
    """Seconds a patch in the epochs after the first, and the last epoch's mean loss."""

    batch: int
    taken: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    loss: float = float("nan")

    @property
    def seconds(self) -> float:
        return statistics.mean(self.taken[1:])

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._started, self.losses = _now(), []

    def on_train_batch_end(self, trainer: pl.Trainer, _: Any, outputs: Any, *__: Any) -> None:
        self.losses.append(outputs["loss"].detach())

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.taken.append((_now() - self._started) / (len(self.losses) * self.batch))
        self.loss = float(np.mean([float(loss) for loss in self.losses]))


def _ours(info: DatasetInfo, files: Path, n: int, batch: int, patch: int) -> _Epochs:
    watch = _Epochs(batch)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            accelerator="auto",
            devices=1,
            precision=precision(info.plan, device()),
            max_epochs=EPOCHS,
            reload_dataloaders_every_n_epochs=1,
            limit_val_batches=0,
            callbacks=[watch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module(info.plan), VolumeDataModule(info, info.plan))
    return watch


def _stock(info: DatasetInfo, files: Path, n: int, batch: int, patch: int) -> _Epochs:
    watch = _Epochs(batch)
    for epoch in _epochs(files, n, batch, patch):
        watch.taken.append(epoch["seconds"] / epoch["patches"])
        watch.loss = float(np.mean(epoch["losses"]))
    return watch


def _epochs(files: Path, n: int, batch: int, patch: int) -> Iterator[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from monai_stock.train(files, batch=batch, patch=patch, epochs=EPOCHS, cases=n)


def _now() -> float:
    """Seconds, once the device has done what it was told to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
