"""What a training writes to MLflow, through one client and without MLflow's process-wide state."""

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from torch import nn

from datamodules.patches import Patch
from training.errors import TrainingError
from training.run import CHECKPOINT, LABEL_IDS, LABEL_SET, PLAN, WEIGHTS

if TYPE_CHECKING:
    from training.launch import TrainJob

__all__ = ["RunLog"]

SLICES = 3
KIND = {"mlflow.experimentKind": "custom_model_development"}  # the page opens on the runs, not on traces of agents


class RunLog:
    """One run of ``job``: a new one, or the unfinished ``resume`` opened again."""

    def __init__(self, job: "TrainJob", resume: str | None = None) -> None:
        self.client = MlflowClient(job.tracking_uri)
        self.resumed = resume is not None
        self.run_id = resume or self._begin(job)
        if resume:
            self.client.update_run(resume, status="RUNNING")
        self._describe(job)

    def _begin(self, job: "TrainJob") -> str:
        experiment = _experiment(self.client, job.experiment)
        return str(self.client.create_run(experiment, run_name=job.run_name, tags=job.tags()).info.run_id)

    def _describe(self, job: "TrainJob") -> None:
        """Log what the run depends on; again on resuming, since a kill may have come in between."""
        run_id = self.run_id
        plan = job.plan.to_dict()
        params = [Param(name, value if isinstance(value, str) else json.dumps(value)) for name, value in plan.items()]
        self.client.log_batch(run_id, params=params)
        self.client.log_dict(run_id, plan, PLAN)
        self.client.log_dict(run_id, job.label_set.to_dict(), LABEL_SET)
        self.client.log_dict(run_id, {"label_ids": job.label_ids, "readers": job.readers}, LABEL_IDS)
        inputs = [
            _input("object_catalog", job.catalog_version, {"table": "object_catalog", "version": job.catalog_version}),
            _input("labels", job.labels_version, {"table": "labels", "version": job.labels_version}),
            _input("prepared volumes", job.dataset.name[:32], {"uri": str(job.dataset)}),
        ]
        self.client.log_inputs(run_id, inputs)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log ``values`` at ``step``."""
        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def weights(self, net: nn.Module) -> None:
        """Store the network's weights."""
        self.saved(WEIGHTS, net.state_dict())

    def saved(self, name: str, state: Any) -> None:
        """Store ``state`` as torch saves it."""
        with tempfile.TemporaryDirectory() as scratch:
            torch.save(state, Path(scratch) / name)
            self.client.log_artifact(self.run_id, str(Path(scratch) / name))

    def checkpoint(self, folder: Path) -> Path | None:
        """The last checkpoint of a resumed run, downloaded into ``folder``; None where it has none."""
        if not self.resumed or CHECKPOINT not in [item.path for item in self.client.list_artifacts(self.run_id)]:
            return None
        return Path(self.client.download_artifacts(self.run_id, CHECKPOINT, str(folder)))

    def picture(self, volume: Patch, predicted: torch.Tensor) -> None:
        """Slices of a prepared volume with its label's outline (dashed) and the prediction's (solid)."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4 * SLICES, 4), layout="constrained")
        depth = int(volume.mask.flatten(1).count_nonzero(1).argmax())  # the slice with most label, and its neighbours
        step = max(1, len(volume.mask) // 8)
        for axes, at in zip(figure.subplots(1, SLICES), (depth - step, depth, depth + step), strict=True):
            at = min(max(at, 0), len(volume.mask) - 1)
            axes.imshow(volume.image[0, at].numpy(), cmap="gray")
            for index in range(1, len(volume.annotated) + 1):
                for classes, style in ((volume.mask, "dashed"), (predicted, "solid")):
                    if (classes[at] == index).any():
                        outline = (classes[at] == index).numpy()
                        axes.contour(outline, [0.5], colors=[f"C{index}"], linestyles=style)
            axes.set(title=f"slice {at}", xticks=[], yticks=[])
        figure.suptitle("label dashed, prediction solid")
        self.client.log_figure(self.run_id, figure, "slices.png")

    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED."""
        with redirect_stdout(sys.stderr):  # MLflow prints the run's address
            self.client.set_terminated(self.run_id, status)


def _experiment(client: MlflowClient, name: str) -> str:
    try:
        found = client.get_experiment_by_name(name)
        return str(found.experiment_id if found else client.create_experiment(name, tags=KIND))
    except MlflowException as problem:
        found = client.get_experiment_by_name(name)  # another training may have made it meanwhile
        if found is None:
            raise TrainingError(f"no experiment: {problem}", about=name) from None
        return str(found.experiment_id)


def _input(name: str, digest: object, source: Mapping[str, Any]) -> DatasetInput:
    dataset = Dataset(name=name, digest=str(digest), source_type="local", source=json.dumps(source))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
