"""`voxloop bench loader`: datasets read by the data module against bare pyarrow, what a training waits for once they are kept,
and how much memory a larger one takes. Needs no Spark: a dataset is a folder."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import pytorch_lightning as pl
import torch
from scipy.ndimage import gaussian_filter

from datamodules import DatasetInfo, Plan
from datamodules._petastorm import seal, write
from datamodules.datamodule import VolumeDataModule
from datamodules.sample import Sample
from experiments.baselines.loader_bare import tensors
from experiments.bench import BenchResult, compare
from experiments.synthetic import LABEL_SET
from training.modules import module
from training.network import autocast

__all__ = ["bench", "made"]

SHAPE = (96, 160, 160)
LARGER = 10
STEPS = 20
"""A training's steps that are timed, at least."""

SMALL = Plan((1.0, 1.0, 1.0), ("liver", "spleen"), (1, 2), (48, 48, 48))
GPU = replace(SMALL, patch=(96, 96, 96), batch=4, network="SegResNet", network_args={"init_filters": 32})


def bench(folder: Path, *, n: int = 24, rounds: int = 5, dataset: Path | None = None) -> BenchResult:
    """Read the training cases of ``dataset``, by default ``n`` made-up ones under ``folder``: ours and bare seconds a pass.

    Figures: ``bytes_per_s`` and ``bare_bytes_per_s`` of decoded tensors; ``wait_share``, the part of its time that a training
    with the dataset's plan waits for batches when all cases are kept, and ``step_ms``, the time that a step takes; ``rss_mb``
    and ``rss_mb_10x``, the largest resident memory of a process that trains on an epoch of the dataset and of one ten times
    larger, neither of which may be kept whole, and ``rss_ratio``, the second over the first.
    """
    info = DatasetInfo.read(dataset) if dataset else made(folder / f"dataset-{n}", n)
    plan = _whole(info, info.plan)
    data = VolumeDataModule(info, plan)
    size = sum(sample.nbytes for sample in data.samples("train"))
    bare = sum(tensor.nbytes for tensor in tensors(info.path / "train"))
    assert bare >= size, (bare, size)  # the same tensors; a case of several blocks repeats the small ones
    result = compare(
        "loader",
        lambda: [sample.nbytes for sample in data.samples("train")],
        lambda: [tensor.nbytes for tensor in tensors(info.path / "train")],
        n=info.rows["train"],
        rounds=rounds,
    )
    figures = {
        **result.figures,
        "bytes_per_s": size / result.ours,
        "bare_bytes_per_s": size / result.baseline,
        **_waiting(info, plan),
        **_memory(info, plan, size // 4),
    }
    return replace(result, figures=figures)


def made(path: Path, n: int) -> DatasetInfo:
    """A dataset of ``n`` made-up CT, int16 of SHAPE, at ``path``, as a training has it; one that is there is taken."""
    if (path / "dataset.json").exists():
        return DatasetInfo.read(path)
    for index in range(n):
        write(path / "train" / f"case_{index:04d}.parquet", _case(index))
    plan = GPU if torch.cuda.is_available() else SMALL
    info = DatasetInfo(path, {"train": seal(path / "train")}, f"made-{n}", (), plan, LABEL_SET)
    info.write(path, {})
    return info


def _case(index: int) -> Sample:
    rng = np.random.default_rng(index)
    coarse = gaussian_filter(rng.normal(0, 1, [side // 4 for side in SHAPE]), 3)
    soft = np.kron(coarse / coarse.std(), np.ones((4, 4, 4)))
    image = (40 + 60 * soft + rng.normal(0, 12, SHAPE)).astype(np.int16)
    mask = ((soft > 1).astype(np.uint8) + (soft > 2)).astype(np.uint8)
    voxels = {k: rng.permutation(np.argwhere(mask == k))[:500] for k in (1, 2)}
    centres = np.concatenate([np.c_[np.full(len(found), k), found] for k, found in voxels.items()]).astype(np.int32)
    known = torch.ones(2, dtype=torch.bool)
    intensity = torch.tensor([[1.0, -160.0, 240.0, 40.0, 60.0]])
    arrays = (torch.from_numpy(image[None]), intensity, torch.from_numpy(mask), known, known)
    return Sample(f"case_{index:04d}", "", "", "", *arrays, torch.from_numpy(centres))


def _whole(info: DatasetInfo, plan: Plan) -> Plan:
    """``plan`` with epochs that visit every case."""
    return replace(plan, validate_every=-(-info.rows["train"] // plan.batch) * plan.patches)


def _waiting(info: DatasetInfo, plan: Plan) -> dict[str, float]:
    """Train as a trainer's device does, waiting for it after each batch and each step, so that nothing hides what is late."""
    data = VolumeDataModule(info, plan)
    data.trainer = pl.Trainer(
        accelerator="auto", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    device = data.trainer.strategy.root_device
    step = _training(plan, device)
    for batch in data.train_dataloader():
        step(batch)
    waits, steps = list[float](), list[float]()
    while len(steps) < STEPS:
        batches = iter(data.train_dataloader())
        for _ in range(plan.validate_every):
            started = time.perf_counter()
            batch = next(batches)
            _finished(device)
            got = time.perf_counter()
            step(batch)
            waits.append(got - started)
            steps.append(time.perf_counter() - got)
    return {"wait_share": sum(waits) / (sum(waits) + sum(steps)), "step_ms": 1000 * statistics.median(steps)}


def _training(plan: Plan, device: torch.device) -> Callable[[dict[str, torch.Tensor]], None]:
    learner = module(plan).to(device)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=plan.learning_rate)
    if device.type == "cuda":
        learner.net.compile()

    def step(batch: dict[str, torch.Tensor]) -> None:
        with autocast(plan, device):
            loss = learner.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        _finished(device)

    return step


def _finished(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(info: DatasetInfo, plan: Plan, budget: int) -> dict[str, float]:
    with TemporaryDirectory() as scratch:
        for path in (info.path / "train").glob("*.parquet"):
            for copy in range(LARGER):
                link = Path(scratch) / "train" / f"{path.stem}_{copy}.parquet"
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(path.resolve())
        larger = replace(info, path=Path(scratch), rows={"train": seal(Path(scratch) / "train")})
        few, many = (_in_a_process(_peak, told, _whole(told, plan), budget) for told in (info, larger))
    return {"rss_mb": few, f"rss_mb_{LARGER}x": many, "rss_ratio": many / few}


def _in_a_process(work: Callable[..., float], *given: Any) -> float:
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(work, given)


def _peak(info: DatasetInfo, plan: Plan, budget: int) -> float:
    """The largest resident memory, in MB, of an epoch on the CPU."""
    with _watched() as peak:
        for batch in VolumeDataModule(info, plan, memory=budget).train_dataloader():
            assert len(batch["image"]) == plan.batch
    return max(peak)


@contextmanager
def _watched() -> Iterator[list[float]]:
    """This process's resident memory, in MB, every few milliseconds of the block."""
    seen, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            seen.append(psutil.Process().memory_info().rss / 1e6)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()
