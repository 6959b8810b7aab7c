"""A training in this process leaves a run that can be loaded, traced, stopped and gone on with exactly."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from datamodules.dataset import DatasetInfo
from experiments.synthetic import cases
from training import Prompts, TrainingError, load_run
from training.launch import DDPLauncher, FakeLauncher, Launcher, LocalLauncher, TrainJob
from training.run import load_job
from training.testing import LauncherTests

pytestmark = pytest.mark.slow
KILLED = """
import pickle, signal, sys
from training.launch import LocalLauncher

def progress(done, total):
    if done == 5:
        print(done, flush=True)
        signal.pause()

job = pickle.load(open(sys.argv[1], "rb"))
LocalLauncher(progress=progress, threads=1).run(job)
"""


class TestLocal(LauncherTests):
    @pytest.fixture(scope="class")
    @classmethod
    def launcher(cls) -> Launcher:
        return LocalLauncher(threads=1)

    @pytest.fixture(scope="class")
    @classmethod
    def run_id(cls, alone: str) -> str:
        return alone

    def test_equal_seeds_give_equal_networks(self, launcher: Launcher, run_id: str, job: TrainJob) -> None:
        assert equal(job, run_id, launcher.run(job))

    def test_metrics_come_by_epoch(self, run_id: str, job: TrainJob) -> None:
        history = MlflowClient(job.tracking_uri).get_metric_history(run_id, "val_dice_liver")
        assert [point.step for point in history] == [2, 4, 6]

    def test_a_loaded_run_predicts(self, run_id: str, job: TrainJob) -> None:
        image = next(cases(1))[1]
        run = load_run(job.tracking_uri, run_id)
        assert run.predictor().predict(image, Prompts()).mask.geometry_equal(image)
        with pytest.raises(TrainingError, match="classifies nothing"):
            run.classifier()


class TestFake(LauncherTests):
    @pytest.fixture(scope="class")
    @classmethod
    def launcher(cls) -> Launcher:
        return FakeLauncher()


@pytest.fixture(scope="module")
def rich(job: TrainJob) -> TrainJob:
    """Everything in it has a state that a checkpoint must hold; its last epoch is cut short."""
    args = {**job.plan.network_args, "dropout": 0.2}
    plan = replace(job.plan, steps=7, network_args=args, ema=0.5, ensemble=2, patience=3)
    return replace(job, experiment="rich", plan=plan)


@pytest.fixture(scope="module")
def uninterrupted(rich: TrainJob) -> str:
    return LocalLauncher(threads=1).run(rich)


def states(job: TrainJob, run_id: str) -> list[Mapping[str, torch.Tensor]]:
    return [net.state_dict() for net in load_run(job.tracking_uri, run_id).nets]


def equal(job: TrainJob, first: str, second: str) -> bool:
    pairs = list(zip(states(job, first), states(job, second), strict=True))
    return all(torch.equal(a[name], b[name]) for a, b in pairs for name in a)


def latest(job: TrainJob) -> tuple[str, str]:
    """Run id and status of the experiment's latest run."""
    client = MlflowClient(job.tracking_uri)
    experiment = client.get_experiment_by_name(job.experiment)
    assert experiment
    info = client.search_runs([experiment.experiment_id])[0].info
    return info.run_id, info.status


def terminate_at(step: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return progress


def test_the_last_epoch_validates_though_it_is_short(rich: TrainJob, uninterrupted: str) -> None:
    history = MlflowClient(rich.tracking_uri).get_metric_history(uninterrupted, "val_score")
    assert [point.step for point in history] == [2, 4, 6, 7]
    assert len(states(rich, uninterrupted)) == rich.plan.ensemble


@pytest.mark.parametrize("step", [1, 6])
def test_sigterm_leaves_a_checkpoint_to_go_on_from_exactly(rich: TrainJob, uninterrupted: str, step: int) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        LocalLauncher(progress=terminate_at(step), threads=1).run(rich)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    run_id, status = latest(rich)
    assert status == "KILLED"
    with pytest.raises(TrainingError, match=run_id):
        load_run(rich.tracking_uri, run_id)
    steps: list[int] = []
    resumed = LocalLauncher(progress=lambda done, total: steps.append(done), threads=1)
    assert resumed.run(load_job(rich.tracking_uri, run_id), resume=run_id) == run_id
    assert steps == list(range(1 if step == 1 else 5, 8))
    assert latest(rich) == (run_id, "FINISHED")
    assert equal(rich, run_id, uninterrupted)


def test_kill_9_leaves_a_checkpoint_to_go_on_from_exactly(rich: TrainJob, uninterrupted: str, tmp_path: Path) -> None:
    (tmp_path / "job").write_bytes(pickle.dumps(rich))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "job")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as child:
        assert child.stdout
        assert child.stdout.readline().strip() == "5"
        child.kill()
    run_id, status = latest(rich)
    assert status == "RUNNING"
    LocalLauncher(threads=1).run(rich, resume=run_id)
    assert equal(rich, run_id, uninterrupted)


