"""Sweeps: real trainings of the smallest network, a real MLflow server, Optuna's real database."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import TrialState, create_trial
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from catalog import LabelSet, Structure
from datamodules._petastorm import seal, write
from datamodules.dataset import DatasetInfo
from datamodules.errors import DataError
from datamodules.plan import Plan
from datamodules.sample import Sample
from experiments.errors import ExperimentError
from experiments.sweep import Sweep, SweepResult
from experiments.sweep_config import SweepConfig
from experiments.sweep_log import BEST_PLAN, TRIAL
from experiments.sweep_study import alone, begin
from training.errors import TrainingError
from training.launch import TrainJob
from training.training_set import TrainingSet

pytestmark = pytest.mark.slow
LABEL_SET = LabelSet("boxes", (Structure("box", 1, ("SCT", "1", "Box"), (200, 0, 0)),))
SMALL = {
    "patch": [8, 8, 8],
    "batch": 1,
    "steps": 4,
    "validate_every": 2,
    "precision": "32",
    "network": "tests.experiments.test_sweep:Dot",
    "network_args": {},
}
RATES = {"learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}}


class Dot(nn.Module):
    """The smallest network. ``log`` is a file to which each one that trains adds its process; the ``fatal``-th kills it, as a
    lack of memory would; a ``lost`` one answers with no number."""

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, log: str = "", fatal: int = -1, lost: bool = False
    ) -> None:
        super().__init__()
        self.inner = nn.Conv3d(in_channels, out_channels, 1)
        self.log, self.fatal, self.lost = log, fatal, lost

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.log and self.training and not isinstance(image, FakeTensor):  # fake: its memory is being planned
            self._trains()
        answer: torch.Tensor = self.inner(image)
        return answer * float("nan") if self.lost else answer

    def _trains(self) -> None:
        with Path(self.log).open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            fatal = len(file.readlines()) == self.fatal
            file.write(f"{os.getpid()}\n")
        self.log = ""
        if fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def prepared(folder: Path, *roles: str) -> Path:
    """A dataset of a case a role: 8³ voxels, a brighter box."""
    mask = torch.zeros(8, 8, 8, dtype=torch.uint8)
    mask[2:6, 2:6, 2:6] = 1
    centres = torch.tensor([[1, 4, 4, 4]], dtype=torch.int32)
    for index, role in enumerate(roles):
        case, yes = f"case-{index}", torch.tensor([True])
        noise = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(index))
        intensity = torch.tensor([[1.0, -9.0, 9.0, 0.0, 1.0]])
        sample = Sample(case, case, case, "", mask[None] + 0.1 * noise, intensity, mask, yes, yes, centres)
        write(folder / role / f"{case}.parquet", sample)
    rows = {role: seal(folder / role) for role in dict.fromkeys(roles)}
    plan = Plan.from_dict({"spacing": (1, 1, 1), "structures": ("box",), "values": (1,), **SMALL})
    DatasetInfo(folder, rows, folder.name, (), plan, LABEL_SET).write(folder, {role: [] for role in rows})
    return folder


class Target:
    """A prepared dataset, to be trained on."""

    def __init__(self, dataset: Path, tracking_uri: str) -> None:
        self._set, self._tracking_uri = TrainingSet.of_dataset(dataset), tracking_uri

    @property
    def experiment(self) -> str:
        return self._set.name

    def plan(self, overrides: Mapping[str, Any]) -> Plan:
        return self._set.plan(None, overrides)

    def job(self, plan: Plan, *, run_name: str, parent_run: str) -> TrainJob:
        assert self._set.prepared
        more = {"tracking_uri": self._tracking_uri, "code_revision": "", "run_name": run_name, "parent_run": parent_run}
        return self._set.job(self._set.prepared, plan, **more)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("boxes"), "train", "train", "validation")


def config(name: str, **more: Any) -> SweepConfig:
    return SweepConfig.model_validate({"name": name, "target": Path(), "space": RATES, "trials": 2, **more})


def nested(uri: str, sweep_run: str) -> list[Run]:
    """The trials' runs, in their order."""
    client = MlflowClient(uri)
    experiment = client.get_run(sweep_run).info.experiment_id
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{sweep_run}'")
    return sorted(runs, key=lambda run: int(run.data.tags[TRIAL]))


