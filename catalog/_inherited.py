"""What a segmentation takes over from its image of patient and study (PS3.3 C.7.1, C.7.2), without the image's mistakes.

An image may come with a date that is none, a sequence without items or half of the Clinical Trial Subject module. Copied,
these would make the segmentation invalid, or keep it from being made; so what is not valid is left out, and the image keeps it.
"""

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset

__all__ = ["inherited"]

_UTF8 = "ISO_IR 192"
_AS_TEXT = {"DA", "DS", "DT", "IS", "TM"}
_TEXT = {"LO", "LT", "PN", "SH", "ST", "UC", "UT"}
_GROUPS = (0x0008, 0x0010, 0x0012, 0x0032, 0x0038, 0x0040)
_STUDY_ID = 0x00200010
_NEEDED = {"SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID"}
"""Taken as they are: without them it is another patient's, or no object at all."""
_EMPTY_IF_UNKNOWN = (
    *("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName"),
    *("StudyID", "AccessionNumber", "PatientID"),
)
_ENUMERATED: dict[str, set[Any]] = {
    "PatientSex": {"M", "F", "O"},
    "PatientSexNeutered": {"ALTERED", "UNALTERED"},
    "PregnancyStatus": {1, 2, 3, 4},
    "QualityControlSubject": {"YES", "NO"},
    "PatientIdentityRemoved": {"YES", "NO"},
}
_REFERENCE = ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID")
_ITEMS = {
    "ReferencedStudySequence": _REFERENCE,
    "ReferencedPatientSequence": _REFERENCE,
    "OtherPatientIDsSequence": ("PatientID", "TypeOfPatientID"),
}
"""What every item of a sequence must have; of codes see ``_whole``. Other sequences are not taken over."""
_ASKING = {
    *("PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription", "PatientBreedCodeSequence"),
    *("ResponsiblePerson", "ResponsiblePersonRole", "ResponsibleOrganization"),
}
"""Each asks for others beside it: not taken over."""
_TRIAL = ("ClinicalTrialSponsorName", "ClinicalTrialProtocolID")
_TRIAL_SUBJECT = ("ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID")
_TRIAL_EMPTY = ("ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialTimePointID")
_DEIDENTIFIED = ("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence")


def inherited(source: "Dataset") -> "Dataset":
    """The header ``source``, which stays as it is, with patient and study as a segmentation of it may state them, in UTF-8."""
    from pydicom import Dataset, config

    made = Dataset({tag: source.get_item(tag) for tag in source.keys()})  # noqa: SIM118
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        for tag in [tag for tag in source.keys() if tag.group in _GROUPS or tag == _STUDY_ID]:  # noqa: SIM118
            element = _readable(source, tag)
            if element is None or (element.keyword not in _NEEDED and not _valid(element)):
                del made[tag]
            elif element.VR in _TEXT:
                made.add_new(tag, element.VR, _decoded(element))
        made.SpecificCharacterSet = _UTF8
        _complete(made)
    return made


def _complete(made: "Dataset") -> None:
    """What has to be there, if only empty, and what may only be there with something else."""
    for keyword in _EMPTY_IF_UNKNOWN:
        made.setdefault(keyword, "")
    made.setdefault("SliceThickness", None)  # highdicom asks every source for it
    if all(made.get(name) for name in _TRIAL) and any(made.get(name) for name in _TRIAL_SUBJECT):
        for keyword in _TRIAL_EMPTY:
            made.setdefault(keyword, "")
    else:
        for tag in [element.tag for element in made.group_dataset(0x0012) if element.keyword not in _DEIDENTIFIED]:
            del made[tag]
    if made.get("PatientIdentityRemoved") == "YES" and not any(name in made for name in _DEIDENTIFIED[1:]):
        made.DeidentificationMethod = "not stated"


def _readable(source: "Dataset", tag: Any) -> "DataElement | None":
    try:
        return source[tag]
    except (ValueError, TypeError, NotImplementedError, LookupError):  # pydicom converts a value when it is first asked for
        return None


def _valid(element: "DataElement") -> bool:
    """Whether the value is one of its VR (PS3.5 §6.2), is one of those allowed, and of a sequence all items are whole."""
    from pydicom import config
    from pydicom.valuerep import validate_value

    if element.keyword in _ASKING:
        return False
    if element.VR == "SQ":
        return len(element.value) > 0 and all(_whole(element.keyword, item) for item in element.value)
    if element.is_empty:
        return element.keyword in _EMPTY_IF_UNKNOWN
    try:
        for value in element.value if element.VM > 1 else [element.value]:
            said = value.original_string if hasattr(value, "original_string") else value
            validate_value(element.VR, str(said) if element.VR in _AS_TEXT else said, config.RAISE)
            if element.VR == "PN" and any(len(group) > 64 for group in str(value).split("=")):  # as PS3.5 says, not pydicom
                return False
    except (ValueError, AttributeError, TypeError):
        return False
    return element.value in _ENUMERATED.get(element.keyword, {element.value}) if element.VM == 1 else True


def _whole(keyword: str, item: "Dataset") -> bool:
    if keyword.endswith("CodeSequence"):
        return bool(item.get("CodeMeaning") and item.get("CodeValue") and item.get("CodingSchemeDesignator"))
    return keyword in _ITEMS and all(item.get(name) for name in _ITEMS[keyword])


def _decoded(element: "DataElement") -> Any:
    return [str(value) for value in element.value] if element.VM > 1 else str(element.value or "")
