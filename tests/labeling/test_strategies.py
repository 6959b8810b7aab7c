"""Query strategies keep the promises of the seam, and choose what they say they choose."""

import pytest

from labeling import EntropyStrategy, LabelingError, RandomStrategy
from labeling.testing import StrategyTests


class TestRandomStrategy(StrategyTests):
    @pytest.fixture
    def strategy(self) -> RandomStrategy:
        return RandomStrategy()

    def test_another_seed_gives_another_choice(self, strategy: RandomStrategy) -> None:
        draws = {tuple(c.series_uid for c in strategy.choose(self.pool(), 4, seed=seed)) for seed in range(5)}
        assert len(draws) > 1


class TestEntropyStrategy(StrategyTests):
    @pytest.fixture
    def strategy(self) -> EntropyStrategy:
        return EntropyStrategy()

    def test_takes_the_most_uncertain_first_and_the_unscored_last(self, strategy: EntropyStrategy) -> None:
        scores = [choice.score for choice in strategy.choose(self.pool(), 9, seed=0)]
        assert scores == sorted(scores, reverse=True)
        assert scores[-1] == -1.0

    def test_a_pool_without_scores_is_refused(self, strategy: EntropyStrategy) -> None:
        with pytest.raises(LabelingError, match="entropy"):
            strategy.choose(self.pool().drop_columns(["entropy"]), 1, seed=0)
