"""A training leaves a run that can be loaded, traced, stopped and continued: real MLflow server, real datasets."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from datamodules._petastorm import seal, write
from datamodules.dataset import DatasetInfo
from datamodules.fingerprint import Fingerprint
from datamodules.plan import Plan
from datamodules.prepare import intensity, prepare_mask, resampled
from datamodules.sample import Sample
from experiments.synthetic import LABEL_SET, cases
from training import Prompts, TrainingError, load_run
from training.launch import FakeLauncher, Launcher, LocalLauncher, TrainJob
from training.testing import LauncherTests

pytestmark = pytest.mark.slow
SMALL = {"spacing": (10.0, 7.0, 7.0), "patch": (16, 16, 16), "steps": 6, "validate_every": 2, "precision": "32"}
KILLED = """
import pickle, sys
from training.launch import LocalLauncher
job = pickle.load(open(sys.argv[1], "rb"))
LocalLauncher(progress=lambda done, total: print(done, flush=True), threads=1).run(job)
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training and one validation case of the synthetic cohort, prepared coarsely."""
    folder = tmp_path_factory.mktemp("dataset")
    roles = ["train", "train", "train", "validation"]
    plan = Plan.make(SMALL, LABEL_SET, Fingerprint((5.0, 3.4, 3.4), (28, 48, 48)))
    known = torch.tensor([True, True])
    for role, (name, image, mask) in zip(roles, cases(4), strict=True):
        array, _ = resampled([image], plan)
        drawn = prepare_mask(mask, plan)
        places = drawn.nonzero()
        centres = torch.cat([drawn[tuple(places.T)].long()[:, None], places], 1).int()
        sample = Sample(name, f"1.2.{name[-1]}", name, name, array, intensity(array, plan), drawn, known, known, centres)
        write(folder / role / f"{name}.parquet", sample)
    rows = {role: seal(folder / role) for role in ("train", "validation")}
    DatasetInfo(folder, rows, folder.name, (), plan, LABEL_SET).write(folder, {})
    return folder


@pytest.fixture
def job(dataset: Path, mlflow_server: str) -> TrainJob:
    plan = Plan.make(SMALL, LABEL_SET, Fingerprint((5.0, 3.4, 3.4), (28, 48, 48)))
    return TrainJob(
        project="phantoms",
        model="phantoms",
        dataset=dataset,
        plan=plan,
        label_set=LABEL_SET,
        tracking_uri=mlflow_server,
        experiment="phantoms",
        catalog_version=5,
        labels_version=3,
        label_ids=("a", "b", "c", "d"),
        readers=("simulated",),
        code_revision="abc",
        round=1,
        run_name="round 1",
    )


class TestLocal(LauncherTests):
    @pytest.fixture
    def launcher(self) -> Launcher:
        return LocalLauncher(threads=1)

    def test_equal_seeds_give_equal_networks(self, launcher: Launcher, job: TrainJob) -> None:
        first, again = (load_run(job.tracking_uri, launcher.run(job)).nets[0].state_dict() for _ in range(2))
        assert all(torch.equal(first[name], again[name]) for name in first)

    def test_metrics_come_by_epoch(self, launcher: Launcher, job: TrainJob) -> None:
        history = MlflowClient(job.tracking_uri).get_metric_history(launcher.run(job), "val_dice_liver")
        assert [point.step for point in history] == [2, 4, 6]

    def test_a_loaded_run_predicts(self, launcher: Launcher, job: TrainJob) -> None:
        image = next(cases(1))[1]
        prediction = load_run(job.tracking_uri, launcher.run(job)).predictor().predict(image, Prompts())
        assert prediction.mask.geometry_equal(image)


class TestFake(LauncherTests):
    @pytest.fixture
    def launcher(self) -> Launcher:
        return FakeLauncher()


def stop_after(steps: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == steps:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_run_is_killed_and_goes_on(job: TrainJob) -> None:
    client = MlflowClient(job.tracking_uri)
    job = replace(job, experiment="interrupted")
    with pytest.raises(KeyboardInterrupt):
        LocalLauncher(progress=stop_after(5), threads=1).run(job)
    run_id = client.search_runs([client.get_experiment_by_name("interrupted").experiment_id])[0].info.run_id
    assert client.get_run(run_id).info.status == "KILLED"
    with pytest.raises(TrainingError, match=run_id):
        load_run(job.tracking_uri, run_id)
    steps: list[int] = []
    assert LocalLauncher(progress=lambda done, total: steps.append(done), threads=1).run(job, resume=run_id) == run_id
    assert steps == [5, 6]
    assert client.get_run(run_id).info.status == "FINISHED"
    load_run(job.tracking_uri, run_id)


def test_sigterm_marks_the_run_as_killed(job: TrainJob, tmp_path: Path) -> None:
    job = replace(job, experiment="terminated", plan=replace(job.plan, steps=100_000))
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "job")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as child:
        assert child.stdout
        assert child.stdout.readline().strip() == "1"
        child.send_signal(signal.SIGTERM)
        child.stdout.read()
        assert child.wait(timeout=60) == 128 + signal.SIGTERM
    client = MlflowClient(job.tracking_uri)
    runs = client.search_runs([client.get_experiment_by_name("terminated").experiment_id])
    assert [run.info.status for run in runs] == ["KILLED"]


def test_a_failed_run_says_so(job: TrainJob) -> None:
    job = replace(
        job, experiment="failed", plan=replace(job.plan, network_args={"channels": [4, 8], "strides": [2], "norm": "?"})
    )
    with pytest.raises(TrainingError, match="UNet"):
        LocalLauncher().run(job)
    client = MlflowClient(job.tracking_uri)
    runs = client.search_runs([client.get_experiment_by_name("failed").experiment_id])
    assert [run.info.status for run in runs] == ["FAILED"]


def test_an_unknown_run_is_named(mlflow_server: str) -> None:
    with pytest.raises(TrainingError, match="run nothing"):
        load_run(mlflow_server, "nothing")
