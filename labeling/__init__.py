"""Who labels what next, and the round that turns labels into a better model."""

from labeling.errors import LabelingError
from labeling.jobs import Jobs, in_background
from labeling.readers import Reader, SimulatedReader
from labeling.round import Round, Workplace
from labeling.strategies import Choice, EntropyStrategy, RandomStrategy, Strategy

__all__ = [
    "Choice",
    "EntropyStrategy",
    "Jobs",
    "LabelingError",
    "RandomStrategy",
    "Reader",
    "Round",
    "SimulatedReader",
    "Strategy",
    "Workplace",
    "in_background",
]
