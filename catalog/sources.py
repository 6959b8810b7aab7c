"""Where volumes come from: a DICOM folder or a NIfTI file here, a series of the catalog in ``catalog.archive``."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from catalog import deflated
from catalog.errors import CatalogError
from catalog.files import list_files, open_binary
from catalog.nifti import read_nifti
from catalog.slices import thickness
from catalog.walk import NotDicom, walk

if TYPE_CHECKING:
    import highdicom as hd
    from pydicom import Dataset

__all__ = ["FileVolumes", "VolumeSource", "arranged", "gone", "in_slice_order", "read_dataset", "read_series"]


_DRIFT = 0.1
"""Pixels that a slice may lie beside its place."""


class VolumeSource(Protocol):
    """Something that can be asked for an image by a reference."""

    def volume(self, ref: str) -> "hd.Volume":
        """The image as float32 in its own unit (rescaled), axes (slices, rows, columns), affine index → LPS mm.

        CatalogError where ``ref`` is unknown or is not one regular volume.
        """
        ...


class FileVolumes:
    """Volumes of files: ``ref`` is a folder that holds one DICOM series, or the path of a ``.nii``/``.nii.gz``."""

    def volume(self, ref: str) -> "hd.Volume":
        """As VolumeSource.volume."""
        if ref.endswith((".nii", ".nii.gz")):
            return read_nifti(Path(ref))
        if not os.path.isdir(ref):
            raise CatalogError("no such DICOM folder or NIfTI file", about=ref, remedy="check the path")
        return read_series((file.path for file in list_files(ref) if not file.problem), about=ref, lenient=True)


def read_dataset(path: str | Path, *, pixels: bool = True) -> "Dataset":
    """The data set of a DICOM file, here or at a URL, with or without preamble; without ``pixels`` what stands before them.

    Its file meta group names a transfer syntax even where the file's does not. Raises CatalogError where the file has gone, is
    not DICOM or inflates to too much, or OSError.
    """
    from pydicom.errors import InvalidDicomError
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    try:
        with open_binary(path) as file:
            try:
                return deflated.read(file, about=path, stop_before_pixels=not pixels)
            except InvalidDicomError:
                walk(path)
            file.seek(0)
            dataset = deflated.read(file, about=path, stop_before_pixels=not pixels, force=True)
    except FileNotFoundError:
        raise gone(path) from None
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def read_series(paths: Iterable[str | Path], *, about: str, lenient: bool = False) -> "hd.Volume":
    """The volume of a series' files or URLs; with ``lenient`` files that are not DICOM images are passed over.

    Slices are ordered so that (slices, rows, columns) is right-handed, whatever the order of ``paths``. Raises CatalogError
    where they are several series, irregularly spaced, differently oriented, or cannot be decoded.
    """
    import highdicom as hd
    from pydicom import config

    datasets = []
    with config.disable_value_validation():
        for path in paths:
            try:
                dataset = read_dataset(path)
            except NotDicom:
                if lenient:
                    continue
                raise
            if not lenient or "PixelData" in dataset:
                datasets.append(dataset)
    _refuse_mixture(datasets, about)
    try:
        if int(datasets[0].get("NumberOfFrames") or 1) > 1:
            found = hd.Image.from_dataset(datasets[0], copy=False).get_volume(dtype=np.float32)
        elif all(map(_plain, datasets)):
            return _stacked(datasets, about)
        else:
            if len(datasets) == 1:  # where highdicom would take it for 1 mm thick
                datasets[0].SpacingBetweenSlices = thickness(datasets[0].get) or 1.0
            found = hd.get_volume_from_series(datasets, dtype=np.float32)
    except (ValueError, AttributeError, RuntimeError, NotImplementedError, KeyError, TypeError) as problem:
        raise CatalogError(f"not one regular volume: {_line(problem)}", about=about) from problem
    if found.number_of_channel_dimensions:
        raise CatalogError("colour images are not volumes", about=about)
    return found


def gone(path: str | Path) -> CatalogError:
    """What to raise where a file of the catalog is no longer there."""
    return CatalogError("the file has gone", about=str(path), remedy="bring the file back, or ingest its folder again")


def arranged(headers: Sequence["Dataset"], *, about: str) -> "tuple[list[Dataset], hd.VolumeGeometry]":
    """Single-frame ``headers`` in the order of the slices of ``read_series``, and its grid; one slice that does not say how
    thick it is has 1 mm there."""
    import highdicom as hd
    from highdicom.spatial import get_series_volume_positions

    first = headers[0]
    try:
        between, order = thickness(first.get) or 1.0, [0]
        if len(headers) > 1:
            between, order = get_series_volume_positions(headers)
        if order is None:
            raise ValueError("slices are missing, doubled or unevenly spaced")
        ordered = [header for _, header in sorted(zip(order, headers, strict=True), key=lambda pair: pair[0])]
        alike = {
            (h.Rows, h.Columns, *h.ImageOrientationPatient, *h.PixelSpacing, h.get("FrameOfReferenceUID")) for h in headers
        }
        if len(alike) > 1:
            raise ValueError("its slices differ in size, spacing, orientation or frame of reference")
        grid = hd.VolumeGeometry.from_attributes(
            image_position=ordered[0].ImagePositionPatient,
            image_orientation=first.ImageOrientationPatient,
            rows=first.Rows,
            columns=first.Columns,
            pixel_spacing=first.PixelSpacing,
            spacing_between_slices=between,
            number_of_frames=len(headers),
            coordinate_system="PATIENT",
            frame_of_reference_uid=first.get("FrameOfReferenceUID"),
        )
        _refuse_drift(ordered, grid)
    except (AttributeError, ValueError, TypeError) as problem:
        raise CatalogError(f"not one regular volume: {_line(problem)}", about=about) from problem
    return ordered, grid


def _refuse_drift(ordered: Sequence["Dataset"], grid: "hd.VolumeGeometry") -> None:
    """ValueError where slices lie further beside their place on ``grid`` than _DRIFT pixels: a tilted gantry."""
    stored = np.array([header.ImagePositionPatient for header in ordered], float)
    placed = grid.map_indices_to_reference(np.array([[index, 0, 0] for index in range(len(ordered))]))
    within = (stored - placed) @ (grid.affine[:3, 1:3] / np.linalg.norm(grid.affine[:3, 1:3], axis=0))
    drift = float(np.abs(within).max())
    if drift > _DRIFT * min(grid.spacing[1:]):
        raise ValueError(f"the gantry was tilted: slices lie up to {drift:.2f} mm beside their normal")


def in_slice_order(headers: Sequence["Dataset"], *, about: str) -> "list[Dataset]":
    """``headers`` in the order of the slices of ``read_series``; one, which may be multi-frame, is in order."""
    return list(headers) if len(headers) < 2 else arranged(headers, about=about)[0]


def _plain(dataset: "Dataset") -> bool:
    """Whether a linear rescale is all there is between the stored values and the image's."""
    special = ("RealWorldValueMappingSequence", "ModalityLUTSequence", "PresentationLUTSequence", "PresentationLUTShape")
    grey = dataset.get("PhotometricInterpretation") == "MONOCHROME2" and dataset.get("SamplesPerPixel", 1) == 1
    return bool(grey and not any(keyword in dataset for keyword in special))


def _stacked(datasets: "Sequence[Dataset]", about: str) -> "hd.Volume":
    """What highdicom.get_volume_from_series gives for plain slices, several times faster."""
    import highdicom as hd

    datasets, grid = arranged(datasets, about=about)
    array = np.empty(grid.spatial_shape, np.float32)
    for plane, dataset in zip(array, datasets, strict=True):
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
        plane[...] = dataset.pixel_array * np.float64(slope) + intercept
    return hd.Volume(array, grid.affine, "PATIENT", frame_of_reference_uid=grid.frame_of_reference_uid)


def _refuse_mixture(datasets: Sequence["Dataset"], about: str) -> None:
    if not datasets:
        raise CatalogError("no DICOM image in it", about=about, remedy="check the path")
    if len({dataset.get("SeriesInstanceUID") for dataset in datasets}) > 1:
        raise CatalogError(
            "several series", about=about, remedy="put each series into a folder of its own, or ingest the folder"
        )
    if len(datasets) > 1 and any(int(dataset.get("NumberOfFrames") or 1) > 1 for dataset in datasets):
        raise CatalogError("several multi-frame objects in one series", about=about)


def _line(problem: Any) -> str:
    return " ".join(str(problem).split())[:200]
