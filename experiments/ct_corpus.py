"""Made-up CT instances whose headers are as rich as a scanner's: what ingest is measured on."""

from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from catalog import deterministic_uid

__all__ = ["ct_corpus"]

SLICES = 100  # instances a series
_UID, _NUMBER, _POSITION = "9" * 60, "777777", "-5555.55"
"""What the one file that is made for a series holds in the places that differ from slice to slice."""


def ct_corpus(folder: Path, n: int, *, pixels: int = 128, slices: int = SLICES) -> Path:
    """``n`` CT instances of ``pixels`` squared (uint16) in series of ``slices``, two a study, every third of them implicit
    little endian, under ``folder``, which is returned; those that are there are left alone."""
    for series in range(-(-n // slices)):
        target = folder / f"patient-{series // 4:05d}" / f"study-{series // 2:05d}" / f"series-{series:05d}"
        count = min(slices, n - series * slices)
        if target.is_dir() and len(list(target.iterdir())) >= count:
            continue
        target.mkdir(parents=True, exist_ok=True)
        made = _encoded(_instance(series, pixels), implicit=series % 3 == 0)
        for number in range(count):
            (target / f"IM{number:04d}").write_bytes(_slice(made, series, number))
    return folder


def _slice(made: bytes, series: int, number: int) -> bytes:
    uid = f"2.25.{series:020d}{number:035d}".replace("2.25.0", "2.25.1", 1)
    assert len(uid) == len(_UID)
    made = made.replace(_UID.encode(), uid.encode())
    made = made.replace(_NUMBER.encode(), f"{number + 1:>{len(_NUMBER)}}".encode())
    return made.replace(_POSITION.encode(), f"{-1.5 * number:>{len(_POSITION)}.2f}".encode())


def _encoded(dataset: Dataset, *, implicit: bool) -> bytes:
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    buffer = DicomBytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return bytes(buffer.getvalue())


def _instance(series: int, pixels: int) -> Dataset:
    dataset, study = Dataset(), series // 2
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = CTImageStorage, _UID
    dataset.file_meta.ImplementationVersionName = "VOXLOOP_BENCH"
    _identify(dataset, series, study)
    _acquire(dataset)
    _refer(dataset, series, study)
    _add_private(dataset)
    image = np.random.default_rng(series).normal(1064, 60, (pixels, pixels)).clip(0, 4095).astype(np.uint16)
    for name, value in {
        **{"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "Rows": pixels, "Columns": pixels},
        **{"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0, "PixelSpacing": [0.7, 0.7]},
        **{"SmallestImagePixelValue": int(image.min()), "LargestImagePixelValue": int(image.max())},
        **{"WindowCenter": [40, 400], "WindowWidth": [350, 1500], "WindowCenterWidthExplanation": ["SOFT", "BONE"]},
        **{"RescaleIntercept": -1024, "RescaleSlope": 1, "RescaleType": "HU", "LossyImageCompression": "00"},
    }.items():
        setattr(dataset, name, value)
    dataset.add_new("PixelData", "OW", image.tobytes())
    return dataset


def _identify(dataset: Dataset, series: int, study: int) -> None:
    day, time = f"20{10 + study % 15:02d}{1 + study % 12:02d}{1 + study % 28:02d}", f"{8 + study % 10:02d}1112.123000"
    for name in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "InstanceCreationDate"):
        setattr(dataset, name, day)
    for name in ("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime", "InstanceCreationTime"):
        setattr(dataset, name, time)
    for name, value in {
        **{"SpecificCharacterSet": "ISO_IR 192", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "HELIX"]},
        **{"SOPClassUID": CTImageStorage, "SOPInstanceUID": _UID, "StudyInstanceUID": deterministic_uid("study", str(study))},
        **{"SeriesInstanceUID": deterministic_uid("series", str(series)), "FrameOfReferenceUID": deterministic_uid(str(study))},
        **{"AccessionNumber": f"A{study:07d}", "StudyID": str(study % 999), "SeriesNumber": series % 2 + 1},
        **{"AcquisitionNumber": 1, "InstanceNumber": _NUMBER, "Modality": "CT", "StudyDescription": "CT Thorax / Abdomen"},
        **{"SeriesDescription": f"Abdomen {series % 2}", "Manufacturer": "Made Up", "ManufacturerModelName": "Sixty-Four"},
        **{"InstitutionName": "Hôpital Général", "InstitutionAddress": "1 rue de l'Exemple", "StationName": "CT01"},
        **{"InstitutionalDepartmentName": "Radiology", "ReferringPhysicianName": "Referring^Doctor^^Dr"},
        **{"PerformingPhysicianName": "Performing^Doctor", "OperatorsName": "Operator^One"},
        **{"PatientName": f"Müller^Jürgen{study // 2}", "PatientID": f"P{study // 2:06d}", "PatientBirthDate": "19500101"},
        **{"PatientSex": "F", "PatientAge": "074Y", "PatientSize": "1.7", "PatientWeight": "70", "PatientComments": "none"},
    }.items():
        setattr(dataset, name, value)


def _acquire(dataset: Dataset) -> None:
    for name, value in {
        **{"ContrastBolusAgent": "APPLIED", "BodyPartExamined": "ABDOMEN", "ScanOptions": "HELIX", "SliceThickness": "1.5"},
        **{"KVP": "120", "DataCollectionDiameter": "500", "DeviceSerialNumber": "12345", "SoftwareVersions": "v1.2.3"},
        **{"ProtocolName": "AbdomenRoutine", "ReconstructionDiameter": "350", "DistanceSourceToDetector": "1085.6"},
        **{"DistanceSourceToPatient": "595", "GantryDetectorTilt": "0", "TableHeight": "150", "RotationDirection": "CW"},
        **{"ExposureTime": "500", "XRayTubeCurrent": "250", "Exposure": "125", "FilterType": "0", "GeneratorPower": "35"},
        **{"FocalSpots": "1.2", "DateOfLastCalibration": "20240101", "TimeOfLastCalibration": "010101"},
        **{"ConvolutionKernel": ["B30f", "3"], "PatientPosition": "HFS", "SingleCollimationWidth": 0.6},
        **{"TotalCollimationWidth": 38.4, "TableSpeed": 46.0, "SpiralPitchFactor": 0.6, "CTDIvol": 8.1},
        **{"ExposureModulationType": "XYZ_EC", "ImagePositionPatient": ["-175.0", "-310.2", _POSITION]},
        **{"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PositionReferenceIndicator": "", "SliceLocation": _POSITION},
        **{"RequestedProcedureDescription": "CT abdomen", "PerformedProcedureStepStartDate": "20240101"},
        **{"PerformedProcedureStepStartTime": "101112", "PerformedProcedureStepID": "X1"},
    }.items():
        setattr(dataset, name, value)


def _refer(dataset: Dataset, series: int, study: int) -> None:
    def referenced(sop_class: str, uid: str) -> Dataset:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        return item

    region, procedure, request = Dataset(), Dataset(), Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "113345001", "SCT", "Abdomen"
    procedure.CodeValue, procedure.CodingSchemeDesignator, procedure.CodeMeaning = "CTAB", "99X", "CT abdomen"
    procedure.AnatomicRegionSequence = [region]
    request.RequestedProcedureID, request.ScheduledProcedureStepID = "R1", "S1"
    dataset.ReferencedStudySequence = [referenced("1.2.840.10008.3.1.2.3.1", dataset.StudyInstanceUID)]
    images = [deterministic_uid("reference", str(series), str(number)) for number in range(4)]
    dataset.ReferencedImageSequence = [referenced(CTImageStorage, uid) for uid in images[:3]]
    dataset.SourceImageSequence = [referenced(CTImageStorage, images[3])]
    dataset.ProcedureCodeSequence, dataset.RequestAttributesSequence = [procedure], [request]


def _add_private(dataset: Dataset) -> None:
    numbers = dataset.private_block(0x0019, "MADE UP CT", create=True)
    for offset in range(12):
        numbers.add_new(0x10 + offset, "IS" if offset % 2 else "DS", str(offset * 3))
    others = dataset.private_block(0x0021, "MADE UP OTHER", create=True)
    for offset, vr, value in [(1, "OB", bytes(512)), (2, "LO", "Privé"), (3, "UN", b"\1\2" * 40), (4, "FD", [1.5, 2.5])]:
        others.add_new(offset, vr, value)
