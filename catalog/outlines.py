"""What others have outlined, in a file: a DICOM SEG, an RT Structure Set, a NIfTI label map."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog import rtstruct, seg
from catalog.errors import CatalogError
from catalog.grid import placed
from catalog.labelset import LabelSet
from catalog.matching import Outlined, short
from catalog.nifti import lps_affine, open_nifti, right_angled, voxels
from catalog.nifti_folder import NiftiFolder
from catalog.sources import read_dataset

if TYPE_CHECKING:
    import highdicom as hd
    from pydicom import Dataset

__all__ = ["OUTLINES", "NotOutlines", "Outlines", "is_nifti_name", "read_outlines"]

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
OUTLINES = (*SEGMENTATIONS, rtstruct.RT_STRUCTURE_SET)
"""The SOPClassUIDs of DICOM objects that are outlines: Segmentation and Label Map Segmentation Storage, RT Structure Set."""


class NotOutlines(CatalogError):
    """A DICOM object of another kind."""


@dataclass(frozen=True)
class Outlines:
    """``identity`` is the SOPInstanceUID, or the digest of a file that has none; ``series`` are the SeriesInstanceUIDs that
    it says it was drawn on, of a NIfTI file its name; ``images`` the SOPInstanceUIDs where it names no series.

    ``label_map(grid, values)`` gives a uint8 label map on the grid, of the ``named`` in ``values`` (number → voxel value), or
    raises CatalogError as ``catalog.seg.label_map`` and ``catalog.rtstruct.label_map``. ``shows(grid, number)`` says whether
    there is anything of one that has no voxel in that label map: contours that enclose no voxel's centre, shares below the
    threshold.
    """

    kind: str
    identity: str
    series: tuple[str, ...]
    images: tuple[str, ...]
    author: str
    named: tuple[Outlined, ...]
    label_map: "Callable[[hd.VolumeGeometry, Mapping[int, int]], np.ndarray]"
    shows: "Callable[[hd.VolumeGeometry, int], bool]"


def is_nifti_name(path: str | Path) -> bool:
    """Whether a file's name says that it is NIfTI."""
    return str(path).endswith((".nii", ".nii.gz"))


def read_outlines(path: str | Path, labels: LabelSet, *, threshold: float = 0.5) -> Outlines:
    """What the file at ``path`` (or URL) outlines; ``threshold`` is for FRACTIONAL segmentations.

    NotOutlines where it is none of the three, NotDicom or another CatalogError where it cannot be read.
    """
    if is_nifti_name(path):
        return _nifti(Path(path), labels)
    dataset = read_dataset(path)
    sop_class = str(dataset.get("SOPClassUID") or "")
    if sop_class == rtstruct.RT_STRUCTURE_SET:
        return _rtstruct(dataset)
    if sop_class in SEGMENTATIONS:
        return _segmentation(dataset, threshold)
    said = dataset.get("Modality") or sop_class or "without a SOPClassUID"
    remedy = "name DICOM SEG, RT Structure Sets or NIfTI label maps"
    raise NotOutlines(f"the object outlines nothing: {said}", about=str(path), remedy=remedy)


def _segmentation(dataset: "Dataset", threshold: float) -> Outlines:
    uid = str(dataset.SOPInstanceUID)
    opened = seg.opened(dataset)
    limit = threshold if opened.segmentation_type.value == "FRACTIONAL" else None

    def label_map(grid: "hd.VolumeGeometry", values: Mapping[int, int]) -> np.ndarray:
        return seg.label_map(seg.opened(dataset, grid), grid, values, threshold=limit, about=uid)

    def shows(grid: "hd.VolumeGeometry", number: int) -> bool:
        return limit is not None and seg.shows(seg.opened(dataset, grid), number)

    kind = f"SEG {opened.segmentation_type.value}" + (f" from {limit:g}" if limit else "")
    author = _first(dataset, "ContentCreatorName", "OperatorsName", "Manufacturer")
    told = _told(dataset, "ReferencedSeriesSequence")
    return Outlines(kind, uid, *told, author, tuple(seg.segments(opened)), label_map, shows)


