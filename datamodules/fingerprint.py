"""The fingerprint: what the volumes of a cohort have in common, which a plan is derived from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Self

import highdicom as hd
import numpy as np

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
        return cls(*_medians([_grid(volume.get_geometry()) for volume in volumes]), (modality,))


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
    """Measure ``cases`` (200 of them at most, labelled ones first) by a Spark job; without ``modalities`` a channel that goes
    below -500 is CT.

    Cases that cannot be read, or have not these channels, are passed over: the dataset names them. DataError where none is
    left.
    """
    labelled, others = ([case for case in cases if bool(case.label) is known] for known in (True, False))
    chosen = _evenly(labelled, MOST)
    chosen += _evenly(others, MOST - len(chosen))
    if not chosen:
        raise DataError("no volumes to derive a plan from", remedy="widen the project's cohort")
    home, index_url = (None, None) if archive is None else (archive.home, archive.index_url)
    work = partial(_measured, home, index_url, label_set, len(channels), modalities is not None)
    found = spark.sparkContext.parallelize(chosen, len(chosen)).map(work).collect()
    good = [one for one in found if not one.problem]
    if not good:
        raise DataError(f"no case can be read; the first: {found[0].problem}", about=f"case {chosen[0].case}", remedy="mend it")
    spacing, shape = _medians([(one.spacing, one.shape) for one in good])
    if modalities is None:
        modalities = ["CT" if median(lowest) < AIR else "MR" for lowest in zip(*(one.lowest for one in good), strict=True)]
    voxels = [one.foreground for one in good if one.foreground is not None and one.foreground.size]
    intensities = tuple(map(_values, np.concatenate(voxels, axis=1))) if voxels else ()
    return Fingerprint(spacing, shape, tuple(modalities), tuple(channels), intensities)


def _evenly(cases: "Sequence[LabelledCase]", most: int) -> "list[LabelledCase]":
    return list(cases[:: max(1, -(-len(cases) // most))])[:most] if most > 0 else []


def _measured(
    home: object, index_url: str | None, label_set: LabelSet, channels: int, modalities_known: bool, case: "LabelledCase"
) -> _Measured:
    """On a worker; pixels are read where they are asked for."""
    from catalog.archive import Archive
    from catalog.labels import revision
    from datamodules.cases import case_image, case_mask

    if len(case.images) != channels:
        return _Measured(problem=f"{len(case.images)} images for {channels} channels")
    try:
        archive = None if home is None else Archive(str(home), index_url=index_url)
        if archive is not None and modalities_known and not case.label:
            return _Measured(*_grid(archive.geometry(case.images[0])))
        images = case_image(archive, case)
        known = revision(archive, case.label) if archive is not None and case.label else None
        mask = case_mask(archive, case, known, label_set, images[0])
    except Exception as problem:  # corrupt files raise errors of every kind
        return _Measured(problem=" ".join(str(problem).split()) or type(problem).__name__)
    foreground = None
    if mask is not None:
        places = np.flatnonzero(mask.array)
        places = places[:: max(1, -(-len(places) // VOXELS))]
        foreground = np.stack([image.array.ravel()[places] for image in images]).astype(np.float32)
    grid = _grid(images[0].get_geometry())
    return _Measured(*grid, tuple(float(image.array.min()) for image in images), foreground)


def _grid(geometry: hd.VolumeGeometry) -> tuple[tuple[float, ...], tuple[int, ...]]:
    from datamodules.prepare import CANONICAL

    turned = geometry.to_patient_orientation(CANONICAL)
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
