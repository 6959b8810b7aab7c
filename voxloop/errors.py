"""This room's root error; see catalog.errors for the tree."""

from catalog.errors import VoxloopError

__all__ = ["FrontDoorError"]


class FrontDoorError(VoxloopError):
    """A setting, process or machine that is not as needed."""
