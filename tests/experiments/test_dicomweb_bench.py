"""The benches of DICOMweb, small: what they measure is really asked for and answered."""

import shutil
from pathlib import Path

import pytest

from experiments import dicomweb_bench

pytestmark = pytest.mark.slow


@pytest.mark.skipif(
    not (shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")), reason="needs nginx (Debian: nginx-light)"
)
def test_frames_are_measured_against_nginx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicomweb_bench, "REQUESTS", 64)
    told = dicomweb_bench.frames(tmp_path, n=4, rounds=1).as_json()
    assert (told["bench"], told["n"], told["clients"]) == ("frames", 4, 16)
    assert told["ratio"] > 0
    assert 0 < told["p50_ms"] <= told["p99_ms"]


def test_metadata_are_measured_against_pydicom(tmp_path: Path) -> None:
    told = dicomweb_bench.metadata(tmp_path, n=20, rounds=1).as_json()
    assert (told["bench"], told["n"]) == ("metadata", 20)
    assert 0 < told["p50_ms"] <= told["p99_ms"]
