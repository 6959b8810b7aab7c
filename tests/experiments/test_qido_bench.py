"""The bench of searches checks that both ways say the same, and reports what it is asked for."""

from pathlib import Path

from experiments import qido_bench


def test_measures_each_search_and_the_follow(tmp_path: Path) -> None:
    result = qido_bench.bench(tmp_path / "qido", n=2000, rounds=1).as_json()
    assert result["n"] == 2000 and result["bench"] == "qido"
    assert set(result["queries"]) == set(qido_bench.SEARCHES)
    slowest = max(found["p95_ms"] for name, found in result["queries"].items() if name != "name_infix")
    assert result["p95_ms"] == slowest
    assert {"ours", "baseline", "ratio", "index_s", "append_s", "p50_ms"} <= set(result)
    assert result["queries"]["instances"]["rows"] > 1
