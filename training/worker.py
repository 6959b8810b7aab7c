"""What each process of a training runs: Lightning over the data module, and what is logged of it."""

import logging
import math
import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging

from catalog.progress import Progress
from datamodules.datamodule import VolumeDataModule
from datamodules.plan import Plan
from training.errors import TrainingError
from training.evaluation import Together, evaluate, predicted
from training.module import PlanModule
from training.modules import module
from training.network import device, precision
from training.run import CHECKPOINT
from training.tracking import RunLog

if TYPE_CHECKING:
    from training.launch import TrainJob

__all__ = ["Keeper", "callbacks", "finish", "work"]

CLIP = 5.0  # the gradient's largest norm
REPORT_EVERY = 3.0  # seconds between two reports of one of several processes
State = dict[str, torch.Tensor]


def work(
    job: "TrainJob",
    run_id: str,
    *,
    processes: int = 1,
    progress: Progress | None = None,
    on_metrics: Callable[[int, Mapping[str, float]], None] | None = None,
) -> None:
    """Train ``job`` and write to the run ``run_id``, going on from its checkpoint where it has one.

    One of ``processes``: of several, torch's environment variables say which, and the first writes.
    """
    log = RunLog(job.tracking_uri, run_id)
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        checkpoint = log.download_checkpoint(Path(scratch))
        made = module(job.plan, weights=Path(job.weights) if job.weights and not checkpoint else None)
        data, keeper = VolumeDataModule(job.dataset, job.plan), Keeper(job.plan.ensemble)
        reporter = _Reporter(log, job.plan.steps, progress, on_metrics, alone=processes == 1)
        validated = bool(data.info.rows.get("validation"))
        trainer = _trainer(job.plan, processes, [*callbacks(job.plan, keeper, validated=validated), reporter], Path(scratch))
        trainer.fit(made, data, ckpt_path=checkpoint, weights_only=True)
        if trainer.is_global_zero:  # the others need not wait: what follows is this process's alone
            states = keeper.states or [_state(made.net)]
            finish(log, job, made, data, states, trainer.global_step)


def finish(
    log: RunLog, job: "TrainJob", made: PlanModule, data: VolumeDataModule, states: Sequence[State], step: int = 0
) -> None:
    """Evaluate the kept weights, draw a picture, store the weights: with these a run is complete."""
    kept = Together(made, states)
    role = "validation" if data.info.rows.get("validation") else "train"
    if role == "validation":
        evaluation = evaluate(kept, data.samples(role), job.plan, job.label_set, total=data.info.rows[role])
        log.evaluation(evaluation, step, job.viewer_url)
    if job.plan.task != "classification":
        sample = next(data.samples(role))
        log.picture(sample, predicted(kept, sample), job.label_set, job.plan)
    log.weights(states)


class Keeper(pl.Callback):  # type: ignore[misc]
    """Keeps the weights of the ``number`` best epochs by ``val_score``, the later of equals, on the CPU."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._kept: list[tuple[float, int, State]] = []
        self._validated: State = {}

    @property
    def states(self) -> list[State]:
        """The best first; none where nothing was validated."""
        return [state for _, _, state in self._kept]

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: PlanModule) -> None:
        """Take the weights that were validated, before averaged ones are swapped back: this callback comes first."""
        self._validated = _state(module.net) if trainer.is_global_zero else {}

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Keep them if they are among the best."""
        score = trainer.callback_metrics.get("val_score")
        if score is not None and self._validated:
            entry = (float(score), trainer.global_step, self._validated)
            self._kept = sorted([*self._kept, entry], key=lambda kept: kept[:2], reverse=True)[: self._number]
        self._validated = {}

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"kept": [list(entry) for entry in self._kept]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self._kept = [(score, step, weights) for score, step, weights in state["kept"]]


class _Draws(pl.Callback):  # type: ignore[misc]
    """What a network itself draws (dropout) follows from the seed and the epoch, so that a resumed training draws alike."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        key = np.random.SeedSequence((self._seed, trainer.current_epoch, trainer.global_rank))
        torch.manual_seed(int(key.generate_state(1)[0]))


class _Reporter(pl.Callback):  # type: ignore[misc]
    """Progress by step; metrics and a checkpoint by epoch."""

    def __init__(self, log: RunLog, steps: int, progress: Progress | None, on_metrics: Any, *, alone: bool) -> None:
        self._steps = steps
        self._log, self._progress, self._on_metrics, self._alone = log, progress, on_metrics, alone
        self._reported = 0.0
        self._on_signal = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # Lightning's own handler waits for all processes
            signal.signal(signal.SIGTERM, self._on_signal)
        if trainer.global_step == 0:
            self._checkpoint(trainer)  # of the start: what is stopped in its first epoch begins again alike

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step >= self._steps:
            trainer.should_stop = True  # an epoch that is cut short validates too
        if self._progress:
            self._progress(trainer.global_step, self._steps)
        if not self._alone and trainer.is_global_zero and time.monotonic() - self._reported > REPORT_EVERY:
            self._reported = time.monotonic()
            self._log.metrics({"step": float(trainer.global_step)}, trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not math.isfinite(values.get("train_loss", 0.0)):
            remedy = "lower learning_rate, or set precision to '32' in the plan"
            raise TrainingError("the loss is not a number any more", about=f"step {trainer.global_step}", remedy=remedy)
        values["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        if trainer.is_global_zero:
            self._log.metrics(values if self._alone else {**values, "step": float(trainer.global_step)}, trainer.global_step)
        if not trainer.should_stop:  # else its last epoch is trained again, and ends alike
            self._checkpoint(trainer)
        if self._on_metrics:
            self._on_metrics(trainer.global_step, values)

    def _checkpoint(self, trainer: pl.Trainer) -> None:
        path = Path(trainer.default_root_dir) / CHECKPOINT
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            self._log.upload_checkpoint(path)


def callbacks(plan: Plan, keeper: Keeper, *, validated: bool) -> Iterator[pl.Callback]:
    """What a plan asks for, in the order that it needs: averaged weights validate, and ``keeper`` takes them before they are
    swapped back; a training that does not get better stops, which is known before the epoch's checkpoint is written."""
    yield keeper
    if plan.ema:
        yield EMAWeightAveraging(decay=plan.ema)
    if plan.patience and validated:
        yield EarlyStopping("val_score", mode="max", patience=plan.patience, strict=False)
    yield _Draws(plan.seed)


def _trainer(plan: Plan, processes: int, callbacks: list[pl.Callback], scratch: Path) -> pl.Trainer:
    here = int(os.environ["LOCAL_WORLD_SIZE"]) if processes > 1 else 1
    return pl.Trainer(
        accelerator="auto",
        devices=here,
        num_nodes=processes // here,
        strategy="auto" if processes == 1 else "ddp",
        sync_batchnorm=processes > 1 and device().type == "cuda",  # torch has none for CPUs
        precision=precision(plan, device()),
        # no max_steps: with it Lightning takes a checkpoint of an epoch's end for one of its middle
        max_epochs=math.ceil(plan.steps / plan.validate_every),
        gradient_clip_val=CLIP,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=scratch,
    )


def _state(net: torch.nn.Module) -> State:
    return {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advice on workers, devices and loggers."""
    talkers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [talker.level for talker in talkers]
    for talker in talkers:
        talker.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for talker, level in zip(talkers, levels, strict=True):
            talker.setLevel(level)
