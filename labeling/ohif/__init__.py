"""The viewer's plugin: plain ES modules that OHIF's stock build imports by URL, and the viewer's configuration."""

from pathlib import Path

__all__ = ["FOLDER"]

FOLDER = Path(__file__).parent
"""Holds the ``.js`` files; they are served as they are, below ``/plugins/``, but ``app-config.js`` at ``/app-config.js``."""
