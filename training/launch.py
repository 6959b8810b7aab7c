"""Where a training runs: in this process, in several on this machine, as tasks of a Spark cluster, or (the fake) not at all."""

import json
import logging
import multiprocessing
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from catalog.labelset import LabelSet
from catalog.progress import Progress
from datamodules.datamodule import VolumeDataModule
from datamodules.plan import Plan
from training.errors import TrainingError
from training.modules import module
from training.supervision import Metrics, ended, guarded, supervised
from training.tracking import RunLog
from training.worker import finish, work

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["DDPLauncher", "FakeLauncher", "Launcher", "LocalLauncher", "SparkLauncher", "TrainJob"]


@dataclass(frozen=True)
class TrainJob:
    """All that a training depends on; everything in it can be traced from the run. ``dataset`` is a complete dataset's folder.

    The versions are those of the tables ``object_catalog`` and ``labels`` (-1: none was read), ``readers`` wrote ``label_ids``,
    ``left_out`` are cases that could not be prepared. ``weights`` is a file to begin from, ``parent_run`` the run that this
    one is nested in, ``viewer_url`` where links to studies lead.
    """

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
    round: int | None = None
    run_name: str = "train"
    left_out: tuple[tuple[str, str], ...] = ()
    weights: str = ""
    parent_run: str = ""
    viewer_url: str = ""
    extra_tags: Mapping[str, str] = field(default_factory=dict)

    def key(self) -> dict[str, str]:
        """The tags that all runs of this training have, whenever they were begun: the code, and tables in which something else
        was written, may have gone on since. The dataset's name says which images and label revisions it is of."""
        tags = {"project": self.project, "model": self.model, "dataset": self.dataset.name, "plan_digest": self.plan.digest()}
        return tags if self.round is None else {**tags, "round": str(self.round)}

    def tags(self) -> dict[str, str]:
        """What its run says of itself."""
        names = ("code_revision", "catalog_version", "labels_version")
        tags = {**self.key(), **{name: str(getattr(self, name)) for name in names}, **self.extra_tags}
        if self.left_out:
            tags["left_out"] = str(len(self.left_out))
        if self.parent_run:
            tags["mlflow.parentRunId"] = self.parent_run
        return tags

    def to_dict(self) -> dict[str, Any]:
        """As JSON stores it."""
        told = {**asdict(self), "dataset": str(self.dataset)}
        told |= {"plan": self.plan.to_dict(), "label_set": self.label_set.to_dict()}
        stored: dict[str, Any] = json.loads(json.dumps(told))
        return stored

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "TrainJob":
        """The inverse of ``to_dict``."""
        given = dict(stored)
        given |= {"dataset": Path(given["dataset"]), "plan": Plan.from_dict(given["plan"])}
        given |= {"label_set": LabelSet.from_dict(given["label_set"])}
        given |= {name: tuple(given[name]) for name in ("label_ids", "readers")}
        given["left_out"] = tuple((case, reason) for case, reason in given["left_out"])
        return cls(**given)


class Launcher(Protocol):
    """Trains a job somewhere and waits for it."""

    def run(self, job: TrainJob, *, resume: str | None = None) -> str:
        """The MLflow run id. ``resume`` names a run of this job that did not finish: it goes on from its last epoch."""


class LocalLauncher:
    """In this process, on its GPU where there is one, else on ``threads`` CPU threads (torch's choice by default).

    ``progress`` is told the steps, ``on_metrics`` an epoch's metrics; what they raise stops the training. A run that SIGTERM or
    Ctrl-C stops is KILLED.
    """

    def __init__(
        self, *, progress: Progress | None = None, on_metrics: Metrics | None = None, threads: int | None = None
    ) -> None:
        self._progress, self._on_metrics, self._threads = progress, on_metrics, threads

    def run(self, job: TrainJob, *, resume: str | None = None) -> str:
        """Train; see Launcher."""
        if self._threads:
            torch.set_num_threads(self._threads)
        log = _opened(job, resume)
        with ended(log):
            work(job, log.run_id, progress=self._progress, on_metrics=self._on_metrics)
        return log.run_id


