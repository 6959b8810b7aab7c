"""A real scoring server in a process of its own: what it answers, and how it changes the version under load."""

import base64
import gzip
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import nibabel
import numpy as np
import pydicom
import pytest
import torch

from catalog import uploads
from serving import model
from serving.gate import evaluate
from serving.registry import ALIAS

pytestmark = pytest.mark.slow

MODEL = "endpoint"
SERVE = "import sys; from serving.endpoint import serve; serve(sys.argv[1], sys.argv[2], sys.argv[3], port=int(sys.argv[4]))"


ROOMS = """
import json, sys
from pathlib import Path
from serving.endpoint import HotModel
from serving.registry import Registry

hot = HotModel(sys.argv[1], Registry(sys.argv[2]), Path(sys.argv[3]))
hot.predict([{"reference": {"series": sys.argv[4]}, "outputs": ["volumes", "seg", "nifti"]}])
print(json.dumps({name: module.__file__ for name, module in sys.modules.items() if getattr(module, "__file__", None)}))
"""


def start(world: Any, port: int) -> "subprocess.Popen[bytes]":
    arguments = [MODEL, world.registry.tracking_uri, str(world.archive.home), str(port)]
    return subprocess.Popen([sys.executable, "-c", SERVE, *arguments], stderr=subprocess.PIPE)


def judged(world: Any, run: str) -> str:
    version: str = world.registry.register(run, model=MODEL, home=world.archive.home)
    evaluate(world.archive, replace(world.project, model=MODEL), world.registry, version)
    return version


def ask(port: int, *items: dict[str, Any], **headers: str) -> list[dict[str, Any]]:
    body, headers = json.dumps({"dataframe_records": list(items)}).encode(), {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        answers: list[dict[str, Any]] = json.load(response)["predictions"]
    return answers


def until(condition: Any, *, seconds: float = 60) -> None:
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "too late"
        pause.wait(0.1)


@pytest.fixture(scope="module")
def port(world: Any) -> Iterator[int]:
    """The endpoint serves version 1; version 2 is judged, not promoted."""
    assert world.registry.promote(MODEL, judged(world, world.untrained))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = int(free.getsockname()[1])
    process = start(world, number)

    def ready() -> bool:
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        try:
            return bool(urllib.request.urlopen(f"http://127.0.0.1:{number}/ping", timeout=2).status == 200)
        except OSError:
            return False

    until(ready, seconds=120)
    yield number
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)


def test_each_item_is_answered_on_its_own(world: Any, port: int) -> None:
    good = {"reference": {"series": world.series[0]}}
    answers = ask(
        port,
        good,
        {"reference": {"series": "1.2.3"}},
        {"reference": {"series": world.series[0]}, "prompts": {"classes": ["spleen"]}},
        {"reference": {"upload": "../../tables/labels"}},
        {**good, "colour": "red"},
        {"outputs": ["volumes"]},
        {**good, "outputs": ["uncertainty"], "prompts": {"classes": ["ball"]}},
    )
    assert [(a["model"], a["version"]) for a in answers] == [(MODEL, "1")] * 7
    assert [a["error"] is None for a in answers] == [True, False, False, False, False, False, True]
    assert answers[0]["result"]["volumes"].keys() == {"ball"}
    said = [a["error"]["message"] for a in answers[1:6]]
    for message, words in zip(said, ["no such series", "spleen", "no such upload", "colour", "reference"], strict=True):
        assert words in message
    assert 0 < answers[6]["result"]["uncertainty"]["mean_entropy"] < 1


def test_who_asks_through_a_proxy_names_no_path_of_the_machine(world: Any, port: int, tmp_path: Path) -> None:
    image = world.archive.volume(world.series[0])
    nibabel.save(nibabel.Nifti1Image(image.array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine), tmp_path / "a.nii.gz")
    folder = Path(world.archive.series_files(world.series[0])[0]).parent
    items = [
        {"reference": {"nifti": str(tmp_path / "a.nii.gz")}},
        {"reference": {"series": world.series[0]}},
        {"reference": {"dicom": str(folder)}},
        {"reference": {"nifti": "/etc/passwd", "series": world.series[0]}},
        {"reference": {"upload": "0" * 32 + ".nii.gz"}},
    ]
    assert [one["error"] is None for one in ask(port, *items)] == [True, True, True, False, False]
    answers = ask(port, *items, Via="1.1 voxloop")
    said = [one["error"] and one["error"]["message"] for one in answers]
    for message, kind in ((said[0], "nifti"), (said[2], "dicom")):
        assert message.startswith(f"reference.{kind}: a path is taken on the server's own machine only (send the file to")
    assert said[1] is None and answers[1]["result"]["volumes"]
    assert "exactly one" in said[3] and "no such upload" in said[4]
    assert {(one["model"], one["version"]) for one in answers} == {(MODEL, "1")}
    only = ask(port, items[0], Via="1.1 voxloop")
    assert only[0]["error"] and only[0]["result"] is None


def test_every_room_in_the_servers_process_is_of_one_copy(world: Any, port: int) -> None:
    arguments = [MODEL, world.registry.tracking_uri, str(world.archive.home), world.series[0]]
    made = subprocess.run([sys.executable, "-c", ROOMS, *arguments], capture_output=True, check=True, text=True)
    files = json.loads(made.stdout.splitlines()[-1])
    rooms = {name: Path(file) for name, file in files.items() if name.split(".")[0] in model.ROOMS}
    assert {name.split(".")[0] for name in rooms} == set(model.ROOMS)
    ours = Path(model.__file__).parents[1]
    assert {name: file for name, file in rooms.items() if not file.is_relative_to(ours)} == {}


