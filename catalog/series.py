"""Volumes as classic DICOM series: one single-frame MR or CT object a slice."""

import os
import shutil
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog.disk import TEMPORARY, full_disk, sync_files, sync_folder
from catalog.errors import CatalogError
from catalog.uids import deterministic_uid

if TYPE_CHECKING:
    import highdicom as hd
    from pydicom import Dataset

__all__ = ["Series", "as_series", "series_uids", "write_series", "write_slices"]

_STEPS = 65_535
_CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_UTF8 = "ISO_IR 192"


def series_uids(cohort: str, case: str) -> tuple[str, str, str]:
    """(StudyInstanceUID, SeriesInstanceUID, FrameOfReferenceUID) of a case, the same on every machine."""
    study, series, frame = (deterministic_uid(kind, cohort, case) for kind in ("study", "series", "frame of reference"))
    return study, series, frame


@dataclass(frozen=True)
class Series:
    """A volume as it goes into files: a header a slice without pixels, and the stored pixels, axes (slices, rows, columns)."""

    headers: "Sequence[Dataset]"
    pixels: np.ndarray


def as_series(
    image: "hd.Volume",
    *,
    patient_id: str,
    case: str,
    cohort: str = "",
    modality: str = "MR",
    description: str = "",
) -> Series:
    """What ``write_series`` writes, nothing written yet."""
    if modality not in _CLASSES:
        raise CatalogError(f"modality {modality!r} cannot be written", about=case, remedy="MR and CT can")
    image = image.ensure_handedness("RIGHT_HANDED", flip_axis=0)
    stored, slope, intercept = _stored(image.array, about=case)
    header = _header(image, modality, slope, intercept, stored.dtype.kind == "i")
    header.PatientID = header.PatientName = patient_id[:64]
    header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = series_uids(cohort, case)
    header.StudyDescription, header.SeriesDescription = cohort[:64], description[:64]
    return Series([_slice(header, image, number) for number in range(1, len(stored) + 1)], stored)


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
    if not folder.exists():
        told = {"patient_id": patient_id, "case": case, "cohort": cohort, "modality": modality, "description": description}
        write_slices(as_series(image, **told), folder)
    return series_uids(cohort, case)[1]


def write_slices(series: Series, folder: Path) -> None:
    """Write the files of a series into ``folder``, which is there with every slice or not at all."""
    temporary = folder.with_name(f"{TEMPORARY}{os.getpid()}-{folder.name}")
    try:
        with full_disk(folder):
            shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had our number
            temporary.mkdir(parents=True)
            paths = [temporary / f"{number:04d}.dcm" for number in range(1, len(series.pixels) + 1)]
            fixed = _fixed_parts(series.headers[0])
            for path, header, pixels in zip(paths, series.headers, series.pixels, strict=True):
                path.write_bytes(_file(fixed, header, pixels))
            sync_files(paths)
            sync_folder(temporary)
            with suppress(FileExistsError):
                temporary.rename(folder)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _slice(header: "Dataset", image: "hd.Volume", number: int) -> "Dataset":
    """The header of one slice; it shares the elements that all slices have in common."""
    from pydicom import Dataset

    found = Dataset(dict(header.items()))
    uid = deterministic_uid("instance", header.SeriesInstanceUID, str(number))
    corner = image.affine[:3, :3] @ [number - 1, 0, 0] + image.affine[:3, 3]
    for tag, vr, value in zip(_VARYING, ("UI", "IS", "DS"), (uid, number, _decimals(corner)), strict=True):
        found.add_new(tag, vr, value)  # a new element: to set the value would change it in every slice
    return found


_VARYING = (0x00080018, 0x00200013, 0x00200032)  # SOPInstanceUID, InstanceNumber, ImagePositionPatient


def _fixed_parts(header: "Dataset") -> list[bytes]:
    """The encoded elements before, between and after those that vary by slice: encoding them is most of the work."""
    ends = (0, *_VARYING, 0x7FE00010)
    return [_encoded(header[start + 1 : end]) for start, end in pairwise(ends)]


def _file(fixed: Sequence[bytes], header: "Dataset", pixels: np.ndarray) -> bytes:
    """A slice as a DICOM file, explicit VR little endian (PS3.10 §7)."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import UID

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    meta.TransferSyntaxUID = UID(_EXPLICIT_LITTLE)
    file = DicomBytesIO()
    file.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(file, meta)
    for part, tag in zip(fixed, (*_VARYING, None), strict=True):
        file.write(part)
        if tag is not None:
            file.write(_encoded(header[tag : tag + 1]))
    padded = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()
    file.write(struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, len(padded)) + padded)
    return bytes(file.getvalue())


def _encoded(elements: "Dataset") -> bytes:
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, False
    write_dataset(file, elements, parent_encoding=_UTF8)  # the part with SpecificCharacterSet is another
    return bytes(file.getvalue())


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
    slope = float(_decimal(max((high - intercept) / (_STEPS - 1), 1e-38)))
    steps = np.rint((values.astype(np.float64) - intercept) / slope)
    return np.clip(steps, 0, _STEPS).astype(np.uint16), slope, intercept


def _header(image: "hd.Volume", modality: str, slope: float, intercept: float, signed: bool) -> "Dataset":
    from pydicom import Dataset
    from pydicom.uid import UID

    header = Dataset()
    header.SOPClassUID = UID(_CLASSES[modality])
    for keyword in (
        *("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID", "PatientBirthDate"),
        *("PatientSex", "Laterality", "PositionReferenceIndicator", "PatientPosition", "AcquisitionNumber"),
    ):
        setattr(header, keyword, "" if keyword != "AcquisitionNumber" else None)
    header.SpecificCharacterSet = _UTF8
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

    return str(format_number_as_ds(float(value) + 0.0))


def _decimals(values: Any) -> list[str]:
    return [_decimal(value) for value in values]
