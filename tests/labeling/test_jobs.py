"""A sequence goes on after kill -9 where it stopped, repeats no finished step, and begins again after a failed one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each process imports the room

SEQUENCE = """
import os, signal, sys
from pathlib import Path
from labeling.jobs import Jobs

folder, death = Path(sys.argv[1]), sys.argv[2]

def wrote(name):
    with (folder / "steps").open("a") as log:
        log.write(name + "\\n")
    return {"step": name}

def second():
    if death == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if death == "fail":
        raise ValueError("the disk is full")
    return wrote("second")

def sequence(step):
    first = step("first", lambda: wrote("first"))
    return {"did": [first["step"], step("second", second)["step"]]}

with Jobs(f"sqlite:///{folder}/state.db", {"round-1": sequence}) as jobs:
    print(jobs.run("round-1"))
"""


def play(folder: Path, death: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SEQUENCE, str(folder), death], capture_output=True, text=True, timeout=120, env=dict(os.environ)
    )


def steps(folder: Path) -> list[str]:
    return (folder / "steps").read_text().split()


def test_goes_on_after_kill_9_without_repeating_what_was_done(tmp_path: Path) -> None:
    assert play(tmp_path, "kill").returncode == -signal.SIGKILL
    again = play(tmp_path)
    assert again.returncode == 0, again.stderr
    assert "{'did': ['first', 'second']}" in again.stdout
    assert steps(tmp_path) == ["first", "second"]


def test_a_finished_sequence_gives_its_kept_result(tmp_path: Path) -> None:
    assert play(tmp_path).stdout == play(tmp_path).stdout
    assert steps(tmp_path) == ["first", "second"]


def test_a_failed_step_fails_the_run_and_the_next_run_tries_again(tmp_path: Path) -> None:
    failed = play(tmp_path, "fail")
    assert failed.returncode != 0
    assert "the disk is full" in failed.stderr
    assert play(tmp_path).returncode == 0
    assert steps(tmp_path) == ["first", "first", "second"]
