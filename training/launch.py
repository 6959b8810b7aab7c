"""Where a training runs: in this process, or (the shipped fake) not at all."""

import logging
import math
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch

from catalog.labelset import LabelSet
from catalog.progress import Progress
from datamodules.datamodule import VolumeDataModule
from datamodules.plan import Plan
from training.module import SegmentationModule
from training.run import CHECKPOINT
from training.tracking import RunLog

__all__ = ["FakeLauncher", "Launcher", "LocalLauncher", "TrainJob"]

CLIP = 5.0  # the gradient's largest norm


@dataclass(frozen=True)
class TrainJob:
    """All that a training depends on; everything in it can be traced from the run. ``dataset`` is a complete dataset's
    folder, the versions are those of the tables ``object_catalog`` and ``labels``, ``readers`` wrote ``label_ids``."""

    project: str
    model: str
    dataset: Path
    plan: Plan
    label_set: LabelSet
    tracking_uri: str
    experiment: str
    catalog_version: int
    labels_version: int
    label_ids: tuple[str, ...]
    readers: tuple[str, ...]
    code_revision: str
    round: int | None
    run_name: str

    def tags(self) -> dict[str, str]:
        """What a run is found by."""
        names = ("project", "model", "code_revision", "catalog_version", "labels_version")
        tags = {name: str(getattr(self, name)) for name in names}
        tags |= {"dataset": self.dataset.name, "plan_digest": self.plan.digest()}
        return tags if self.round is None else {**tags, "round": str(self.round)}


class Launcher(Protocol):
    """Trains a job somewhere and waits for it."""

    def run(self, job: TrainJob, *, resume: str | None = None) -> str:
        """The MLflow run id. ``resume`` names a run of this job that did not finish: it goes on from its last epoch."""


class LocalLauncher:
    """In this process, on its GPU where there is one (bf16), else on ``threads`` CPU threads (torch's choice by default).

    ``progress`` is told the steps; what it raises stops the training. A run that SIGTERM or Ctrl-C stops is KILLED.
    """

    def __init__(self, *, progress: Progress | None = None, threads: int | None = None) -> None:
        self._progress, self._threads = progress, threads

    def run(self, job: TrainJob, *, resume: str | None = None) -> str:
        """Train; see Launcher."""
        data = VolumeDataModule(job.dataset, job.plan)
        if self._threads:
            torch.set_num_threads(self._threads)
        log = RunLog(job, resume)
        with _ended(log), tempfile.TemporaryDirectory() as scratch:
            module = SegmentationModule(job.plan)
            trainer = _trainer(job.plan, _Reporter(log, self._progress), Path(scratch))
            with _quiet():
                trainer.fit(module, data, ckpt_path=log.checkpoint(Path(scratch)), weights_only=True)
            _finish(log, module, data)
        return log.run_id


class FakeLauncher:
    """Logs everything that a training logs, with an untrained network: for tests that need a run, not a good one."""

    def run(self, job: TrainJob, *, resume: str | None = None) -> str:
        """Log; see Launcher."""
        data = VolumeDataModule(job.dataset, job.plan)
        log = RunLog(job, resume)
        with _ended(log):
            log.metrics({"val_dice": 0.0, **{f"val_dice_{name}": 0.0 for name in job.plan.structures}}, 0)
            _finish(log, SegmentationModule(job.plan), data)
        return log.run_id


class _Reporter(pl.Callback):  # type: ignore[misc]
    """Progress by step; metrics and a checkpoint by epoch."""

    def __init__(self, log: RunLog, progress: Progress | None) -> None:
        self._log, self._progress = log, progress

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self._progress:
            self._progress(trainer.global_step, trainer.max_steps)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._log.metrics(values, trainer.global_step)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:  # a checkpoint of on_train_epoch_end resumes to nothing
        if trainer.global_step < trainer.max_steps:
            path = Path(trainer.default_root_dir) / CHECKPOINT
            trainer.save_checkpoint(path)
            self._log.client.log_artifact(self._log.run_id, str(path))


def _trainer(plan: Plan, reporter: pl.Callback, scratch: Path) -> pl.Trainer:
    with _quiet():
        return pl.Trainer(
            accelerator="auto",
            devices=1,
            precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
            max_steps=plan.steps,
            max_epochs=math.ceil(plan.steps / plan.validate_every),
            gradient_clip_val=CLIP,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            callbacks=[reporter],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=scratch,
        )


def _finish(log: RunLog, module: SegmentationModule, data: VolumeDataModule) -> None:
    """The picture and the weights: with these a run is complete."""
    shown = next(data.volumes("validation" if data.info.rows.get("validation") else "train").in_turn())
    net = module.cpu().eval()
    with torch.inference_mode():
        log.picture(shown, net.classes(shown.image[None])[0])
    log.weights(module.net)


@contextmanager
def _ended(log: RunLog) -> Iterator[None]:
    """The run's status follows from how the block ends; SIGTERM ends it as an exception."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if main else None
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        yield
        log.end("FINISHED")
    except (KeyboardInterrupt, SystemExit) as stopped:
        log.end("KILLED")
        if isinstance(stopped, SystemExit) and stopped.code == 1:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from None
        raise
    except BaseException:
        log.end("FAILED")
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
            signal.signal(signal.SIGINT, interrupt)  # Lightning leaves it ignored


def _terminate(number: int, _: Any) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advice on workers, devices and loggers."""
    said = logging.getLogger("pytorch_lightning")
    level = said.level
    said.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        said.setLevel(level)
