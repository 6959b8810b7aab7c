"""The rules of the house: rooms are ours wherever they are imported, names are exported on purpose, the lock names no host."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROOT = Path(__file__).parent.parent
ROOMS = ["catalog", "datamodules", "training", "serving", "labeling", "experiments", "voxloop"]


def folders() -> dict[str, str]:
    """Where each room is imported from, in the process that asks."""
    return {room: str(Path(str(importlib.import_module(room).__file__)).parent) for room in ROOMS}


def test_the_driver_imports_our_rooms() -> None:
    assert folders() == {room: str(ROOT / room) for room in ROOMS}


@pytest.mark.slow
def test_a_spark_worker_imports_our_rooms(spark: "SparkSession") -> None:
    def seen(_: Any) -> dict[str, str]:
        import importlib
        from pathlib import Path

        names = ["catalog", "datamodules", "training", "serving", "labeling", "experiments", "voxloop"]
        return {name: str(Path(str(importlib.import_module(name).__file__)).parent) for name in names}

    assert spark.sparkContext.parallelize([0], 1).map(seen).collect() == [{room: str(ROOT / room) for room in ROOMS}]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_exports_names_that_exist_in_order(room: str) -> None:
    module = importlib.import_module(room)
    assert list(module.__all__) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("room", ["catalog"])
def test_the_first_room_imports_without_the_heavy_ones(room: str) -> None:
    heavy = "{'torch', 'pyspark', 'mlflow', 'monai'}"
    code = f"import sys, {room}; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_every_module_says_what_it_is_for_and_what_it_exports() -> None:
    for path in (p for room in ROOMS for p in (ROOT / room).rglob("*.py")):
        text = path.read_text()
        assert text.startswith('"""'), f"{path} has no docstring"
        if path.name not in ("__init__.py", "spark_daemon.py", "__main__.py"):
            assert "__all__" in text, f"{path} does not say what is public"


def test_the_lock_is_complete_and_names_no_host() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"https?://|--index|--find-links", lock)
    locked = {re.split(r"[=\[ ;]", line)[0].lower().replace("_", "-") for line in lock.splitlines() if "==" in line}
    assert _dependencies() - locked == set()


def _dependencies() -> set[str]:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = project["dependencies"] + project["optional-dependencies"]["dev"]
    return {re.split(r"[=<>\[ ;]", line)[0].lower().replace("_", "-") for line in listed}
