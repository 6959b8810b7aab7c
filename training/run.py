"""What a training leaves in MLflow, read back: plan, label set, network, tags."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from catalog.labelset import LabelSet
from datamodules.plan import Plan
from training.errors import TrainingError
from training.network import network
from training.predictor import NetPredictor

__all__ = ["CHECKPOINT", "JOB", "LABEL_IDS", "LABEL_SET", "PLAN", "WEIGHTS", "LoadedRun", "load_files", "load_run"]

PLAN, LABEL_SET, LABEL_IDS, WEIGHTS, CHECKPOINT = "plan.json", "label_set.json", "label_ids.json", "weights.pt", "last.ckpt"
JOB = "job.json"


@dataclass(frozen=True)
class LoadedRun:
    """A finished run. ``tags`` and ``metrics`` are as MLflow holds them, ``label_ids`` the revisions it learned from and
    ``readers`` their authors; ``net`` is on the CPU, in evaluation mode."""

    run_id: str
    plan: Plan
    label_set: LabelSet
    net: nn.Module
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    label_ids: tuple[str, ...]
    readers: tuple[str, ...]

    def predictor(self) -> NetPredictor:
        """The run's network, ready to answer."""
        return NetPredictor(self.net, self.plan)


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
            plan, label_set, net = load_files(Path(scratch))
            told = json.loads((Path(scratch) / LABEL_IDS).read_text())
    except (MlflowException, OSError) as problem:
        raise TrainingError(f"cannot be loaded: {problem}", about=f"run {run_id}", remedy="train again") from None
    return LoadedRun(
        run_id, plan, label_set, net, run.data.tags, run.data.metrics, tuple(told["label_ids"]), tuple(told["readers"])
    )


def load_files(folder: Path) -> tuple[Plan, LabelSet, nn.Module]:
    """The plan, label set and network from a folder that holds a run's artifacts by their names."""
    plan = Plan.from_dict(json.loads((folder / PLAN).read_text()))
    net = network(plan)
    net.load_state_dict(torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True))
    return plan, LabelSet.from_dict(json.loads((folder / LABEL_SET).read_text())), net.eval()
