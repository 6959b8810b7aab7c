"""The loader's bench reads the same tensors both ways and reports what it is asked for."""

from pathlib import Path

import pytest

from experiments import loader_bench
from experiments.baselines.loader_bare import tensors

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_measures_reading_waiting_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_bench, "SHAPE", (32, 64, 64))
    monkeypatch.setattr(loader_bench, "STEPS", 2)
    info = loader_bench.made(tmp_path / "dataset", 2)
    assert sum(tensor.ndim == 4 for tensor in tensors(info.path / "train")) == 2
    result = loader_bench.bench(tmp_path, dataset=info.path, rounds=1).as_json()
    assert result["bench"] == "loader" and result["n"] == 2
    assert result["bytes_per_s"] / result["bare_bytes_per_s"] == pytest.approx(result["baseline"] / result["ours"])
    assert 0 < result["wait_share"] < 1 and result["step_ms"] > 0
    assert 0.7 < result["rss_ratio"] < 1.5
