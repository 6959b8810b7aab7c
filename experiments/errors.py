"""This room's root error; see catalog.errors for the tree."""

from catalog.errors import VoxloopError

__all__ = ["ExperimentError"]


class ExperimentError(VoxloopError):
    """A sweep that cannot be read, begun or gone on with."""
