"""Who labels what next, and the round that turns labels into a better model."""

from labeling.errors import LabelingError
from labeling.strategies import Choice, EntropyStrategy, RandomStrategy, Strategy

__all__ = ["Choice", "EntropyStrategy", "LabelingError", "RandomStrategy", "Strategy"]
