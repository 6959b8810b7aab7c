"""This room's root error; see catalog.errors for the tree."""

from catalog.errors import VoxloopError

__all__ = ["TrainingError"]


class TrainingError(VoxloopError):
    """A run or predictor that cannot go on."""
