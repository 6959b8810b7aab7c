"""The viewer's configuration and our part of it, as files that a browser fetches."""

from pathlib import Path

__all__ = ["FOLDER"]

FOLDER = Path(__file__).parent
"""Holds app-config.js, and the modules that the web server gives out at /plugins/."""
