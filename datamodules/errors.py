"""This room's root error; see catalog.errors for the tree."""

from catalog.errors import VoxloopError

__all__ = ["DataError"]


class DataError(VoxloopError):
    """A plan or dataset that cannot be built or read."""
