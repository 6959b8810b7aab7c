"""What a training leaves in MLflow, read back: job, plan, label set, networks, tags."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from catalog.labelset import LabelSet
from datamodules.plan import Plan
from training.errors import TrainingError
from training.network import network
from training.predictor import NetPredictor

if TYPE_CHECKING:
    from training.classification import ClassificationPredictor
    from training.launch import TrainJob

__all__ = [
    "CHECKPOINT",
    "JOB",
    "LABEL_IDS",
    "LABEL_SET",
    "PLAN",
    "WEIGHTS",
    "LoadedRun",
    "load_files",
    "load_job",
    "load_run",
    "predictor",
]

PLAN, LABEL_SET, LABEL_IDS, WEIGHTS, CHECKPOINT = "plan.json", "label_set.json", "label_ids.json", "weights.pt", "last.ckpt"
JOB = "job.json"


@dataclass(frozen=True)
class LoadedRun:
    """A finished run. ``tags`` and ``metrics`` are as MLflow holds them, ``label_ids`` the revisions it learned from and
    ``readers`` their authors; ``nets`` answer together, on the CPU, in evaluation mode."""

    run_id: str
    plan: Plan
    label_set: LabelSet
    nets: Sequence[nn.Module]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    label_ids: tuple[str, ...]
    readers: tuple[str, ...]

    def predictor(self) -> NetPredictor:
        """The run's networks, ready to answer; TrainingError where they do not segment."""
        return predictor(self.plan, self.nets)

    def classifier(self) -> "ClassificationPredictor":
        """The run's networks, ready to say what an image shows; TrainingError where they do not classify."""
        from training.classification import ClassificationPredictor

        if self.plan.task != "classification":
            raise TrainingError("segments, and classifies nothing", about=f"run {self.run_id}", remedy="use predictor()")
        return ClassificationPredictor(self.nets, self.plan)


def load_run(tracking_uri: str, run_id: str) -> LoadedRun:
    """Read a run from its tracking server; TrainingError where it is unknown or holds no weights (did not finish)."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri)
    try:
        run = client.get_run(run_id)
        with tempfile.TemporaryDirectory() as scratch:
            for name in (PLAN, LABEL_SET, LABEL_IDS, WEIGHTS):
                client.download_artifacts(run_id, name, scratch)
            plan, label_set, nets = load_files(Path(scratch))
            told = json.loads((Path(scratch) / LABEL_IDS).read_text())
    except (MlflowException, OSError) as problem:
        raise TrainingError(f"cannot be loaded: {problem}", about=f"run {run_id}", remedy="train again") from None
    return LoadedRun(
        run_id, plan, label_set, nets, run.data.tags, run.data.metrics, tuple(told["label_ids"]), tuple(told["readers"])
    )


def load_job(tracking_uri: str, run_id: str) -> "TrainJob":
    """What a run was begun with, to go on with it; TrainingError where it is unknown or does not say."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from training.launch import TrainJob

    try:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(MlflowClient(tracking_uri).download_artifacts(run_id, JOB, scratch))
            stored = json.loads(path.read_text())
    except (MlflowException, OSError) as problem:
        raise TrainingError(f"cannot be gone on with: {problem}", about=f"run {run_id}", remedy="train anew") from None
    return TrainJob.from_dict({**stored, "tracking_uri": tracking_uri})


def predictor(plan: Plan, nets: Sequence[nn.Module]) -> NetPredictor:
    """What answers a volume with a label map: the networks of a run of ``plan`` together; VISTA3D's take clicks too.

    TrainingError where they do not segment.
    """
    if plan.task == "classification":
        raise TrainingError("a classification segments nothing", about="plan", remedy="use LoadedRun.classifier()")
    if plan.task == "vista3d":
        from training.vista_predictor import Vista3DPredictor

        return Vista3DPredictor(nets, plan)
    return NetPredictor(nets, plan)


def load_files(folder: Path) -> tuple[Plan, LabelSet, list[nn.Module]]:
    """The plan, label set and networks from a folder that holds a run's artifacts by their names."""
    plan = Plan.from_dict(json.loads((folder / PLAN).read_text()))
    stored = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
    nets = []
    for state in stored if isinstance(stored, list) else [stored]:
        net = network(plan)
        net.load_state_dict(state)
        nets.append(net.eval())
    return plan, LabelSet.from_dict(json.loads((folder / LABEL_SET).read_text())), nets
