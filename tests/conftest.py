"""What tests share: one Spark for the session, an empty home for each test."""

from collections.abc import Iterator
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
