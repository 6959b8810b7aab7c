"""Benches are found by name."""

import pytest

from voxloop.benches import BENCHES, find
from voxloop.errors import FrontDoorError


def test_an_unknown_bench_names_those_there_are() -> None:
    with pytest.raises(FrontDoorError, match=r"speed: no such bench \(there are: ingest, .*qido"):
        find("speed")
    assert all(find(name) is bench for name, bench in BENCHES.items())
