"""Two processes, here or as tasks of Spark, train what one does, stop with the one that launched them, and none is left."""

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil
import pytest
import torch
from mlflow import MlflowClient

from training.errors import TrainingError
from training.launch import DDPLauncher, Launcher, LocalLauncher, SparkLauncher, TrainJob
from training.run import load_run
from training.testing import LauncherTests

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.slow
WEIGHTS, ON_AVERAGE, METRICS = 1e-3, 1e-6, 1e-4
"""Tolerances. Two halves of a batch are added up in another order, which Adam makes more of where a gradient is almost nothing:
a weight may differ by a quarter of the learning rate, but hardly any does."""


class Told:
    """Callbacks that remember."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.epochs: list[int] = []
        self.listening: set[str] = set()

    def progress(self, done: int, total: int) -> None:
        self.steps.append(done)
        for process in [psutil.Process(), *trainers()]:
            with suppress(psutil.Error):
                self.listening |= {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}

    def on_metrics(self, step: int, values: Mapping[str, float]) -> None:
        assert {"val_score", "train_loss"} <= values.keys()
        self.epochs.append(step)


def trainers() -> list[psutil.Process]:
    """This process's descendants that train, or start those that do."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if any(part in line for part in ("spawn_main", "torch.distributed", "torch_run_process", "train.py")):
                found.append(process)
    return found


def agrees(job: TrainJob, first: str, second: str) -> None:
    """The final weights and the validation's metrics are the same within the tolerances."""
    one, two = load_run(job.tracking_uri, first), load_run(job.tracking_uri, second)
    for mine, theirs in zip(one.nets, two.nets, strict=True):
        apart = torch.cat(
            [(a - b).detach().abs().flatten() for a, b in zip(mine.parameters(), theirs.parameters(), strict=True)]
        )
        assert float(apart.max()) < WEIGHTS
        assert float(apart.mean()) < ON_AVERAGE
    names = [name for name in one.metrics if name.startswith(("val_", "final_dice", "train_loss"))]
    assert len(names) > 4
    assert {name: two.metrics[name] for name in names} == pytest.approx(
        {name: one.metrics[name] for name in names}, abs=METRICS
    )


def stops(job: TrainJob, launcher: Callable[[Callable[[int, int], None]], Launcher]) -> None:
    """SIGTERM to the launching process: KILLED, with a checkpoint, and no process is left."""
    job = replace(job, experiment=f"stopped {launcher}", plan=replace(job.plan, steps=1000))
    seen: list[psutil.Process] = []

    def terminate(done: int, total: int) -> None:
        if done > 2:
            seen.extend(trainers())
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as stopped:
        launcher(terminate).run(job)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert len(seen) >= 2
    assert psutil.wait_procs(seen, timeout=30)[1] == []
    client = MlflowClient(job.tracking_uri)
    experiment = client.get_experiment_by_name(job.experiment)
    assert experiment
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
    steps: list[int] = []

    def first(done: int, total: int) -> None:
        steps.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalLauncher(progress=first, threads=1).run(job, resume=run.info.run_id)
    assert steps[0] > 2
    assert steps[0] % job.plan.validate_every == 1


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


class TestDDP(LauncherTests):
    @pytest.fixture(scope="class")
    @classmethod
    def launcher(cls, told: Told) -> Launcher:
        return DDPLauncher(2, progress=told.progress, on_metrics=told.on_metrics)

    def test_two_processes_train_what_one_does(self, run_id: str, alone: str, job: TrainJob) -> None:
        agrees(job, alone, run_id)

    def test_the_launching_process_is_told(self, run_id: str, told: Told, job: TrainJob) -> None:
        assert told.steps == sorted(told.steps)
        assert told.steps[-1] == job.plan.steps
        assert told.epochs == [2, 4, 6]

    def test_nothing_listens_beyond_this_machine(self, run_id: str, told: Told) -> None:
        assert told.listening == {"127.0.0.1"}

    def test_sigterm_stops_all(self, job: TrainJob) -> None:
        stops(job, lambda progress: DDPLauncher(2, progress=progress))

    def test_a_failed_process_says_why(self, job: TrainJob) -> None:
        args = {"channels": [4, 8], "strides": [2], "norm": "?"}
        failing = replace(job, experiment="failed twice", plan=replace(job.plan, network_args=args))
        with pytest.raises(TrainingError, match="network_args do not fit UNet"):
            DDPLauncher(2).run(failing)


class TestSpark(LauncherTests):
    @pytest.fixture(scope="class")
    @classmethod
    def launcher(cls, spark: "SparkSession") -> Launcher:
        return SparkLauncher(spark, 2)

    def test_two_processes_train_what_one_does(self, run_id: str, alone: str, job: TrainJob) -> None:
        agrees(job, alone, run_id)

    def test_sigterm_stops_all(self, job: TrainJob, spark: "SparkSession") -> None:
        stops(job, lambda progress: SparkLauncher(spark, 2, progress=progress))

    def test_more_processes_than_cores_are_refused(self, job: TrainJob, spark: "SparkSession") -> None:
        cores = spark.sparkContext.defaultParallelism
        many = replace(job, plan=replace(job.plan, batch=2 * cores))
        with pytest.raises(TrainingError, match=f"at most {cores}"):
            SparkLauncher(spark, 2 * cores).run(many)
