"""Conformance tests of this room's seams: subclass, give the fixture, done."""

import highdicom as hd
import numpy as np
import pyarrow as pa
import pytest

from labeling.readers import Reader
from labeling.strategies import Strategy

__all__ = ["ReaderTests", "StrategyTests"]


class StrategyTests:
    """What every Strategy promises; give a fixture ``strategy``."""

    @staticmethod
    def pool(n: int = 9) -> pa.Table:
        """A pool of ``n`` series of which the last is not scored."""
        entropy: list[float | None] = [round(((i * 7) % 11) / 11, 3) for i in range(n)]
        entropy[-1] = None
        return pa.table({"series_uid": [f"1.2.{i}" for i in range(n)], "entropy": pa.array(entropy, pa.float64())})

    def test_chooses_k_distinct_series_of_the_pool(self, strategy: Strategy) -> None:
        pool = self.pool()
        chosen = [choice.series_uid for choice in strategy.choose(pool, 4, seed=1)]
        assert len(chosen) == len(set(chosen)) == 4
        assert set(chosen) <= set(pool["series_uid"].to_pylist())

    def test_takes_all_of_a_smaller_pool_and_none_of_an_empty_one(self, strategy: Strategy) -> None:
        assert len(strategy.choose(self.pool(3), 5, seed=1)) == 3
        assert list(strategy.choose(self.pool(3).slice(0, 0), 5, seed=1)) == []

    def test_is_a_function_of_pool_and_seed_not_of_the_order_of_rows(self, strategy: Strategy) -> None:
        first = strategy.choose(self.pool(), 4, seed=3)
        assert first == strategy.choose(self.pool(), 4, seed=3)

    def test_says_why(self, strategy: Strategy) -> None:
        assert all(choice.reason for choice in strategy.choose(self.pool(), 2, seed=1))


class ReaderTests:
    """What every Reader promises; give fixtures ``reader``, ``series`` (a UID it can label) and ``image`` (its volume)."""

    def test_answers_on_the_grid_of_the_series(self, reader: Reader, series: str, image: hd.Volume) -> None:
        submission = reader.label(series, None)
        assert submission.series_uid == series
        assert submission.mask.dtype == np.uint8
        assert submission.mask.geometry_equal(image)

    def test_states_agree_with_the_mask(self, reader: Reader, series: str) -> None:
        submission = reader.label(series, None)
        assert submission.states
        assert set(submission.states.values()) <= {"present", "absent", "not_annotated"}
        assert ("present" in submission.states.values()) == bool(submission.mask.array.any())

    def test_counts_what_it_changed_of_a_suggestion(self, reader: Reader, series: str) -> None:
        answer = reader.label(series, None).mask
        assert reader.label(series, answer).voxels_changed == 0

    def test_refuses_a_series_it_cannot_label(self, reader: Reader) -> None:
        with pytest.raises(Exception, match=r"9\.9\.9"):
            reader.label("9.9.9", None)
