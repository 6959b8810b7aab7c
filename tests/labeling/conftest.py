"""A small cohort of phantoms in a home, with a project and the truth of each series."""

import csv
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pydicom
import pytest

from catalog import Archive, LabelSet, Project, Split, seg
from experiments import synthetic
from serving.errors import ServingError
from serving.request import Item, answer, parse

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
        plan={"steps": 300, "validate_every": 300},  # one epoch: on one validation patient the choice among several is luck
        split=Split(0.1, 0.3, "test"),
        model="phantoms",
        margin=0.02,
    )
    return Clinic(archive, project, truth)


class Endpoint(BaseHTTPRequestHandler):
    """Answers POST /invocations as a model of ours does, with the truth of the series; ``refuse`` is what it says instead."""

    clinic: Clinic
    refuse: str = ""
    name: str = "phantoms"
    labels: LabelSet = synthetic.LABEL_SET
    asked: ClassVar[list[Item]] = []

    def do_POST(self) -> None:
        rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["dataframe_records"]
        body = json.dumps({"predictions": [self.answer(parse(row)) for row in rows]}).encode()
        self.send_response(200 if self.path == "/invocations" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, item: Item) -> dict[str, Any]:
        from serving.model import _labelmap

        self.asked.append(item)
        if self.refuse:
            return answer(None, ServingError(self.refuse), model=self.name, version="3")
        series = item.reference.value
        mask = seg.decode(self.clinic.truth[series], self.clinic.archive.geometry(series), self.labels)
        made = {"labelmap": _labelmap(mask, self.labels), "uncertainty": {"mean_entropy": 0.25}, "volumes": {}}
        return answer({name: made[name] for name in item.outputs}, None, model=self.name, version="3")

    def log_message(self, *_: Any) -> None:
        """Silence."""


@pytest.fixture
def endpoint(clinic: Clinic) -> Iterator[tuple[str, type[Endpoint]]]:
    """Its base URL, and the class whose ``refuse`` and ``name`` may be set."""
    yield from _endpoint(clinic)


@pytest.fixture(scope="module")
def lasting_endpoint(clinic: Clinic) -> Iterator[tuple[str, type[Endpoint]]]:
    """The same for a module's tests."""
    yield from _endpoint(clinic)


def _endpoint(clinic: Clinic) -> Iterator[tuple[str, type[Endpoint]]]:
    handler = type("Answering", (Endpoint,), {"clinic": clinic, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()
