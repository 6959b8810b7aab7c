"""What tests share: one Spark and one MLflow server for the session, an empty home for each test."""

import atexit
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[SparkSession]":
    """A real local Spark, started once."""
    from voxloop.spark import session

    started = session(scratch=tmp_path_factory.mktemp("spark"))
    yield started
    started.stop()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home."""
    return tmp_path / "home"


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a real MLflow server on a loopback port, with its own database and artifacts; it cannot outlive the tests."""
    from voxloop.settings import Settings
    from voxloop.tracking import tracking_server

    with tracking_server(Settings(home=tmp_path_factory.mktemp("mlflow"), tracking_uri="")) as uri:
        yield uri


@pytest.fixture(scope="session")
def dciodvfy() -> Callable[[Path], list[str]]:
    """What the validator of dicom3tools calls an error in a DICOM file, a line each; its warnings are printed."""
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("no dciodvfy on this machine: apt install dicom3tools")

    def verify(path: Path) -> list[str]:
        ran = subprocess.run([program, str(path)], capture_output=True, text=True, errors="replace")
        said = [line for line in (ran.stdout + ran.stderr).splitlines() if line.startswith(("Error", "Warning"))]
        print("\n".join(line for line in said if line.startswith("Warning")))
        errors = [line for line in said if line.startswith("Error")]
        return errors or ([f"exit status {ran.returncode}: {ran.stderr}"] if ran.returncode else [])

    return verify


@atexit.register
def _be_quiet() -> None:
    """DuckDB's bindings bid farewell with a page of "leaked" lines, after the tests' own last line: to nowhere with them."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
