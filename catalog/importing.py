"""NIfTI cohorts as DICOM: images as series, labels as segmentations."""

from catalog.series import write_series

__all__ = ["write_series"]
