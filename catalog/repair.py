"""Objects that viewers write with known faults, mended from what the catalog holds (coercion, PS3.4 B.4.1.3).

Only what is certain is mended, and only in segmentations, structured reports and structure sets:

* a segmentation without pixel measures (OHIF 3.12 leaves its PixelMeasuresSequence empty, so nobody can read it): those of
  the series that it segments;
* StudyID ``No Study ID``, which dcmjs puts there where the study has none: the study's own;
* text in UTF-8 without a Specific Character Set, as dcmjs writes it: the character set is named.

What was there before stands in the Original Attributes Sequence (PS3.3 C.12.1), with when, by whom, and ``COERCE``.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from catalog.errors import CatalogError

if TYPE_CHECKING:
    from pydicom import Dataset

    from catalog.archive import Archive

__all__ = ["faults", "mends", "repair"]

SYSTEM = "Voxloop"
PLACEHOLDER = "No Study ID"
_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_REPORTS = "1.2.840.10008.5.1.4.1.1.88."
_TEXTS = ("SH", "LO", "ST", "LT", "UC", "UT", "PN")
_UTF8 = "ISO_IR 192"
_VERSION = b"\0\1"


def mends(sop_class: str) -> bool:
    """Whether objects of this SOP Class are looked at."""
    return sop_class in (_SEGMENTATION, _STRUCTURE_SET) or sop_class.startswith(_REPORTS)


def repair(dataset: "Dataset", archive: "Archive") -> list[str]:
    """Mend ``dataset`` in place; the keywords of the attributes that were changed, none where nothing was.

    Pixels are not looked at and need not be there. The file meta group's version is set right where it is not, which is
    no change of the data set. ``faults`` says what is still wrong.
    """
    if not mends(str(dataset.get("SOPClassUID", ""))):
        return []
    from pydicom import Dataset

    if hasattr(dataset, "file_meta") and dataset.file_meta.get("FileMetaInformationVersion") != _VERSION:
        dataset.file_meta.FileMetaInformationVersion = _VERSION
    before = Dataset()
    _name_character_set(dataset, before)
    source = _source(dataset, archive) if _placeheld(dataset) or _unmeasured(dataset) else []
    if _placeheld(dataset):
        before.StudyID, dataset.StudyID = dataset.StudyID, _study_id(source)
    if _unmeasured(dataset) and (measures := _measures(dataset, source)):
        shared = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
        before.SharedFunctionalGroupsSequence = [deepcopy(item) for item in shared]
        shared[0].PixelMeasuresSequence = [measures]
        dataset.SharedFunctionalGroupsSequence = shared
    changed = [element.keyword for element in before]
    if changed:
        _remember(dataset, before)
    return changed


def faults(dataset: "Dataset") -> list[str]:
    """What keeps others from reading the object, a line each."""
    if _unmeasured(dataset):
        return ["no pixel measures, and its series is not here to take them from"]
    return []


def _unmeasured(dataset: "Dataset") -> bool:
    """Whether a segmentation in patient coordinates does not say how large its pixels are (PS3.3 C.7.6.16.2.1)."""
    if dataset.get("SOPClassUID") != _SEGMENTATION:
        return False
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    if any("PlanePositionSlideSequence" in groups for groups in frames):
        return False
    return not any(_measured(groups) for groups in shared) and not all(_measured(groups) for groups in frames or [{}])


def _measured(groups: Any) -> bool:
    measures = groups.get("PixelMeasuresSequence")
    return bool(measures and measures[0].get("PixelSpacing"))


def _placeheld(dataset: "Dataset") -> bool:
    return bool(dataset.get("StudyID") == PLACEHOLDER)


def _source(dataset: "Dataset", archive: "Archive") -> "list[Any]":
    """The volumes (``catalog.volumes.SeriesVolume``) of the series that the object refers to; none where it is not here."""
    from catalog.volumes import volumes_of

    for uid in _referenced(dataset):
        with suppress(CatalogError, OSError):
            return volumes_of(archive.series_files(uid), uid, ("SliceThickness", "StudyID"))
    return []


def _referenced(dataset: "Dataset") -> Iterator[str]:
    """The series it names: of a segmentation at the top, of a report among its evidence (PS3.3 C.17.2)."""
    studies = (dataset, *(dataset.get("CurrentRequestedProcedureEvidenceSequence") or ()))
    for study in studies:
        for series in study.get("ReferencedSeriesSequence") or ():
            if uid := str(series.get("SeriesInstanceUID") or ""):
                yield uid


def _study_id(source: Sequence[Any]) -> str:
    return str(source[0].slices[0]["StudyID"]) if source else ""


def _measures(dataset: "Dataset", source: Sequence[Any]) -> "Dataset | None":
    """Pixel spacing, slice thickness and distance of slices (mm) of the volume that was segmented.

    None where it is not told which, or where the segmentation's frames are of another size: then its pixels are, too.
    """
    from pydicom import Dataset

    wanted = {
        str(instance.ReferencedSOPInstanceUID)
        for series in dataset.get("ReferencedSeriesSequence") or ()
        for instance in series.get("ReferencedInstanceSequence") or ()
        if "ReferencedSOPInstanceUID" in instance
    }
    fitting = [volume for volume in source if not wanted or wanted & {found.sop_uid for found in volume.slices}]
    told = {(found["PixelSpacing"], found["Rows"], found["Columns"]) for volume in fitting for found in volume.slices}
    if len(told) != 1:
        return None
    ((_, rows, columns),) = told
    spacing = fitting[0].slices[0].numbers("PixelSpacing")
    if len(spacing) != 2 or (str(dataset.get("Rows")), str(dataset.get("Columns"))) != (rows, columns):
        return None
    between, thick = _between(fitting[0]), fitting[0].slices[0].numbers("SliceThickness")
    measures = Dataset()
    measures.PixelSpacing = [_decimal(value) for value in spacing]
    if thick or between:
        measures.SliceThickness = _decimal(thick[0] if thick and thick[0] > 0 else between or 0)
    if between:
        measures.SpacingBetweenSlices = _decimal(between)
    return measures


def _between(volume: Any) -> float | None:
    """How far the slices' centres lie apart, in mm; None where there is one slice, or they lie unevenly."""
    if volume.geometry is not None and len(volume.slices) > 1:
        return float(volume.geometry.spacing[0])
    told = volume.slices[0].numbers("SpacingBetweenSlices")
    return abs(told[0]) if told and told[0] else None