def _rtstruct(dataset: "Dataset") -> Outlines:
    uid = str(dataset.SOPInstanceUID)

    def label_map(grid: "hd.VolumeGeometry", values: Mapping[int, int]) -> np.ndarray:
        return rtstruct.label_map(dataset, grid, values, about=uid)

    interpreters = [_first(roi, "ROIInterpreter") for roi in dataset.get("RTROIObservationsSequence") or ()]
    author = next(filter(None, interpreters), "") or _first(dataset, "OperatorsName", "Manufacturer")
    told = _told(dataset, "ReferencedFrameOfReferenceSequence")
    try:
        return Outlines("RTSTRUCT", uid, *told, author, tuple(rtstruct.rois(dataset)), label_map, lambda *_: True)
    except (AttributeError, TypeError, ValueError) as problem:
        raise CatalogError(f"a broken structure set: {problem}", about=uid, remedy="write it again") from None


def _nifti(path: Path, labels: LabelSet) -> Outlines:
    image = open_nifti(path)
    array = voxels(image, path)
    if (array != np.rint(array)).any() or array.min() < 0 or array.max() > 255:
        problem = f"values from {array.min():g} to {array.max():g} are not those of a label map"
        raise CatalogError(problem, about=str(path), remedy="a label map has whole values from 0 to 255")

    def label_map(grid: "hd.VolumeGeometry", values: Mapping[int, int]) -> np.ndarray:
        import highdicom as hd

        lookup = np.zeros(256, np.uint8)
        lookup[list(values)] = list(values.values())
        drawn = hd.Volume(lookup[array.astype(np.uint8)], right_angled(lps_affine(image)), "PATIENT")
        return placed(drawn, grid, about=str(path))

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    named = _named_values(path, stem, np.unique(array).astype(int).tolist(), labels)
    return Outlines("NIfTI", f"sha256:{digest}", (stem,), (), "", tuple(named), label_map, lambda *_: False)


def _named_values(path: Path, stem: str, values: Sequence[int], labels: LabelSet) -> Iterator[Outlined]:
    """The values of a label map: by label_set.json or dataset.json in its folder or the one above; else, where there is one
    value and the file is named after a structure, that; else by the values of ``labels``. What is named counts as outlined,
    also where no voxel has it."""
    values = [value for value in values if value]
    said = (NiftiFolder(folder).label_set(()) for folder in (path.resolve().parent, path.resolve().parent.parent))
    described = next((found for found in said if found is not None), None)
    names = {one.value: one for one in (described or labels).structures}
    if described is None and len(values) == 1 and short(stem).lower() in {short(s.name).lower() for s in labels.structures}:
        yield Outlined(values[0], stem)
        return
    for value in sorted({*values, *(names if described else ())}):
        code = names[value].code[:2] if value in names else ()
        yield Outlined(value, names[value].name if value in names else f"value {value}", code)


def _told(dataset: "Dataset", sequence: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The series that it refers to, and the images where it names no series."""
    series = tuple(dict.fromkeys(_nested(dataset.get(sequence) or (), "SeriesInstanceUID")))
    images = () if series else tuple(dict.fromkeys(_nested([dataset], "ReferencedSOPInstanceUID")))
    return series, images


def _nested(items: Any, keyword: str) -> Iterator[str]:
    for item in items:
        for element in item:
            if element.keyword == keyword and element.value:
                yield str(element.value)
            elif element.VR == "SQ":
                yield from _nested(element.value, keyword)


def _first(dataset: "Dataset", *keywords: str) -> str:
    """The first that is there, of a person's name its parts in words."""
    for keyword in keywords:
        value = dataset.get(keyword)
        said = str(value if not isinstance(value, list) and value is not None else "")
        if text := " ".join(said.partition("=")[0].replace("^", " ").split()):
            return text
    return ""
