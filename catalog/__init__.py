"""Every DICOM object as a row, and what others say about it: labels, predictions, scores."""

from catalog.errors import CatalogError, VoxloopError

__all__ = ["CatalogError", "VoxloopError"]
