"""The served model: an MLflow pyfunc that answers requests (``serving.request``) with a run's network.

Its folder holds everything that an answer and its receipt need: ``artifacts/run/`` with the run's plan, label set, weights and
label revisions, and ``origin.json``, what the run was. MLflow notes the registered name and version beside it on download.
"""

import base64
import gzip
import io
import json
import logging
import tempfile
import threading
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import yaml
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import PythonModel
from mlflow.types.schema import AnyType, ColSpec, DataType, Schema

from catalog import VoxloopError, uploads
from catalog.archive import Archive
from catalog.labelset import LabelSet
from catalog.sources import FileVolumes, in_slice_order, read_dataset
from catalog.walk import NotDicom
from datamodules.plan import Plan
from serving.errors import ServingError
from serving.receipt import file_sha256, labels_sha256, segmentation
from serving.request import Item, Reference, answer, parse
from training.predictor import NetPredictor, Prediction, Prompts
from training.run import LABEL_IDS, LABEL_SET, PLAN, WEIGHTS, load_files, predictor

if TYPE_CHECKING:
    import highdicom as hd
    from pydicom import Dataset

__all__ = ["SIGNATURE", "Origin", "Served", "VoxloopModel", "intact", "load", "log_model"]

ORIGIN = "origin.json"
ROOMS = ("catalog", "datamodules", "training", "serving")
REQUIREMENTS = [
    "mlflow>=3.17,<3.18",
    "torch>=2.14",
    "monai>=1.6",
    "highdicom>=0.28",
    "nibabel",
    "deltalake>=1.6",
    "duckdb",
    "sqlalchemy>=2",
]

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(AnyType(), name, required=False) for name in ("reference", "prompts", "outputs")]),
    outputs=Schema(
        [
            ColSpec(AnyType(), "result"),
            ColSpec(AnyType(), "error"),
            ColSpec(DataType.string, "model"),
            ColSpec(DataType.string, "version"),
        ]
    ),
)
"""Looser than ``serving.request``: MLflow would refuse a whole request where we refuse an item."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Where a model comes from: the part of a receipt that all its predictions share."""

    model_name: str
    model_version: str
    run_id: str
    code_revision: str
    plan_digest: str
    catalog_version: int
    labels_version: int
    label_ids: tuple[str, ...]
    readers: tuple[str, ...]
    labels_sha256: str
    weights_sha256: str


@dataclass(frozen=True)
class Served:
    """A model version in memory."""

    origin: Origin
    plan: Plan
    label_set: LabelSet
    predictor: NetPredictor


def log_model(tracking_uri: str, run: Any, *, home: str, index_url: str) -> str:
    """Log the pyfunc of a finished run beside it; returns the logged model's id. Nothing is inferred or executed."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracking_uri)
    try:
        with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow's advice to infer what is stated here
            logging.getLogger("mlflow.models.model").setLevel(logging.ERROR)  # a run's second version logs no parameters
            folder = Path(scratch, "run")
            folder.mkdir()
            for name in (PLAN, LABEL_SET, LABEL_IDS, WEIGHTS):
                mlflow.MlflowClient(tracking_uri).download_artifacts(run.info.run_id, name, str(folder))
            (folder / ORIGIN).write_text(json.dumps(_origin(run, folder, home, index_url), indent=1))
            logged = Model.log(
                artifact_path=None,
                name="model",
                flavor=mlflow.pyfunc,
                run_id=run.info.run_id,
                python_model=str(Path(__file__).with_name("pyfunc.py")),
                artifacts={"run": str(folder)},
                code_paths=[str(Path(__import__(room).__path__[0])) for room in ROOMS],
                pip_requirements=REQUIREMENTS,
                signature=SIGNATURE,
                model_config={"home": home, "index_url": index_url},
            )
        return str(logged.model_id)
    finally:
        mlflow.set_tracking_uri(before)


def load(folder: Path) -> Served:
    """The model in ``folder``, as ``Registry.fetch`` or MLflow put it there; ServingError where its weights were changed."""
    run = intact(folder) / "artifacts" / "run"
    plan, label_set, nets = load_files(run)
    meta = folder / "registered_model_meta"
    named = yaml.safe_load(meta.read_text()) if meta.exists() else {}
    origin = json.loads((run / ORIGIN).read_text())
    origin.update(
        model_name=named.get("model_name", ""),
        model_version=str(named.get("model_version", "")),
        label_ids=tuple(origin["label_ids"]),
        readers=tuple(origin["readers"]),
    )
    return Served(Origin(**origin), plan, label_set, predictor(plan, nets))


def intact(folder: Path) -> Path:
    """``folder``, if its model's weights are those that were registered; ServingError where they are not."""
    run = folder / "artifacts" / "run"
    if file_sha256(run / WEIGHTS) != json.loads((run / ORIGIN).read_text())["weights_sha256"]:
        raise ServingError("the weights were changed", about=str(folder), remedy="remove the folder, it is fetched again")
    return folder


