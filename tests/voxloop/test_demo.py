"""The whole loop as a user runs it: killed in the middle, gone on with, run again; and what a user does with the result."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import nibabel as nib
import numpy as np
import psutil
import pytest
import yaml

from catalog import Archive
from catalog.labels import history
from experiments import synthetic

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

PATIENTS = 12
PLAN = {"steps": 60, "validate_every": 20}


def command(*words: str | Path, home: Path) -> list[str]:
    return [sys.executable, "-m", "voxloop", *map(str, words), "--home", str(home)]


def run(*words: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words, home=home), capture_output=True, text=True, timeout=500)


def wait(until: Callable[[], object], process: subprocess.Popen[bytes], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert process.poll() is None, "the demo ended too early"
        assert time.monotonic() < deadline, "the demo did not come this far"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen phantoms as NIfTI, as a user would bring them."""
    folder = tmp_path_factory.mktemp("in") / "phantoms"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for name, image, mask in synthetic.cases(PATIENTS):
        nib.save(image.to_nibabel(), folder / "images" / f"{name}.nii.gz")
        nib.save(mask.to_nibabel(), folder / "labels" / f"{name}.nii.gz")
    (folder / "label_set.json").write_text(json.dumps(synthetic.LABEL_SET.to_dict()))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, cohort: Path) -> Path:
    """A home with the project file of the demo, as a user may edit it: fewer steps of a smaller network."""
    home = tmp_path_factory.mktemp("demo") / "home"
    project = {
        "key": cohort.name,
        "cohort": "select SeriesInstanceUID, StudyInstanceUID, PatientID from series where is_image",
        "label_set": synthetic.LABEL_SET.to_dict(),
        "plan": PLAN,
        "split": {"validation": 0.1, "holdout": 0.25, "seed": "test"},
        "model": f"voxloop-{cohort.name}",
    }
    (home / "projects").mkdir(parents=True)
    (home / "projects" / f"{cohort.name}.yaml").write_text(yaml.safe_dump(project))
    return home


@pytest.fixture(scope="module")
def killed(home: Path, cohort: Path) -> list[psutil.Process]:
    """The processes of a demo that was killed with SIGKILL while it trained its first candidate."""
    demo = subprocess.Popen(command("demo", "--cohort", cohort, "--rounds", "2", home=home), stderr=subprocess.DEVNULL)
    try:
        wait(lambda: list((home / "datasets").glob("*/dataset.json")), demo)
        family = psutil.Process(demo.pid).children(recursive=True)
    finally:
        os.kill(demo.pid, signal.SIGKILL)
        demo.wait()
    return family


@pytest.fixture(scope="module")
def finished(killed: list[psutil.Process], home: Path, cohort: Path) -> dict[str, Any]:
    """The summary of the demo that was started again after the kill."""
    psutil.wait_procs(killed, timeout=30)
    done = run("demo", "--cohort", cohort, "--rounds", "2", home=home)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the reader is simulated" in done.stderr and "docs/label.md" in done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def test_kill_9_leaves_no_process_behind(killed: list[psutil.Process]) -> None:
    assert len(killed) >= 3  # Spark's JVM, MLflow, and what they started
    _, alive = psutil.wait_procs(killed, timeout=30)
    assert alive == []


def test_a_killed_demo_is_gone_on_with(finished: dict[str, Any], home: Path) -> None:
    assert finished["patients"] == PATIENTS
    assert finished["instances"] == PATIENTS * synthetic.SHAPE[2]
    assert finished["labels"] == [3, 6]
    assert len(finished["dice"]) == 2
    assert finished["receipt_ok"] is True
    rows = json.loads(run("sql", "select role, count(*) as n from splits group by role", "--json", home=home).stdout)["rows"]
    roles = {row["role"]: row["n"] for row in rows}
    assert roles == {"holdout": 3, "validation": 1, "train": 8}
    assert finished["predictions"] == roles["train"] - 6


