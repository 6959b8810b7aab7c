"""Where a training runs: in this process, in several on this machine, as tasks of a Spark cluster, or (the fake) not at all."""

import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from catalog.labelset import LabelSet
from catalog.progress import Progress
from datamodules.datamodule import VolumeDataModule
from datamodules.plan import Plan
from training.modules import module
from training.tracking import RunLog
from training.worker import finish, work

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["DDPLauncher", "FakeLauncher", "Launcher", "LocalLauncher", "SparkLauncher", "TrainJob"]

Metrics = Callable[[int, Mapping[str, float]], None]
"""Is told an epoch's step and metrics; what it raises stops the training."""

LOOK_EVERY = 2.0
"""Seconds between two looks at how far other processes are."""


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

    def tags(self) -> dict[str, str]:
        """What a run is found by."""
        names = ("project", "model", "code_revision", "catalog_version", "labels_version")
        tags = {name: str(getattr(self, name)) for name in names}
        tags |= {"dataset": self.dataset.name, "plan_digest": self.plan.digest(), **self.extra_tags}
        if self.left_out:
            tags["left_out"] = str(len(self.left_out))
        if self.parent_run:
            tags["mlflow.parentRunId"] = self.parent_run
        return tags if self.round is None else {**tags, "round": str(self.round)}

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
        log = RunLog.reopen(job, resume) if resume else RunLog.begin(job)
        with _ended(log):
            work(job, log.run_id, progress=self._progress, on_metrics=self._on_metrics)
        return log.run_id


class DDPLauncher:
    """``processes`` on this machine, a GPU each where there are, else sharing the cores; see LocalLauncher."""

    def __init__(self, processes: int, *, progress: Progress | None = None, on_metrics: Metrics | None = None) -> None:
        self._processes, self._progress, self._on_metrics = processes, progress, on_metrics

    def run(self, job: TrainJob, *, resume: str | None = None) -> str:
        """Train; see Launcher."""
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        log = RunLog.reopen(job, resume) if resume else RunLog.begin(job)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self._processes,
            run_id=log.run_id,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            max_restarts=0,
            start_method="spawn",
            local_addr="127.0.0.1",
        )
        with _ended(log), _followed(log, job, self._progress, self._on_metrics):
            elastic_launch(config, _entry)(job.to_dict(), log.run_id)
        return log.run_id


class SparkLauncher:
    """``processes`` tasks of a Spark cluster, started together by TorchDistributor; see LocalLauncher.

    The dataset's folder and the tracking server must be reachable from every worker.
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
        """Train; see Launcher."""
        from pyspark.ml.torch.distributor import TorchDistributor

        log = RunLog.reopen(job, resume) if resume else RunLog.begin(job)
        gpu = torch.cuda.is_available()
        with _ended(log), _followed(log, job, self._progress, self._on_metrics):
            distributor = TorchDistributor(num_processes=self._processes, local_mode=False, use_gpu=gpu)
            distributor.run(_entry, job.to_dict(), log.run_id)
        return log.run_id


class FakeLauncher:
    """Logs everything that a training logs, with an untrained network: for tests that need a run, not a good one."""

    def run(self, job: TrainJob, *, resume: str | None = None) -> str:
        """Log; see Launcher."""
        log = RunLog.reopen(job, resume) if resume else RunLog.begin(job)
        with _ended(log):
            log.metrics({"val_dice": 0.0, **{f"val_dice_{name}": 0.0 for name in job.plan.structures}}, 0)
            made = module(job.plan)
            finish(log, job, made, VolumeDataModule(job.dataset, job.plan), [made.net.state_dict()])
        return log.run_id


def _entry(job: dict[str, Any], run_id: str) -> str:
    """What each of several processes runs."""
    signal.signal(signal.SIGTERM, _terminate)
    work(TrainJob.from_dict(job), run_id)
    return run_id


@contextmanager
def _followed(log: RunLog, job: TrainJob, progress: Progress | None, on_metrics: Metrics | None) -> Iterator[None]:
    """Report how far the processes are, by what they log. What a callback raises ends the training as a signal would."""
    stop, raised = threading.Event(), []

    def follow() -> None:
        seen = -1
        while not stop.wait(LOOK_EVERY):
            metrics = log.client.get_run(log.run_id).data.metrics
            step = int(metrics.get("step", 0))
            try:
                if progress:
                    progress(step, job.plan.steps)
                if on_metrics and step > seen and "val_score" in metrics:
                    on_metrics(step, metrics)
                    seen = step
            except BaseException as problem:
                raised.append(problem)
                signal.raise_signal(signal.SIGTERM)
                return

    thread = threading.Thread(target=follow, daemon=True)
    if progress or on_metrics:
        thread.start()
    try:
        yield
    except BaseException:
        if raised:
            raise raised[0] from None
        raise
    finally:
        stop.set()


@contextmanager
def _ended(log: RunLog) -> Iterator[None]:
    """The run's status follows from how the block ends; SIGTERM ends it as an exception."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if main else None
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with log.system():
            yield
        log.end("FINISHED")
    except (KeyboardInterrupt, SystemExit) as stopped:
        log.end("KILLED")
        if isinstance(stopped, SystemExit) and stopped.code == 1:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from None
        raise
    except BaseException as problem:
        log.end("KILLED" if type(problem).__name__ == "SignalException" else "FAILED")
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
            signal.signal(signal.SIGINT, interrupt)  # Lightning leaves it ignored


def _terminate(number: int, _: Any) -> None:
    raise SystemExit(128 + number)