class VoxloopModel(PythonModel):  # type: ignore[misc]
    """Answers a table of items, one answer a row; see ``serving.request``."""

    def load_context(self, context: Any) -> None:
        """Load the network; ``model_config`` says where the catalog is: home (a folder) and index_url (empty: the home's)."""
        config = context.model_config or {}
        self._home, self._index_url = config.get("home", ""), config.get("index_url") or None
        self.served = load(Path(context.artifacts["run"]).parents[1])
        self._one = threading.Lock()  # a prediction takes all cores, or the GPU

    def predict(
        self,
        context: Any,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """A DataFrame with columns reference, prompts, outputs → a list of answers. One bad item never spoils the others."""
        return [self._answer(row) for row in model_input.to_dict("records")]

    def _answer(self, row: Mapping[Any, Any]) -> dict[str, Any]:
        named = {"model": self.served.origin.model_name, "version": self.served.origin.model_version}
        try:
            return answer(self._result(parse(row)), None, **named)
        except VoxloopError as problem:
            return answer(None, problem, **named)
        except Exception as problem:
            _log.exception("an item failed")
            return answer(None, ServingError(f"{type(problem).__name__}: {problem}", remedy="see the server's log"), **named)

    def _result(self, item: Item) -> dict[str, Any]:
        image, sources = self._read(item.reference)
        if (wanted := len(self.served.plan.channels)) > 1:
            problem = (
                f"this model takes {wanted} channels ({', '.join(self.served.plan.channels)}), a reference names one image"
            )
            raise ServingError(problem, about="reference", remedy="predict its cases with voxloop batch-infer")
        with self._one:
            found = self.served.predictor.predict(image, Prompts(classes=tuple(item.prompts.classes)))
        made: dict[str, Callable[[], Any]] = {
            "seg": lambda: _seg(self.served, image, found, sources()),
            "nifti": lambda: _nifti(found.mask),
            "labelmap": lambda: _labelmap(found.mask, self.served.label_set),
            "volumes": lambda: found.volumes_ml,
            "uncertainty": lambda: _uncertainty(found),
        }
        return {name: made[name]() for name in item.outputs}

    def _read(self, reference: Reference) -> "tuple[hd.Volume, Callable[[], Sequence[Dataset]]]":
        """The image, and what gives its DICOM headers in slice order."""
        if reference.kind in ("dicom", "nifti"):
            return FileVolumes().volume(reference.value), lambda: _headers(reference.value)
        if not self._home:
            about = f"reference.{reference.kind}"
            raise ServingError("this server has no catalog", about=about, remedy="set home in the model's config")
        if reference.kind == "upload":
            path = uploads.find(Path(self._home), reference.value)
            return FileVolumes().volume(path), lambda: _headers(path)
        archive = Archive(self._home, index_url=self._index_url)
        return archive.volume(reference.value), lambda: archive.sources(reference.value)


def _headers(folder: str) -> "list[Dataset]":
    headers = []
    for path in sorted(Path(folder).rglob("*")):
        with suppress(NotDicom, IsADirectoryError):
            headers.append(read_dataset(path, pixels=False))
    return in_slice_order([header for header in headers if "Rows" in header], about=folder)


def _seg(served: Served, image: "hd.Volume", found: Prediction, sources: "Sequence[Dataset]") -> str:
    _, written = segmentation(served, [image], found, [sources], project="")
    file = io.BytesIO()
    written.save_as(file)
    return base64.b64encode(file.getvalue()).decode()


def _nifti(mask: "hd.Volume") -> str:
    """The label map as .nii.gz; NIfTI counts R, A and S as positive, a volume L, P and S."""
    import nibabel

    image = nibabel.Nifti1Image(mask.array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ mask.affine)
    return base64.b64encode(gzip.compress(image.to_bytes(), mtime=0)).decode()


def _uncertainty(found: Prediction) -> dict[str, float]:
    """``mutual_information`` is there where several networks answered."""
    apart = {} if found.disagreement is None else {"mutual_information": found.disagreement}
    return {"mean_entropy": found.entropy, **apart}


def _labelmap(mask: "hd.Volume", labels: LabelSet) -> dict[str, Any]:
    """The label map itself: ``data`` is base64 of zlib of uint8 in C order, ``affine`` maps an index to LPS mm, ``structures``
    gives each structure's voxel value."""
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(mask.array).tobytes())).decode()
    stored = {"data": data, "encoding": "zlib", "dtype": "uint8", "shape": list(mask.array.shape)}
    return {**stored, "affine": mask.affine.tolist(), "structures": {one.name: one.value for one in labels.structures}}


def _origin(run: Any, folder: Path, home: str, index_url: str) -> dict[str, Any]:
    """A run as a receipt names it; the registered name and version are not known yet."""
    told, tags = json.loads((folder / LABEL_IDS).read_text()), run.data.tags
    return {
        "run_id": run.info.run_id,
        "code_revision": tags.get("code_revision", ""),
        "plan_digest": Plan.from_dict(json.loads((folder / PLAN).read_text())).digest(),
        "catalog_version": int(tags.get("catalog_version", -1)),
        "labels_version": int(tags.get("labels_version", -1)),
        "label_ids": told["label_ids"],
        "readers": told["readers"],
        "labels_sha256": labels_sha256(Archive(home, index_url=index_url or None), told["label_ids"]) if home else "",
        "weights_sha256": file_sha256(folder / WEIGHTS),
    }