def test_nothing_is_there_twice(finished: dict[str, Any], home: Path) -> None:
    query = (
        "select (select count(*) from labels) as labels, (select count(distinct series_uid) from labels) as series,"
        " (select count(*) from instances) as instances, (select count(distinct SOPInstanceUID) from instances) as uids"
    )
    [row] = json.loads(run("sql", query, "--json", home=home).stdout)["rows"]
    assert row["labels"] == row["series"] == 6 + 4
    assert row["instances"] == row["uids"] == PATIENTS * synthetic.SHAPE[2] + row["labels"] + finished["predictions"]


def test_a_finished_demo_is_shown_again(finished: dict[str, Any], home: Path, cohort: Path) -> None:
    again = json.loads(run("demo", "--cohort", cohort, "--rounds", "2", home=home).stdout.splitlines()[-1])
    for name in ("patients", "instances", "labels", "dice", "champion", "predictions", "receipt_ok"):
        assert again[name] == finished[name], name


def test_a_receipt_leads_back_to_labels_and_readers(finished: dict[str, Any], home: Path) -> None:
    assert finished["receipt_ok"]
    rows = json.loads(run("sql", "select sop_uid, label_ids from predictions", "--json", home=home).stdout)["rows"]
    told = json.loads(run("receipt", rows[0]["sop_uid"], "--json", home=home).stdout)
    assert told["ok"] is True
    assert {label["label_id"] for label in told["labels"]} == set(rows[0]["label_ids"])
    assert told["readers"] == ["simulated"]


def test_a_holdout_patient_never_trains(finished: dict[str, Any], home: Path) -> None:
    assert finished["receipt_ok"]
    query = (
        "select distinct s.role from predictions p, unnest(p.label_ids) as t(label_id)"
        " join labels l on l.label_id = t.label_id join splits s on s.unit = l.patient_id"
    )
    rows = json.loads(run("sql", query, "--json", home=home).stdout)["rows"]
    assert {row["role"] for row in rows} == {"train"}


@pytest.fixture(scope="module")
def addresses(finished: dict[str, Any], home: Path) -> Iterator[dict[str, str]]:
    """What `voxloop up` prints on the demo's home."""
    assert finished["champion"]
    ports = [word for name in ("--port", "--mlflow-port", "--endpoint-port") for word in (name, "0")]
    with subprocess.Popen(command("up", "--json", *ports, home=home), stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None
        yield json.loads(up.stdout.readline())
        up.send_signal(signal.SIGINT)


def test_a_reader_submits_what_the_champion_that_is_served_suggests(
    page: "Page",
    drawn: Callable[[Archive, str], np.ndarray],
    addresses: dict[str, str],
    finished: dict[str, Any],
    home: Path,
    cohort: Path,
) -> None:
    archive = Archive(home)
    series = archive.sql("select min(series_uid) as uid from predictions")["uid"][0].as_py()  # that nobody has labelled
    item = {"reference": {"series": series}, "outputs": ["labelmap"]}
    asked = httpx.post(addresses["endpoint"], json={"dataframe_records": [item]}, timeout=120, trust_env=False)
    (answer,) = asked.json()["predictions"]
    labelmap = answer["result"]["labelmap"]
    wanted = np.frombuffer(zlib.decompress(base64.b64decode(labelmap["data"])), np.uint8).reshape(labelmap["shape"])
    assert answer["version"] == finished["champion"] and wanted.any()

    page.goto(f"{addresses['viewer']}/label?StudyInstanceUIDs={archive.sources(series)[0].StudyInstanceUID}")
    panel = page.locator("voxloop-panel")
    panel.get_by_label("Reader").fill("Ada")
    panel.get_by_role("button", name="Auto-segment").click()
    panel.get_by_text(f"Suggested by voxloop-{cohort.name} version {answer['version']}").wait_for()
    assert np.array_equal(drawn(archive, series), wanted)
    panel.get_by_role("button", name="Submit label").click()
    panel.get_by_text("Submitted in").wait_for()
    (label,) = history(archive, cohort.name, series)
    assert (label.author, label.suggested_by) == ("Ada", f"voxloop-{cohort.name}/{answer['version']}")
    assert (label.voxels_changed, label.added_path_length) == (0, 0)
