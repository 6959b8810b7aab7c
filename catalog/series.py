"""Volumes as classic DICOM series: one single-frame MR or CT object a slice."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog._disk import TEMPORARY, full_disk, sync_folder
from catalog.errors import CatalogError
from catalog.uids import deterministic_uid

if TYPE_CHECKING:
    import highdicom as hd
    from pydicom import Dataset

__all__ = ["series_uids", "write_series"]

_STEPS = 65_535
_CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"


def series_uids(cohort: str, case: str) -> tuple[str, str, str]:
    """(StudyInstanceUID, SeriesInstanceUID, FrameOfReferenceUID) of a case, the same on every machine."""
    study, series, frame = (deterministic_uid(kind, cohort, case) for kind in ("study", "series", "frame of reference"))
    return study, series, frame


def write_series(
    image: "hd.Volume",
    folder: Path,
    *,
    patient_id: str,
    case: str,
    cohort: str = "",
    modality: str = "MR",
    description: str = "",
) -> str:
    """Write ``image`` into ``folder`` as 0001.dcm … and return its SeriesInstanceUID, which follows from (cohort, case).

    ``image``: any real dtype, axes (slices, rows, columns), affine index → LPS mm. Values that are whole and fit 16 bits are
    stored as they are; others by RescaleSlope and RescaleIntercept in 65,535 steps, so that they come back within half a
    step. (The classic MR IOD does not list the two; scanners write them and readers apply them. CT requires them.)
    Slices are written in the order in which (slices, rows, columns) is right-handed, as ``Archive.volume`` gives them back.

    The folder is there with every slice or not at all; one that is there is left as it is. Raises CatalogError where the
    modality is neither MR nor CT, a value is not finite, or the disk is full.
    """
    study, series, frame = series_uids(cohort, case)
    if folder.exists():
        return series
    if modality not in _CLASSES:
        raise CatalogError(f"modality {modality!r} cannot be written", about=case, remedy="MR and CT can")
    image = image.ensure_handedness("RIGHT_HANDED", flip_axis=0)
    stored, slope, intercept = _stored(image.array, about=case)
    header = _header(image, modality, slope, intercept, stored.dtype.kind == "i")
    header.PatientID, header.PatientName = patient_id[:64], patient_id[:64]
    header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = study, series, frame
    header.StudyDescription, header.SeriesDescription = cohort[:64], description[:64]
    temporary = folder.with_name(f"{TEMPORARY}{os.getpid()}-{folder.name}")
    try:
        with full_disk(folder):
            temporary.mkdir(parents=True)
            _write_slices(header, image, stored, temporary)
            sync_folder(temporary)
            with suppress(FileExistsError):
                temporary.rename(folder)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return series


def _write_slices(header: "Dataset", image: "hd.Volume", stored: np.ndarray, folder: Path) -> None:
    for number, pixels in enumerate(stored, start=1):
        uid = deterministic_uid("instance", header.SeriesInstanceUID, str(number))
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = uid
        header.InstanceNumber = number
        header.ImagePositionPatient = _decimals(image.affine[:3, :3] @ [number - 1, 0, 0] + image.affine[:3, 3])
        header.PixelData = pixels.tobytes()
        with (folder / f"{number:04d}.dcm").open("wb") as file:
            header.save_as(file, enforce_file_format=True)
            file.flush()
            os.fsync(file.fileno())


def _stored(values: np.ndarray, *, about: str) -> tuple[np.ndarray, float, float]:
    """(int16 or uint16 array, slope, intercept) with values = stored x slope + intercept."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise CatalogError("voxels are not finite numbers", about=about, remedy="replace them, as by numpy.nan_to_num")
    if values.dtype.kind in "iub" or (values == np.rint(values)).all():
        for kind in (np.int16, np.uint16):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return np.ascontiguousarray(values, dtype=kind), 1.0, 0.0
    # The text in the file is what readers compute with. Rounded up, the slope keeps the highest value inside 16 bits.
    intercept = float(_decimal(low))
    slope = float(_decimal(max((high - intercept) / (_STEPS - 1), np.finfo(np.float32).tiny) * (1 + 1e-9)))
    steps = np.rint((values.astype(np.float64) - intercept) / slope)
    return np.clip(steps, 0, _STEPS).astype(np.uint16), slope, intercept


def _header(image: "hd.Volume", modality: str, slope: float, intercept: float, signed: bool) -> "Dataset":
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID

    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = UID(_CLASSES[modality])
    header.file_meta.TransferSyntaxUID = UID(_EXPLICIT_LITTLE)
    for keyword in (
        *("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID", "PatientBirthDate"),
        *("PatientSex", "Laterality", "PositionReferenceIndicator", "PatientPosition", "AcquisitionNumber"),
    ):
        setattr(header, keyword, "" if keyword != "AcquisitionNumber" else None)
    header.SpecificCharacterSet = "ISO_IR 192"
    header.Modality, header.Manufacturer, header.SeriesNumber = modality, "", 1
    header.DerivationDescription = "converted from a volume file"
    if modality == "MR":
        header.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
        header.ScanningSequence, header.SequenceVariant, header.ScanOptions = "RM", "NONE", ""
        header.MRAcquisitionType, header.EchoTime, header.EchoTrainLength = "3D", None, None
    else:
        header.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        header.KVP, header.RescaleType = None, "HU"
    header.RescaleSlope, header.RescaleIntercept = _decimal(slope), _decimal(intercept)
    header.WindowCenter, header.WindowWidth = _window(image.array)
    header.ImageOrientationPatient = _decimals([*image.direction[:, 2], *image.direction[:, 1]])
    header.PixelSpacing = _decimals(image.pixel_spacing)
    header.SliceThickness = header.SpacingBetweenSlices = _decimal(image.spacing_between_slices)
    header.Rows, header.Columns = image.spatial_shape[1:]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, int(signed)
    return header


def _window(values: np.ndarray) -> tuple[str, str]:
    """Centre and width that show all but the outermost values, as a viewer should open the image."""
    low, high = (float(value) for value in np.percentile(values, (0.5, 99.5)))
    return _decimal((low + high) / 2), _decimal(max(high - low, 1.0))


def _decimal(value: float) -> str:
    """``value`` as a DICOM decimal string: at most 16 characters, as many digits as fit (PS3.5 §6.2)."""
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(value) + 0.0)


def _decimals(values: Any) -> list[str]:
    return [_decimal(value) for value in values]
