"""This room's root error; see catalog.errors for the tree."""

from catalog.errors import VoxloopError

__all__ = ["ServingError"]


class ServingError(VoxloopError):
    """A model that cannot be registered, promoted, served or replayed."""