def _decimal(value: float) -> Any:
    """A decimal string of at most 16 characters (PS3.5 §6.2)."""
    from pydicom.valuerep import DSfloat

    return DSfloat(float(f"{value:.10g}"), auto_format=True)


def _name_character_set(dataset: "Dataset", before: "Dataset") -> None:
    """Without a character set text is ASCII; bytes beyond that which are UTF-8 can hardly be anything else."""
    if dataset.get("SpecificCharacterSet"):
        return
    found = [(holder, element) for holder, element in _texts(dataset) if not str(element.value).isascii()]
    try:
        mended = [(holder, element, _decoded(element.value)) for holder, element in found]
    except (UnicodeDecodeError, UnicodeEncodeError):
        return
    if not mended:
        return
    before.add_new("SpecificCharacterSet", "CS", None)
    dataset.SpecificCharacterSet = _UTF8
    for holder, element, value in mended:
        holder.add_new(element.tag, element.VR, value)
    dataset.set_original_encoding(*dataset.original_encoding, _UTF8)


def _decoded(value: Any) -> Any:
    """pydicom reads what has no character set as Latin-1, byte by byte."""
    from pydicom.multival import MultiValue

    if isinstance(value, MultiValue):
        return [_decoded(one) for one in value]
    return str(value).encode("latin-1").decode("utf-8")


def _texts(dataset: "Dataset") -> "Iterator[tuple[Dataset, Any]]":
    """Every text with the data set or item that holds it."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value or ():
                yield from _texts(item)
        elif element.VR in _TEXTS and element.value:
            yield dataset, element


def _remember(dataset: "Dataset", before: "Dataset") -> None:
    """Add an item to the Original Attributes Sequence: the values as they came."""
    from pydicom import Dataset

    item = Dataset()
    item.ModifiedAttributesSequence = [before]
    item.AttributeModificationDateTime = datetime.now(UTC).strftime("%Y%m%d%H%M%S.%f+0000")
    item.ModifyingSystem = SYSTEM
    item.SourceOfPreviousValues = str(dataset.get("Manufacturer") or "")[:64]
    item.ReasonForTheAttributeModification = "COERCE"
    dataset.OriginalAttributesSequence = [*(dataset.get("OriginalAttributesSequence") or ()), item]
