"""The training bench trains both ways on the same cases and says what each took."""

from pathlib import Path

import pytest

from experiments import train_bench

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore")  # MONAI's and Lightning's advice
def test_both_ways_learn_from_the_same_cases(tmp_path: Path) -> None:
    result = train_bench.bench(tmp_path, n=4, rounds=1, batch=2, patch=16).as_json()
    assert result["bench"] == "train" and result["n"] == 4
    assert result["ratio"] == pytest.approx(result["patches_per_s"] / result["stock_patches_per_s"])
    assert 0 < result["loss"] < 3 and 0 < result["stock_loss"] < 3
    info, files = train_bench.made(tmp_path, 4, batch=2, patch=16)
    assert len(list((files / "images").iterdir())) == info.rows["train"] == 4
