"""The fingerprint: what the volumes of a cohort have in common, which a plan is derived from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Self

import highdicom as hd
import numpy as np

from catalog.errors import VoxloopError
from catalog.labelset import LabelSet
from datamodules.errors import DataError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from catalog.archive import Archive
    from datamodules.cases import LabelledCase

__all__ = ["Fingerprint", "measure"]

MOST = 200
"""Cases that are measured at most, evenly chosen."""

VOXELS = 10_000
"""Foreground voxels of a case that are looked at."""

AIR = -500.0
"""A channel whose lowest value is below is in Hounsfield units: CT."""

Values = tuple[float, float, float, float]


@dataclass(frozen=True)
class Fingerprint:
    """Median voxel spacing (mm) and size (voxels), both (z, y, x) after reorientation; of each channel its name, its DICOM
    modality (``CT`` or another) and, where foreground was measured, (low, high, mean, standard deviation) of the foreground's
    values: low and high are the 0.5th and 99.5th percentile."""

    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    modalities: tuple[str, ...] = ("MR",)
    channels: tuple[str, ...] = ("image",)
    intensities: tuple[Values, ...] = ()

    @classmethod
    def of(cls, volumes: Iterable[hd.Volume], *, modality: str = "MR") -> Self:
        """Measure the grids of ``volumes``, one at a time; DataError where there is none."""
        return cls(*_medians([_grid(volume) for volume in volumes]), (modality,))


@dataclass(frozen=True)
class _Measured:
    """One case: its canonical grid, of each channel the lowest value, and foreground voxels (channels, n); or why not."""

    spacing: tuple[float, ...] = ()
    shape: tuple[int, ...] = ()
    lowest: tuple[float, ...] = ()
    foreground: "np.ndarray | None" = None
    problem: str = ""


def measure(
    spark: "SparkSession",
    archive: "Archive | None",
    cases: "Sequence[LabelledCase]",
    label_set: LabelSet,
    *,
    channels: Sequence[str] = ("image",),
    modalities: Sequence[str] | None = None,
) -> Fingerprint:
    """Measure ``cases`` (200 of them at most) by a Spark job; without ``modalities`` a channel that goes below -500 is CT.

    Cases that cannot be read are passed over: the dataset names them. DataError where none can.
    """
    chosen = list(cases)[:: -(-len(cases) // MOST) or 1]
    if not chosen:
        raise DataError("no volumes to derive a plan from", remedy="widen the project's cohort")
    home, index_url = (None, None) if archive is None else (archive.home, archive.index_url)
    context = spark.sparkContext
    tasks = context.parallelize(chosen, min(len(chosen), 4 * context.defaultParallelism))
    found = tasks.map(lambda case: _measured(home, index_url, case, label_set)).collect()
    good = [one for one in found if not one.problem]
    if not good:
        raise DataError(f"no case can be read; the first: {found[0].problem}", about=f"case {chosen[0].case}")
    spacing, shape = _medians([(one.spacing, one.shape) for one in good])
    if modalities is None:
        modalities = ["CT" if median(lowest) < AIR else "MR" for lowest in zip(*(one.lowest for one in good), strict=True)]
    voxels = [one.foreground for one in good if one.foreground is not None and one.foreground.size]
    intensities = tuple(map(_values, np.concatenate(voxels, axis=1))) if voxels else ()
    return Fingerprint(spacing, shape, tuple(modalities), tuple(channels), intensities)


def _measured(home: object, index_url: str | None, case: "LabelledCase", label_set: LabelSet) -> _Measured:
    """On a worker."""
    from catalog.archive import Archive
    from catalog.labels import revision
    from datamodules.cases import case_image, case_mask

    try:
        archive = None if home is None else Archive(str(home), index_url=index_url)
        images = case_image(archive, case)
        known = revision(archive, case.label) if archive is not None and case.label else None
        mask = case_mask(archive, case, known, label_set, images[0])
    except (VoxloopError, OSError, ValueError, RuntimeError, AttributeError, KeyError) as problem:
        return _Measured(problem=" ".join(str(problem).split()))
    spacing, shape = _grid(images[0])
    foreground = None
    if mask is not None:
        places = np.flatnonzero(mask.array)
        places = places[:: -(-len(places) // VOXELS) or 1]
        foreground = np.stack([image.array.ravel()[places] for image in images]).astype(np.float32)
    return _Measured(spacing, shape, tuple(float(image.array.min()) for image in images), foreground)


def _grid(volume: hd.Volume) -> tuple[tuple[float, ...], tuple[int, ...]]:
    from datamodules.prepare import CANONICAL

    turned = volume.get_geometry().to_patient_orientation(CANONICAL)
    return tuple(turned.spacing), tuple(turned.spatial_shape)


def _medians(
    grids: Sequence[tuple[tuple[float, ...], tuple[int, ...]]],
) -> tuple[tuple[float, float, float], tuple[int, int, int]]:
    if not grids:
        raise DataError("no volumes to derive a plan from", remedy="widen the project's cohort")
    spacing = [round(median(spacing[axis] for spacing, _ in grids), 4) for axis in range(3)]
    shape = [round(median(shape[axis] for _, shape in grids)) for axis in range(3)]
    return (spacing[0], spacing[1], spacing[2]), (shape[0], shape[1], shape[2])


def _values(voxels: np.ndarray) -> Values:
    low, high = np.percentile(voxels, (0.5, 99.5))
    return round(float(low), 4), round(float(high), 4), round(float(voxels.mean()), 4), round(float(voxels.std()), 4)
