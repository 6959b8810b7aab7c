"""The fingerprint: what the volumes of a cohort have in common, which a plan is derived from."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Self

import highdicom as hd

from datamodules.errors import DataError

__all__ = ["Fingerprint"]


@dataclass(frozen=True)
class Fingerprint:
    """Median voxel spacing (mm) and size (voxels), both (z, y, x) after reorientation; of each channel its name, its DICOM
    modality (``CT`` or another) and, where foreground was measured, (low, high, mean, standard deviation) of the foreground's
    values: low and high are the 0.5th and 99.5th percentile."""

    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    modalities: tuple[str, ...] = ("MR",)
    channels: tuple[str, ...] = ("image",)
    intensities: tuple[tuple[float, float, float, float], ...] = ()

    @classmethod
    def of(cls, volumes: Iterable[hd.Volume], *, modality: str = "MR") -> Self:
        """Measure ``volumes``, one at a time; DataError where there is none."""
        from datamodules.prepare import CANONICAL

        geometries = [volume.get_geometry().to_patient_orientation(CANONICAL) for volume in volumes]
        if not geometries:
            raise DataError("no volumes to derive a plan from", remedy="widen the project's cohort")
        spacing = [round(median(geometry.spacing[axis] for geometry in geometries), 4) for axis in range(3)]
        shape = [round(median(geometry.spatial_shape[axis] for geometry in geometries)) for axis in range(3)]
        return cls((spacing[0], spacing[1], spacing[2]), (shape[0], shape[1], shape[2]), (modality,))
