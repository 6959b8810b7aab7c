"""What a training writes to MLflow, through one client and without MLflow's process-wide state."""

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException

from catalog.labelset import LabelSet
from datamodules.plan import Plan
from datamodules.sample import Sample
from training.download import sha256_of
from training.errors import TrainingError
from training.evaluation import Evaluation
from training.pictures import slices
from training.run import CHECKPOINT, JOB, LABEL_IDS, LABEL_SET, PLAN, WEIGHTS

if TYPE_CHECKING:
    from training.launch import TrainJob

__all__ = ["RunLog", "experiment_id"]

LEFT_OUT, EVALUATION, WORST = "left_out.json", "evaluation.json", "worst.html"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # the page opens on the runs, not on traces of agents
LONGEST = 500  # characters of a parameter that MLflow's page still shows well; plan.json has all
SAMPLED = 10  # seconds between two looks at the machine
KEPT = "voxloop.checkpoint"  # the tag that names the checkpoint to go on from


class RunLog:
    """The run ``run_id``, in whatever process."""

    def __init__(self, tracking_uri: str, run_id: str) -> None:
        self.client, self.tracking_uri, self.run_id = MlflowClient(tracking_uri), tracking_uri, run_id

    @classmethod
    def begin(cls, job: "TrainJob") -> "RunLog":
        """A new run of ``job``, with all that it depends on."""
        client = MlflowClient(job.tracking_uri)
        experiment = experiment_id(client, job.experiment)
        tags = {**job.tags(), **_machine()}
        run = client.create_run(experiment, run_name=job.run_name, tags=tags)
        log = cls(job.tracking_uri, str(run.info.run_id))
        log._describe(job)
        return log

    @classmethod
    def reopen(cls, job: "TrainJob", run_id: str) -> "RunLog":
        """The stopped run ``run_id``, running again; TrainingError where it is unknown, finished, or not of ``job``."""
        log = cls(job.tracking_uri, run_id)
        try:
            run = log.client.get_run(run_id)
        except MlflowException as problem:
            raise TrainingError(f"no such run: {problem}", about=f"run {run_id}", remedy="see the runs: voxloop up") from None
        if run.info.status == "FINISHED":
            raise TrainingError("has finished", about=f"run {run_id}", remedy="train anew, without resuming")
        for name, said in (("plan_digest", "plan"), ("dataset", "dataset")):
            if run.data.tags.get(name) != job.tags()[name]:
                remedy = "go on with what it was begun with, or train anew"
                raise TrainingError(f"was begun with another {said}", about=f"run {run_id}", remedy=remedy)
        log.client.update_run(run_id, status="RUNNING")
        log._describe(job)  # a kill may have come in between
        return log

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log ``values`` at ``step``."""
        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def weights(self, states: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Store the weights: the state dict, or the list of those that answer together."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, WEIGHTS)
            torch.save(dict(states[0]) if len(states) == 1 else [dict(state) for state in states], path)
            self.client.log_artifact(self.run_id, str(path))

    def upload_checkpoint(self, path: Path) -> None:
        """Store a checkpoint beside the one before, then name it the one to go on from: an upload that breaks loses nothing."""
        name = f"{path.stem}-{sha256_of(path)[:16]}{path.suffix}"
        before = self._kept()
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            named = Path(scratch, name)
            os.link(path, named)
            self.client.log_artifact(self.run_id, str(named), "checkpoint")
        self.client.set_tag(self.run_id, KEPT, name)
        if before and before != name:
            self._remove(before)

    def download_checkpoint(self, folder: Path) -> Path | None:
        """The checkpoint to go on from, downloaded into ``folder``; None where the run has none.

        TrainingError where it is not what was stored.
        """
        name = self._kept()
        if not name:
            return None
        path = Path(self.client.download_artifacts(self.run_id, f"checkpoint/{name}", str(folder)))
        if sha256_of(path)[:16] not in name:
            raise TrainingError("its checkpoint was changed", about=f"run {self.run_id}", remedy="train anew")
        return path.rename(folder / CHECKPOINT)

    def forget_checkpoint(self) -> None:
        """Remove it: the run is complete."""
        name = self._kept()
        if name:
            self.client.delete_tag(self.run_id, KEPT)
            self._remove(name)

    def picture(self, sample: Sample, predicted: torch.Tensor, labels: LabelSet, plan: Plan) -> None:
        """slices.png: ``predicted`` (D, H, W) classes of a prepared case with its label."""
        self.client.log_figure(self.run_id, slices(sample, predicted, labels, plan.spacing), "slices.png")

    def evaluation(self, evaluation: Evaluation, step: int, viewer_url: str = "") -> None:
        """The summary as metrics ``final_…``, every case in evaluation.json, the worst in worst.html."""
        self.metrics({f"final_{name}": value for name, value in evaluation.summary.items()}, step)
        rows = {"summary": dict(evaluation.summary), "cases": [case.as_json() for case in evaluation.cases]}
        self.client.log_dict(self.run_id, rows, EVALUATION)
        self.client.log_text(self.run_id, evaluation.page(viewer_url), WORST)

    @contextmanager
    def system(self) -> Iterator[None]:
        """While the ``with`` lasts MLflow looks at processor, memory, disk, network and GPU."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics.system_metrics_monitor").setLevel(logging.ERROR)
        monitor = None
        with suppress(Exception):  # no reason to stop a training
            monitor = SystemMetricsMonitor(
                self.run_id, sampling_interval=SAMPLED, resume_logging=True, tracking_uri=self.tracking_uri
            )
            monitor.start()
        try:
            yield
        finally:
            if monitor is not None:
                with suppress(Exception):
                    monitor.finish()

    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED."""
        with redirect_stdout(sys.stderr):  # MLflow prints the run's address
            self.client.set_terminated(self.run_id, status)

    def _describe(self, job: "TrainJob") -> None:
        run_id, plan = self.run_id, job.plan.to_dict()
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in plan.items()}
        self.client.log_batch(run_id, params=[Param(name, text[:LONGEST]) for name, text in texts.items()])
        self.client.log_dict(run_id, plan, PLAN)
        self.client.log_dict(run_id, job.label_set.to_dict(), LABEL_SET)
        self.client.log_dict(run_id, {"label_ids": job.label_ids, "readers": job.readers}, LABEL_IDS)
        self.client.log_dict(run_id, job.to_dict(), JOB)
        if job.left_out:
            self.client.log_dict(run_id, dict(job.left_out), LEFT_OUT)
        self.client.log_inputs(run_id, _inputs(job))

    def _kept(self) -> str:
        return str(self.client.get_run(self.run_id).data.tags.get(KEPT, ""))

    def _remove(self, name: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        uri = self.client.get_run(self.run_id).info.artifact_uri
        with suppress(Exception):  # it is superseded; some stores cannot delete
            get_artifact_repository(uri, tracking_uri=self.tracking_uri).delete_artifacts(f"checkpoint/{name}")


def experiment_id(client: MlflowClient, name: str) -> str:
    """Of the experiment ``name``, which is made where there is none."""
    try:
        found = client.get_experiment_by_name(name)
        return str(found.experiment_id if found else client.create_experiment(name, tags=KIND))
    except MlflowException as problem:
        found = client.get_experiment_by_name(name)  # another training may have made it meanwhile
        if found is None:
            raise TrainingError(f"no experiment: {problem}", about=name) from None
        return str(found.experiment_id)


def _machine() -> dict[str, str]:
    """Tags: the device and the versions that a result may depend on."""
    from training.network import device

    tags = {"device": torch.cuda.get_device_name() if device().type == "cuda" else f"CPU, {os.cpu_count()} cores"}
    for package in ("torch", "monai", "pytorch-lightning", "voxloop"):
        with suppress(PackageNotFoundError):
            tags[f"version.{package}"] = version(package)
    return tags


def _inputs(job: "TrainJob") -> list[DatasetInput]:
    """The dataset and, where they were read, the versions of the tables."""
    found = [_input("prepared volumes", job.dataset.name[:32], {"uri": str(job.dataset)})]
    for table, number in (("object_catalog", job.catalog_version), ("labels", job.labels_version)):
        if number >= 0:
            found.append(_input(table, number, {"table": table, "version": number}))
    return found


def _input(name: str, digest: object, source: Mapping[str, Any]) -> DatasetInput:
    dataset = Dataset(name=name, digest=str(digest), source_type="local", source=json.dumps(source))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
