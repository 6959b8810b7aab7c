"""Whatever a series says of its patient and study, a segmentation of it is valid DICOM, and is about that patient."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import config
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from catalog import Algorithm, Archive, LabelSet, Structure, deterministic_uid, seg

Stored = Callable[..., tuple[Archive, str]]
Errors = Callable[[Path], list[str]]

LABELS = LabelSet(
    "local",
    (
        Structure("Rate, gauche é" + "è" * 50, 2, ("99LOCAL", "1", "Spleen " * 12), (90, 80, 200)),
        Structure("rest", 9, ("SCT", "85756007", "Tissue"), (90, 80, 200)),
    ),
)
HALF_A_CODE = Dataset()
HALF_A_CODE.CodeValue = "X1"
ONE_ID = Dataset()
ONE_ID.PatientID = "1"

FAULTS: dict[str, dict[str, Any]] = {
    "none": {},
    "a sex that is none": {"PatientSex": "U"},
    "an age without unit": {"PatientAge": "45"},
    "dates with full stops": {"StudyDate": "2020.01.01", "StudyTime": "12:30", "PatientBirthDate": "1.1.1970"},
    "half a clinical trial": {"ClinicalTrialSponsorName": "", "ClinicalTrialProtocolID": "x"},
    "a point in time of no trial": {"ClinicalTrialTimePointDescription": "baseline"},
    "de-identified, not said how": {"PatientIdentityRemoved": "YES"},
    "de-identified by half a code": {"PatientIdentityRemoved": "YES", "DeidentificationMethodCodeSequence": [HALF_A_CODE]},
    "half a code": {"ProcedureCodeSequence": [HALF_A_CODE]},
    "sequences without items": {"ProcedureCodeSequence": [], "ReferencedStudySequence": []},
    "references to nothing": {"ReferencedStudySequence": [Dataset()], "ReferencedPatientSequence": [Dataset()]},
    "half an identifier": {"OtherPatientIDsSequence": [ONE_ID]},
    "empty optional attributes": {"PatientAge": "", "PatientWeight": "", "PatientComments": "", "StudyDescription": ""},
    "too long": {"AccessionNumber": "1" * 20, "StudyID": "1" * 20, "StudyDescription": "x" * 80, "PatientName": "x" * 80},
    "an animal": {"PatientSpeciesDescription": "dog", "ResponsiblePerson": "Doe^J"},
    "another enumeration": {"PregnancyStatus": 9, "PatientSexNeutered": "X"},
    "Latin-1": {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^J"},
    "no character set": {"SpecificCharacterSet": None, "PatientName": "Müller^J"},
    "no patient": {"PatientID": None, "PatientName": None, "PatientBirthDate": None, "PatientSex": None, "StudyDate": None},
}


def faulty(header: Dataset, fault: dict[str, Any]) -> Dataset:
    with config.disable_value_validation():
        for keyword, value in fault.items():
            if value is None:
                header.pop(keyword, None)
            else:
                setattr(header, keyword, value)
    return header


def write(archive: Archive, uid: str, path: Path, fault: dict[str, Any], *, drawn: bool = True, **given: Any) -> None:
    grid = archive.geometry(uid)
    mask = np.zeros(grid.spatial_shape, np.uint8)
    mask[2, 1:5, 3:9] = 2 * drawn
    headers = [faulty(header, fault) for header in archive.sources(uid)]
    uids = {"sop_uid": deterministic_uid("t"), "series_uid": deterministic_uid("t", "series")}
    told = {**uids, "description": "un été " * 12, "author": "Ännä^Lee=" + "é" * 90, **given}
    seg.encode(grid.with_array(mask), headers, LABELS, **told).save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_segmentation_is_valid_whatever_its_image_says(fault: str, stored: Stored, dciodvfy: Errors, tmp_path: Path) -> None:
    archive, uid = stored()
    write(archive, uid, tmp_path / "seg.dcm", FAULTS[fault])
    assert dciodvfy(tmp_path / "seg.dcm") == []
    assert pydicom.dcmread(tmp_path / "seg.dcm").PatientID == ("" if fault == "no patient" else "P1")


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("receipt", ["", "ab" * 32])
def test_so_is_a_predicted_or_empty_one(
    drawn: bool, receipt: str, affine: np.ndarray, stored: Stored, dciodvfy: Errors, tmp_path: Path
) -> None:
    archive, uid = stored(affine)
    write(archive, uid, tmp_path / "seg.dcm", {}, drawn=drawn, algorithm=Algorithm("modèle " * 10, "3", receipt))
    assert dciodvfy(tmp_path / "seg.dcm") == []


def test_what_is_valid_is_taken_over(stored: Stored, tmp_path: Path) -> None:
    archive, uid = stored()
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "P5-0808E", "SRT", "CT of chest"
    trial = {"ClinicalTrialSponsorName": "S", "ClinicalTrialProtocolID": "P", "ClinicalTrialSubjectID": "4"}
    told = {"PatientName": "Müller^J", "PatientAge": "045Y", "ProcedureCodeSequence": [code], "StudyDate": "20200101", **trial}
    write(archive, uid, tmp_path / "seg.dcm", {"SpecificCharacterSet": "ISO_IR 100", **told})
    found = pydicom.dcmread(tmp_path / "seg.dcm")
    assert {keyword: found.get(keyword) for keyword in told} == told
    assert found.SpecificCharacterSet == "ISO_IR 192"
    assert found.ClinicalTrialSiteName == ""


def test_a_value_that_cannot_be_read_keeps_no_label_from_being_made(stored: Stored, dciodvfy: Errors, tmp_path: Path) -> None:
    archive, uid = stored()
    weight = Tag("PatientWeight")
    headers = archive.sources(uid)
    headers[0]._dict[weight] = RawDataElement(weight, "DS", 4, b"abc ", 0, False, True)
    grid = archive.geometry(uid)
    told = {"sop_uid": "1.2.3", "series_uid": "1.2.4", "description": "d", "author": "a"}
    empty = grid.with_array(np.zeros(grid.spatial_shape, np.uint8))
    seg.encode(empty, headers, LABELS, **told).save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    assert dciodvfy(tmp_path / "seg.dcm") == []


def test_the_header_itself_stays_as_it_is(stored: Stored, tmp_path: Path) -> None:
    archive, uid = stored()
    header = faulty(archive.sources(uid)[0], FAULTS["half a clinical trial"])
    before = header.to_json()
    from catalog._inherited import inherited

    assert "ClinicalTrialProtocolID" not in inherited(header)
    assert header.to_json() == before
