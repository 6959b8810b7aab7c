"""What the viewer's panel asks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastapi import FastAPI

if TYPE_CHECKING:
    from catalog import Archive, Project

__all__ = ["application"]


def application(archive: "Archive", projects: "Sequence[Project]", *, endpoint: str = "", tracking_uri: str = "") -> FastAPI:
    """The API of ``projects`` on ``archive``."""
    return FastAPI()
