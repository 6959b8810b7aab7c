"""`voxloop train` as docs/training.md tells it: every command of the page, with a stop in between."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel
import pytest
from mlflow import MlflowClient

from experiments.synthetic import LABEL_SET, cases
from training.tracking import KEPT
from voxloop.settings import Settings
from voxloop.tracking import tracking_server

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[2] / "docs" / "training.md"
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL) for line in block.splitlines()]
SMALL = {"steps: 2000": "steps: 120", "{res_block: true}": "{filters: [8, 8, 16, 16, 16]}"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: my-data/ and plan.yaml, the page's with fewer steps of a smaller network."""
    place = tmp_path_factory.mktemp("place")
    for kind in ("images", "labels"):
        (place / "my-data" / kind).mkdir(parents=True)
    for name, image, mask in cases(6):
        nibabel.save(image.to_nibabel(), place / "my-data" / "images" / f"{name}.nii.gz")
        nibabel.save(mask.to_nibabel(), place / "my-data" / "labels" / f"{name}.nii.gz")
    (place / "my-data" / "label_set.json").write_text(json.dumps(LABEL_SET.to_dict()))
    [plan] = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for said, instead in SMALL.items():
        assert said in plan
        plan = plan.replace(said, instead)
    (place / "plan.yaml").write_text(plan + "validate_every: 10\npatch: [16, 32, 32]\n")
    return place


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[MlflowClient]:
    """The home's MLflow, which every command then uses."""
    with tracking_server(Settings(home=place / ".voxloop", tracking_uri="")) as uri:
        yield MlflowClient(uri)


def start(place: Path, line: str, *more: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "voxloop", *shlex.split(line)[1:], *more]
    environment = {**os.environ, "PYTHONPATH": str(PAGE.parents[1])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, cwd=place, env=environment, text=True, **pipes)


def run(place: Path, line: str, *more: str) -> str:
    command = start(place, line, *more)
    said, noted = command.communicate(timeout=500)
    assert command.returncode == 0, f"{line}\n{noted[-3000:]}"
    return said


def stopped(place: Path, client: MlflowClient, line: str) -> str:
    """The run of a training that SIGTERM stopped after its first epochs."""
    command = start(place, line)
    deadline = time.monotonic() + 300
    while True:
        assert command.poll() is None and time.monotonic() < deadline, command.communicate()[1][-3000:]
        experiments = [found.experiment_id for found in client.search_experiments() if found.name != "Default"]
        runs = client.search_runs(experiments) if experiments else []
        if runs and runs[0].data.metrics.get("val_dice") is not None and KEPT in runs[0].data.tags:
            break
        time.sleep(0.2)
    command.send_signal(signal.SIGTERM)
    command.communicate(timeout=60)
    assert command.returncode != 0
    return str(runs[0].info.run_id)


def test_every_command_of_the_page_does_what_it_says(place: Path, server: MlflowClient) -> None:
    plan, train, resume, ddp, spark, carried = [line for line in COMMANDS if line.startswith("voxloop train")]
    assert "spacing:" in run(place, plan)
    run_id = stopped(place, server, train)
    assert server.get_run(run_id).info.status == "KILLED"
    told = json.loads(run(place, resume.replace("RUN_ID", run_id), "--json").splitlines()[-1])
    assert (told["run_id"], told["status"]) == (run_id, "FINISHED")
    assert {"dice", "dice_liver", "hd95_liver", "surface_dice_liver"} <= set(told["metrics"])
    artifacts = {artifact.path for artifact in server.list_artifacts(run_id)}
    assert {"plan.json", "job.json", "slices.png", "worst.html", "evaluation.json", "weights.pt"} <= artifacts
    for line in (ddp, spark):
        assert json.loads(run(place, line, "--set", "steps=10", "--json").splitlines()[-1])["status"] == "FINISHED"
    [dataset] = [path.parent for path in (place / ".voxloop" / "datasets").glob("*/dataset.json")]
    shutil.copytree(dataset, place / "carried-dataset")
    shutil.rmtree(place / "my-data")
    quick = carried.replace("steps=2000", "steps=4")
    assert json.loads(run(place, quick, "--set", "validate_every=2", "--json").splitlines()[-1])["status"] == "FINISHED"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train", "--resume RUN_ID"),
        ("train nowhere", "nowhere"),
        ("train . --set steps", "--set steps"),
        ("train . --config none.yaml", "none.yaml"),
        ("train . --resume 123", "give what to train on, or"),
    ],
)
def test_a_slip_is_one_line(tmp_path: Path, words: str, said: str) -> None:
    command = start(tmp_path, f"voxloop {words}")
    noted = command.communicate(timeout=100)[1]
    assert command.returncode == 1
    assert said in noted and "Traceback" not in noted
