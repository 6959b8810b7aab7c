"""This room's root error; see catalog.errors for the tree."""

from catalog.errors import VoxloopError

__all__ = ["LabelingError"]


class LabelingError(VoxloopError):
    """A strategy, reader or round that cannot go on."""