def test_every_output_shows_the_same_mask(world: Any, port: int) -> None:
    from catalog import seg

    outputs = ["seg", "nifti", "labelmap", "volumes"]
    [answered] = ask(port, {"reference": {"series": world.series[0]}, "outputs": outputs})
    result = answered["result"]
    like = world.archive.volume(world.series[0])
    stored = result["labelmap"]
    mask = np.frombuffer(zlib.decompress(base64.b64decode(stored["data"])), np.uint8).reshape(stored["shape"])
    assert mask.shape == like.spatial_shape
    assert np.allclose(stored["affine"], like.affine)
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(result["nifti"])))
    assert np.array_equal(np.asarray(image.dataobj), mask)
    assert np.allclose(np.diag([-1, -1, 1, 1]) @ image.affine, like.affine, atol=1e-4)
    dataset = pydicom.dcmread(io.BytesIO(base64.b64decode(result["seg"])))
    assert np.array_equal(seg.decode(dataset, like, world.project.label_set).array, mask)
    assert result["volumes"]["ball"] == pytest.approx((mask == 3).sum() * 8 / 1000)


def test_files_are_asked_for_by_their_path(world: Any, port: int, tmp_path: Path) -> None:
    folder = Path(world.archive.series_files(world.series[0])[0]).parent
    like = world.archive.volume(world.series[0])
    nifti = tmp_path / "image.nii.gz"
    nibabel.save(nibabel.Nifti1Image(like.array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ like.affine), nifti)
    answers = ask(
        port,
        {"reference": {"series": world.series[0]}, "outputs": ["labelmap", "seg"]},
        {"reference": {"dicom": str(folder)}, "outputs": ["labelmap", "seg"]},
        {"reference": {"nifti": str(nifti)}, "outputs": ["volumes", "nifti"]},
        {"reference": {"nifti": str(tmp_path / "none.nii.gz")}},
    )
    assert answers[0]["result"]["labelmap"] == answers[1]["result"]["labelmap"]
    assert answers[2]["error"] is None
    assert "none.nii.gz" in answers[3]["error"]["message"]


def test_uploads_are_asked_for_by_their_name(world: Any, port: int, tmp_path: Path) -> None:
    like, files = world.archive.volume(world.series[0]), world.archive.series_files(world.series[0])
    sent = uploads.folder(world.archive.home)
    sent.mkdir(parents=True, exist_ok=True)
    nifti, zipped, broken = (uploads.new_name(name) for name in ("image.NII.GZ", "series.zip", "broken.zip"))
    nibabel.save(nibabel.Nifti1Image(like.array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ like.affine), sent / nifti)
    with zipfile.ZipFile(sent / zipped, "w") as archive:
        for file in files:
            archive.write(file, f"../{Path(file).name}")
    (sent / broken).write_bytes((sent / zipped).read_bytes()[:-3000])
    answers = ask(
        port,
        {"reference": {"series": world.series[0]}, "outputs": ["labelmap"]},
        {"reference": {"upload": zipped}, "outputs": ["labelmap", "seg"]},
        {"reference": {"upload": nifti}, "outputs": ["volumes"]},
        {"reference": {"upload": nifti}, "outputs": ["seg"]},
        {"reference": {"upload": broken}},
        {"reference": {"upload": uploads.new_name("never-sent.nii")}},
    )
    assert [answered["error"] is None for answered in answers] == [True, True, True, False, False, False]
    assert answers[0]["result"]["labelmap"] == answers[1]["result"]["labelmap"]
    assert "DICOM SEG needs DICOM images" in answers[3]["error"]["message"]
    assert "damaged" in answers[4]["error"]["message"]
    assert "no such upload" in answers[5]["error"]["message"]


def test_the_version_changes_under_load_and_no_request_is_lost(world: Any, port: int) -> None:
    seen: list[str] = []
    failures: list[Any] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            try:
                [answered] = ask(port, {"reference": {"series": world.series[1]}})
                seen.append(answered["version"])
                if answered["error"] is not None:
                    failures.append(answered)
            except Exception as problem:
                failures.append(problem)

    threads = [threading.Thread(target=keep_asking) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(seen) > 5)
        assert world.registry.promote(MODEL, judged(world, world.trained))
        until(lambda: seen[-1:] == ["2"])
        assert world.registry.rollback(MODEL) == "1"
        until(lambda: seen[-1:] == ["1"])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert set(seen) == {"1", "2"}


def test_an_alias_moved_by_hand_is_refused_until_it_is_right(world: Any, port: int) -> None:
    client = mlflow.MlflowClient(world.registry.tracking_uri)
    unjudged = world.registry.register(world.run("unjudged", torch.nn.Identity()), model=MODEL)
    item = {"reference": {"series": world.series[0]}}
    client.set_registered_model_alias(MODEL, ALIAS, unjudged)
    until(lambda: ask(port, item)[0]["error"] is not None)
    [answered] = ask(port, item)
    assert f"moved by hand to version {unjudged}" in answered["error"]["message"]
    assert answered["result"] is None
    client.set_registered_model_alias(MODEL, ALIAS, "1")
    until(lambda: ask(port, item)[0]["error"] is None)


def test_a_taken_port_is_said(world: Any, port: int) -> None:
    second = start(world, port)
    _, error = second.communicate(timeout=120)
    assert second.returncode != 0
    assert f"port {port} is taken" in error.decode()
