"""A small prepared dataset, a job that trains on it for six steps, and one such run."""

from pathlib import Path

import pytest
import torch

from datamodules._petastorm import seal, write
from datamodules.dataset import DatasetInfo
from datamodules.fingerprint import Fingerprint
from datamodules.plan import SMALL_UNET, Plan
from datamodules.prepare import intensity, prepare_mask, resampled
from datamodules.sample import Sample
from experiments.synthetic import LABEL_SET, cases
from training.launch import LocalLauncher, TrainJob

NET = {**SMALL_UNET, "bias": False}  # before a normalisation a bias changes nothing, and Adam makes much of its rounding errors
SMALL = {
    "spacing": (10.0, 7.0, 7.0),
    "patch": (16, 16, 16),
    "steps": 6,
    "validate_every": 2,
    "precision": "32",
    "network_args": NET,
}
ROLES = ("train", "train", "train", "validation")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training and one validation case of the synthetic cohort, prepared coarsely."""
    folder = tmp_path_factory.mktemp("dataset")
    plan = Plan.make(SMALL, LABEL_SET, Fingerprint((5.0, 3.4, 3.4), (28, 48, 48)))
    known = torch.tensor([True, True])
    for role, (name, image, mask) in zip(ROLES, cases(len(ROLES)), strict=True):
        array, _ = resampled([image], plan)
        drawn = prepare_mask(mask, plan)
        places = drawn.nonzero()
        centres = torch.cat([drawn[tuple(places.T)].long()[:, None], places], 1).int()
        sample = Sample(name, f"1.2.{name[-1]}", name, name, array, intensity(array, plan), drawn, known, known, centres)
        write(folder / role / f"{name}.parquet", sample)
    rows = {role: seal(folder / role) for role in ("train", "validation")}
    DatasetInfo(folder, rows, folder.name, (), plan, LABEL_SET).write(folder, {})
    return folder


@pytest.fixture(scope="session")
def job(dataset: Path, mlflow_server: str) -> TrainJob:
    """Three epochs of two steps."""
    return TrainJob(
        project="phantoms",
        model="phantoms",
        dataset=dataset,
        plan=Plan.make(SMALL, LABEL_SET, Fingerprint((5.0, 3.4, 3.4), (28, 48, 48))),
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
        left_out=(("phantom_009", "no pixels"),),
        extra_tags={"fold": "0"},
    )


@pytest.fixture(scope="session")
def alone(job: TrainJob) -> str:
    """The run of ``job`` in one process on one thread."""
    return LocalLauncher(threads=1).run(job)