def test_a_sweep_leaves_its_best_plan_and_stops_what_is_worse(
    dataset: Path, mlflow_server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    client, target, lines = MlflowClient(mlflow_server), Target(dataset, mlflow_server), list[str]()

    def swept(**more: Any) -> SweepResult:
        return Sweep(config("first", **more), target, tmp_path, mlflow_server, note=lines.append).run()

    first = swept()
    assert (first.complete, first.pruned, first.failed) == (2, 0, 0)
    runs = nested(mlflow_server, first.run_id)
    assert [(run.info.status, run.data.tags[TRIAL]) for run in runs] == [("FINISHED", "0"), ("FINISHED", "1")]
    assert runs[0].data.params["learning_rate"] != runs[1].data.params["learning_rate"]
    scores = [client.get_metric_history(run.info.run_id, "val_score") for run in runs]
    best = [max(point.value for point in history) for history in scores]  # of all epochs
    assert first.best_score == pytest.approx(max(best))
    assert first.best_run == runs[first.best_trial].info.run_id
    sweep_run = client.get_run(first.run_id)
    assert sweep_run.info.status == "FINISHED"
    assert sweep_run.data.metrics["best_score"] == pytest.approx(first.best_score)
    assert json.loads(sweep_run.data.params["space"])["learning_rate"]["high"] == 0.1
    assert {BEST_PLAN, "history.png", "importance.png"} <= {item.path for item in client.list_artifacts(first.run_id)}
    stored = json.loads(Path(client.download_artifacts(first.run_id, BEST_PLAN, str(tmp_path))).read_text())
    assert stored == first.best_plan
    assert target.plan(stored).digest() == runs[first.best_trial].data.tags["plan_digest"]

    study = begin(config("first"), tmp_path)
    for _ in range(4):  # that were far better after their first epoch, by which the median prunes
        known = {"params": {"learning_rate": 0.01}, "distributions": config("first").distributions}
        study.add_trial(create_trial(value=-1, intermediate_values={1: 2.0}, **known))
    again = swept(trials=7)
    assert (again.run_id, again.complete, again.pruned) == (first.run_id, 6, 1)
    pruned = nested(mlflow_server, again.run_id)[-1]
    assert (pruned.info.status, pruned.data.tags["pruned"], pruned.data.tags[TRIAL]) == ("KILLED", "true", "6")
    assert [point.step for point in client.get_metric_history(pruned.info.run_id, "val_score")] == [2]
    assert not {"weights.pt"} & {item.path for item in client.list_artifacts(pruned.info.run_id)}
    assert "pruned after epoch 1" in lines[-1] and f"best: trial {first.best_trial}" in lines[-1]
    assert capfd.readouterr().out == ""


def test_two_workers_share_the_trials_and_survive_one_that_dies(dataset: Path, mlflow_server: str, tmp_path: Path) -> None:
    log, lines = tmp_path / "made.txt", list[str]()
    plan = {"network_args": {"log": str(log), "fatal": 1}}
    sweep = Sweep(
        config("two", plan=plan, trials=4, pruner="none"),
        Target(dataset, mlflow_server),
        tmp_path,
        mlflow_server,
        note=lines.append,
    )
    result = sweep.run(workers=2)
    assert (result.complete, result.failed) == (4, 1)
    pids = log.read_text().split()
    assert len(pids) == 5
    assert str(os.getpid()) not in pids
    assert len(set(pids)) >= 2
    assert [line for line in lines if "its process ended (-9)" in line]
    finished = [run for run in nested(mlflow_server, result.run_id) if run.info.status == "FINISHED"]
    assert len(finished) == 4


def test_a_sweep_that_was_killed_goes_on(dataset: Path, mlflow_server: str, tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "sweep.yaml"
    plan = {"network_args": {"log": str(tmp_path / "made.txt"), "fatal": 1}}
    told = {"name": "killed", "target": str(dataset), "plan": plan, "space": RATES, "trials": 2}
    file.write_text(yaml.safe_dump(told))
    environment = {**os.environ, "VOXLOOP_TRACKING_URI": mlflow_server, "PYTHONPATH": os.pathsep.join(sys.path)}

    def voxloop() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "voxloop", "sweep", str(file), "--home", str(home), "--json"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    dead = voxloop()
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    study = optuna.load_study(study_name="killed", storage=f"sqlite:///{home}/sweeps/killed.db")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.RUNNING]

    done = voxloop()
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["complete"], result["failed"]) == (2, 1)
    _, lost, retried = study.trials
    assert (lost.state, retried.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert retried.params == lost.params
    runs = nested(mlflow_server, result["run_id"])
    assert [(run.data.tags[TRIAL], run.info.status) for run in runs] == [("0", "FINISHED"), ("1", "KILLED"), ("2", "FINISHED")]
    assert runs[1].data.tags["retried"] == "true"
    assert MlflowClient(mlflow_server).get_run(result["run_id"]).info.status == "FINISHED"


def test_what_cannot_be_begun_is_refused(dataset: Path, mlflow_server: str, tmp_path: Path) -> None:
    target = Target(dataset, mlflow_server)
    with pytest.raises(DataError, match="batch"):
        Sweep(config("bad", space={"batch": [1, -1]}), target, tmp_path, mlflow_server).run()
    with pytest.raises(TrainingError, match="unknown"):
        Sweep(config("bad", plan={"network_args": {"unknown": 1}}), target, tmp_path, mlflow_server).run()
    assert list(tmp_path.iterdir()) == []
    begin(config("changed"), tmp_path)
    with pytest.raises(ExperimentError, match="another space"):
        Sweep(config("changed", space={"batch": [1, 2]}), target, tmp_path, mlflow_server).run()
    with alone(tmp_path / "held.lock", "held"), pytest.raises(ExperimentError, match="runs already"):
        Sweep(config("held"), target, tmp_path, mlflow_server).run()
    with pytest.raises(ExperimentError, match="database"):
        Sweep(config("stored", storage="nothing://"), target, tmp_path, mlflow_server).run()


@pytest.mark.parametrize(
    ("roles", "said"), [(["train", "validation", "holdout"], "holdout"), (["train"], "no validation case")]
)
def test_only_validation_cases_are_tuned_on(roles: list[str], said: str, mlflow_server: str, tmp_path: Path) -> None:
    target = Target(prepared(tmp_path / "dataset", *roles), mlflow_server)
    with pytest.raises(ExperimentError, match=said):
        Sweep(config(f"roles-{len(roles)}"), target, tmp_path, mlflow_server).run()
    study = optuna.load_study(study_name=f"roles-{len(roles)}", storage=f"sqlite:///{tmp_path}/roles-{len(roles)}.db")
    assert [trial.state for trial in study.trials] == [TrialState.FAIL]
    runs = nested(mlflow_server, study.user_attrs["run_id"])
    assert runs == []
    assert MlflowClient(mlflow_server).get_run(study.user_attrs["run_id"]).info.status == "FAILED"


def test_trials_that_fail_one_after_another_end_the_sweep(dataset: Path, mlflow_server: str, tmp_path: Path) -> None:
    lost = config("lost", plan={"network_args": {"lost": True}})
    with pytest.raises(ExperimentError, match=r"3 trials in a row failed.*not a number"):
        Sweep(lost, Target(dataset, mlflow_server), tmp_path, mlflow_server).run()
