"""A small cohort with labels, and two runs on it: one that learned for a moment, one that did not."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import torch
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from catalog.archive import Archive
from catalog.labels import Submission, submit
from catalog.labelset import LabelSet, Structure
from catalog.project import Project, Split
from catalog.split import freeze
from catalog.uids import deterministic_uid
from datamodules.plan import Plan
from serving.registry import Registry
from training.launch import TrainJob
from training.network import network
from training.tracking import RunLog

LABELS = LabelSet("balls", (Structure("ball", 3, ("SCT", "85756007", "Tissue"), (200, 80, 80)),))
PLAN = Plan(
    spacing=(2.0, 2.0, 2.0),
    structures=("ball",),
    values=(3,),
    patch=(16, 16, 16),
    network="SegResNet",
    network_args={"init_filters": 4, "blocks_down": [1, 1], "blocks_up": [1], "norm": "INSTANCE"},
)
SIZE, PATIENTS, UNLABELLED = 16, 9, 2
COHORT = "SELECT SeriesInstanceUID, StudyInstanceUID, PatientID FROM series WHERE Modality = 'MR'"


@dataclass(frozen=True)
class World:
    """``trained`` and ``untrained`` are finished runs; ``series`` begins with the holdout and ends with the unlabelled."""

    archive: Archive
    project: Project
    registry: Registry
    series: tuple[str, ...]
    trained: str
    untrained: str

    def run(self, name: str, net: torch.nn.Module, *, status: str = "FINISHED") -> str:
        """A run as a training logs it."""
        labels = self.archive.labels.scan(("label_id",)).read_all()["label_id"].to_pylist()
        job = TrainJob(
            project=self.project.key,
            model=self.project.model,
            dataset=Path("dataset"),
            plan=PLAN,
            label_set=LABELS,
            tracking_uri=self.registry.tracking_uri,
            experiment="serving",
            catalog_version=self.archive.objects.version(),
            labels_version=self.archive.labels.version(),
            label_ids=tuple(sorted(labels)),
            readers=("ada",),
            code_revision="abc",
            round=None,
            run_name=name,
        )
        log = RunLog.begin(job)
        log.weights([net.state_dict()])
        log.end(status)
        return log.run_id


def picture(patient: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright ball on a noisy ground, and its mask; its place and size are the patient's."""
    rng = np.random.default_rng(patient)
    centre, radius = rng.uniform(6, 10, 3), rng.uniform(3, 5)
    ball = np.linalg.norm(np.stack(np.indices((SIZE,) * 3), -1) - centre, axis=-1) < radius
    return (rng.normal(100, 10, ball.shape) + 200 * ball).clip(0).astype(np.int16), ball


def slices(patient: int, image: np.ndarray) -> Iterator[pydicom.Dataset]:
    """The series of one patient, a slice a file, 2 mm voxels."""
    uids = {level: deterministic_uid("test", level, str(patient)) for level in ("study", "series", "frame")}
    for number, pixels in enumerate(image):
        one = pydicom.Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        one.SOPInstanceUID = deterministic_uid("test", str(patient), str(number))
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = uids["study"], uids["series"], uids["frame"]
        one.PatientID = one.PatientName = f"P{patient}"
        one.Modality, one.StudyID, one.SeriesNumber, one.InstanceNumber = "MR", "1", 1, number + 1
        one.PatientBirthDate = one.PatientSex = one.StudyDate = one.StudyTime = one.AccessionNumber = ""
        one.ReferringPhysicianName = one.Manufacturer = one.PositionReferenceIndicator = one.Laterality = ""
        one.ImageOrientationPatient, one.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2 * number]
        one.PixelSpacing, one.SliceThickness = [2, 2], 2
        one.Rows = one.Columns = SIZE
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated = one.BitsStored = 16
        one.HighBit, one.PixelRepresentation = 15, 1
        one.PixelData = pixels.tobytes()
        yield one


def learn(steps: int) -> torch.nn.Module:
    """The plan's network after ``steps`` on the balls of other patients."""
    torch.manual_seed(0)
    net = network(PLAN)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for step in range(steps):
        image, ball = picture(1000 + step)
        x = torch.from_numpy(image.astype(np.float32))
        logits = net(((x - x.mean()) / x.std())[None, None])
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(ball.astype(np.int64))[None]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net.eval()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, mlflow_server: str) -> World:
    """Nine patients, seven labelled, five held out."""
    archive = Archive(tmp_path_factory.mktemp("serving") / "home")
    project = Project("balls", COHORT, LABELS, {}, Split(0.1, 0.6, "serving"), "balls", 0.02)
    series = []
    for patient in range(PATIENTS):
        made = list(slices(patient, picture(patient)[0]))
        archive.store(made, folder="unzipped", writer=f"patient {patient}")
        series.append(str(made[0].SeriesInstanceUID))
    roles = freeze(archive, project)
    order = sorted(range(PATIENTS), key=lambda patient: roles[series[patient]] != "holdout")
    for patient in order[: PATIENTS - UNLABELLED]:
        label(archive, project, series[patient])
    world = World(archive, project, Registry(mlflow_server), tuple(series[patient] for patient in order), "", "")
    runs = {"trained": world.run("trained", learn(60)), "untrained": world.run("untrained", learn(0))}
    return World(archive, project, world.registry, world.series, **runs)


def label(archive: Archive, project: Project, series_uid: str) -> None:
    """What a reader draws: the ball is twice as bright as anything else."""
    image: hd.Volume = archive.volume(series_uid)
    mask = image.with_array(np.where(image.array > 200, 3, 0).astype(np.uint8))
    submit(archive, project.key, LABELS, Submission(series_uid, mask, {"ball": "present"}, "ada"))
