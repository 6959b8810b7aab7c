"""A small cohort of phantoms in a home, with a project and the truth of each series."""

import csv
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest

from catalog import Archive, Project, Split
from experiments import synthetic

PATIENTS = 14


@dataclass(frozen=True)
class Clinic:
    """A home with images in its catalog; ``truth`` is the SEG of each series, in no catalog."""

    archive: Archive
    project: Project
    truth: dict[str, Path]


@pytest.fixture(scope="session")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Clinic:
    """``PATIENTS`` phantoms, none labelled."""
    folder = tmp_path_factory.mktemp("clinic")
    out = folder / "cohort"
    synthetic.write(out, PATIENTS)
    archive = Archive(folder / "home")
    for case in sorted((out / "images").iterdir()):
        archive.store([pydicom.dcmread(path) for path in sorted(case.iterdir())], folder="images", writer=f"test/{case.name}")
    with (out / "index.csv").open(newline="") as rows:
        truth = {row["series_uid"]: out / row["label"] for row in csv.DictReader(rows)}
    project = Project(
        key="phantoms",
        cohort="select SeriesInstanceUID, StudyInstanceUID, PatientID from series where is_image",
        label_set=synthetic.LABEL_SET,
        plan={"steps": 300, "validate_every": 150},
        split=Split(0.1, 0.3, "test"),
        model="phantoms",
        margin=0.02,
    )
    return Clinic(archive, project, truth)