class DDPLauncher:
    """``processes`` on this machine, a GPU each where there are, else sharing the cores; see LocalLauncher.

    They meet on the loopback interface, and none outlives this process.
    """

    def __init__(self, processes: int, *, progress: Progress | None = None, on_metrics: Metrics | None = None) -> None:
        self._processes, self._progress, self._on_metrics = processes, progress, on_metrics

    def run(self, job: TrainJob, *, resume: str | None = None) -> str:
        """Train; see Launcher. TrainingError where the processes cannot share the batch or the GPUs."""
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        from training.loopback import BACKEND

        _check_share(job.plan, self._processes)
        if 0 < torch.cuda.device_count() < self._processes:
            raise TrainingError(f"{self._processes} processes, {torch.cuda.device_count()} GPUs", remedy="a GPU a process")
        log = _opened(job, resume)
        config = LaunchConfig(
            1, 1, self._processes, run_id=log.run_id, rdzv_backend=BACKEND, max_restarts=0, monitor_interval=0.5
        )
        for name in list(logging.root.manager.loggerDict):
            if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
                logging.getLogger(name).setLevel(logging.CRITICAL)  # what a process failed of is told once, by TrainingError
        theirs, ours = multiprocessing.get_context("spawn").Pipe(duplex=False)
        with ours, theirs, ended(log):
            supervised(
                log,
                job.plan.steps,
                lambda: elastic_launch(config, _one_here)(job.to_dict(), log.run_id, theirs),
                ours.close,
                progress=self._progress,
                on_metrics=self._on_metrics,
            )
        return log.run_id


class SparkLauncher:
    """``processes`` tasks of a Spark cluster, started together by TorchDistributor; see LocalLauncher.

    The dataset's folder and the tracking server must be reachable from every worker, and the workers from each other: they
    meet on a port of one of them.
    """

    def __init__(
        self,
        spark: "SparkSession",
        processes: int,
        *,
        progress: Progress | None = None,
        on_metrics: Metrics | None = None,
    ) -> None:
        self._spark, self._processes, self._progress, self._on_metrics = spark, processes, progress, on_metrics

    def run(self, job: TrainJob, *, resume: str | None = None) -> str:
        """Train; see Launcher. TrainingError where the processes cannot share the batch, or outnumber a local Spark's cores."""
        from pyspark.ml.torch.distributor import TorchDistributor

        context = self._spark.sparkContext
        _check_share(job.plan, self._processes)
        local = str(context.master).startswith("local")
        if local and context.defaultParallelism < self._processes:
            said = f"{self._processes} processes on a local Spark with {context.defaultParallelism} cores would wait for ever"
            raise TrainingError(said, about=context.master, remedy=f"use at most {context.defaultParallelism}")
        gpu = int(context.getConf().get("spark.task.resource.gpu.amount", "0") or 0) > 0
        if local:
            gpu = torch.cuda.device_count() >= self._processes
        log = _opened(job, resume)
        distributor = TorchDistributor(num_processes=self._processes, local_mode=False, use_gpu=gpu)

        def launch() -> None:
            context.addJobTag(log.run_id)
            distributor.run(_one_there, job.to_dict(), log.run_id)

        with ended(log):
            supervised(
                log,
                job.plan.steps,
                launch,
                lambda: context.cancelJobsWithTag(log.run_id),
                progress=self._progress,
                on_metrics=self._on_metrics,
            )
        return log.run_id


class FakeLauncher:
    """Logs everything that a training logs, with an untrained network: for tests that need a run, not a good one."""

    def run(self, job: TrainJob, *, resume: str | None = None) -> str:
        """Log; see Launcher."""
        log = _opened(job, resume)
        with ended(log):
            log.metrics({"val_dice": 0.0, **{f"val_dice_{name}": 0.0 for name in job.plan.structures}}, 0)
            made = module(job.plan)
            finish(log, job, made, VolumeDataModule(job.dataset, job.plan), [made.net.state_dict()])
        return log.run_id


def _opened(job: TrainJob, resume: str | None) -> RunLog:
    return RunLog.reopen(job, resume) if resume else RunLog.begin(job)


def _check_share(plan: Plan, processes: int) -> None:
    if processes < 1 or plan.batch % processes:
        remedy = f"make batch in the plan a multiple of {processes}" if processes > 1 else "use 1 or more"
        raise TrainingError(f"{processes} processes cannot share {plan.batch} patches a step", about="plan", remedy=remedy)


def _one_here(job: dict[str, Any], run_id: str, lifeline: Connection) -> None:
    """What each of DDPLauncher's processes runs."""
    from training.loopback import stay_on_loopback

    stay_on_loopback()
    torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"])))
    _one(job, run_id, lifeline)


def _one_there(job: dict[str, Any], run_id: str) -> None:
    """What each of SparkLauncher's processes runs."""
    _one(job, run_id, None)


def _one(job: dict[str, Any], run_id: str, lifeline: Connection | None) -> None:
    given = TrainJob.from_dict(job)
    with guarded(RunLog(given.tracking_uri, run_id), lifeline):
        work(given, run_id, processes=int(os.environ["WORLD_SIZE"]))
