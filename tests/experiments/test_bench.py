"""The harness warms, interleaves and reports a ratio whose direction is right."""

import time

from experiments.bench import compare


def test_runs_both_ways_warmed_and_in_turn() -> None:
    order: list[str] = []
    compare("order", lambda: order.append("a"), lambda: order.append("b"), n=1, rounds=3, warmup=1)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"


def test_a_baseline_that_takes_longer_gives_a_ratio_above_one() -> None:
    def work(loops: int) -> None:
        until = time.process_time() + loops / 1000
        while time.process_time() < until:
            pass

    result = compare("loops", lambda: work(2), lambda: work(20), n=20, rounds=5)
    assert result.ratio > 2
    assert result.as_json()["bench"] == "loops"
    assert set(result.as_json()) >= {"bench", "device", "n", "ours", "baseline", "ratio"}
