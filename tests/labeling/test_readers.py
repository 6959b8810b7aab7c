"""The simulated reader keeps the promises of the seam."""

from typing import Any

import highdicom as hd
import pytest

from labeling import SimulatedReader
from labeling.testing import ReaderTests


class TestSimulatedReader(ReaderTests):
    @pytest.fixture
    def reader(self, clinic: Any) -> SimulatedReader:
        return SimulatedReader(clinic.archive, clinic.project.label_set, clinic.truth)

    @pytest.fixture
    def series(self, clinic: Any) -> str:
        return min(clinic.truth)

    @pytest.fixture
    def image(self, clinic: Any, series: str) -> hd.Volume:
        return clinic.archive.volume(series)