def test_ctrl_c_without_validation_cases_goes_on_and_keeps_the_last_weights(job: TrainJob, tmp_path: Path) -> None:
    shutil.copytree(job.dataset / "train", tmp_path / "train")
    info = DatasetInfo.read(job.dataset)
    replace(info, path=tmp_path, rows={"train": 3}).write(tmp_path, {})
    blind = replace(job, experiment="blind", dataset=tmp_path, plan=replace(job.plan, patience=1))

    def interrupt(done: int, total: int) -> None:
        if done == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        LocalLauncher(progress=interrupt, threads=1).run(blind)
    run_id, status = latest(blind)
    assert status == "KILLED"
    steps: list[int] = []
    LocalLauncher(progress=lambda done, total: steps.append(done), threads=1).run(blind, resume=run_id)
    assert steps == [5, 6]
    assert len(states(blind, run_id)) == 1


def test_a_training_that_does_not_get_better_stops(job: TrainJob) -> None:
    still = replace(job, experiment="still", plan=replace(job.plan, learning_rate=1e-12, patience=1))
    run_id = LocalLauncher(threads=1).run(still)
    history = MlflowClient(job.tracking_uri).get_metric_history(run_id, "val_score")
    assert [point.step for point in history] == [2, 4]


def test_what_on_metrics_raises_stops_the_training(job: TrainJob) -> None:
    pruned = replace(job, experiment="pruned")

    def on_metrics(step: int, values: Mapping[str, float]) -> None:
        assert {"val_score", "train_loss"} <= values.keys()
        raise ValueError(f"pruned at {step}")

    with pytest.raises(ValueError, match="pruned at 2"):
        LocalLauncher(on_metrics=on_metrics, threads=1).run(pruned)
    assert latest(pruned)[1] == "FAILED"


def test_a_failed_run_says_so(job: TrainJob) -> None:
    args = {"channels": [4, 8], "strides": [2], "norm": "?"}
    failing = replace(job, experiment="failed", plan=replace(job.plan, network_args=args))
    with pytest.raises(TrainingError, match="UNet"):
        LocalLauncher().run(failing)
    assert latest(failing)[1] == "FAILED"


def test_a_training_begins_with_given_weights(job: TrainJob, alone: str, tmp_path: Path) -> None:
    torch.save(states(job, alone)[0], tmp_path / "weights.pt")
    plan = replace(job.plan, steps=1, learning_rate=1e-12)
    begun = replace(job, experiment="begun", plan=plan, weights=str(tmp_path / "weights.pt"))
    run_id = LocalLauncher(threads=1).run(begun)
    (before,), (after,) = states(job, alone), states(begun, run_id)
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)


def test_processes_that_cannot_share_a_batch_are_refused(job: TrainJob) -> None:
    with pytest.raises(TrainingError, match="multiple of 3"):
        DDPLauncher(3).run(job)


def test_a_job_survives_json(job: TrainJob) -> None:
    assert TrainJob.from_dict(job.to_dict()) == job
    assert job.tags()["fold"] == "0"
    assert replace(job, parent_run="p").tags()["mlflow.parentRunId"] == "p"


def test_an_unknown_run_is_named(mlflow_server: str) -> None:
    for load in (load_run, load_job):
        with pytest.raises(TrainingError, match="run nothing"):
            load(mlflow_server, "nothing")


def test_a_loss_that_is_no_number_stops_the_training(job: TrainJob) -> None:
    lost = replace(job, experiment="lost", plan=replace(job.plan, learning_rate=1e30))
    with pytest.raises(TrainingError, match="not a number"):
        LocalLauncher(threads=1).run(lost)
    assert latest(lost)[1] == "FAILED"
