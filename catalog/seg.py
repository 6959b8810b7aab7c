"""Label maps as DICOM SEG (PS3.3 A.51) and back, voxel for voxel."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog._inherited import inherited
from catalog.errors import CatalogError
from catalog.grid import placed
from catalog.labelset import LabelSet, Structure
from catalog.matching import Outlined, matched, short
from catalog.sources import read_dataset

if TYPE_CHECKING:
    import highdicom as hd
    from pydicom import Dataset

__all__ = ["Algorithm", "decode", "encode", "label_map", "opened", "segments", "shows"]

MANUFACTURER = "Voxloop"
SERIES_NUMBER = 300
_TISSUE = ("SCT", "85756007", "Tissue")
_ANATOMY = ("SCT", "91723000", "Anatomical Structure")


@dataclass(frozen=True)
class Algorithm:
    """What made a predicted mask: a registered model and its version; ``receipt`` is the digest in ``predictions``."""

    name: str
    version: str
    receipt: str = ""


def encode(
    mask: "hd.Volume",
    sources: "Sequence[Dataset]",
    labels: LabelSet,
    *,
    sop_uid: str,
    series_uid: str,
    description: str,
    author: str,
    algorithm: Algorithm | None = None,
) -> "hd.seg.Segmentation":
    """A BINARY segmentation of the series whose headers are ``sources``.

    ``mask`` is a uint8 label map, axes (slices, rows, columns), affine index → LPS mm, on the grid of the series. Each
    structure of ``labels`` becomes a segment, in order, also where it has no voxel; an all-zero mask is valid. With
    ``algorithm`` the segments are AUTOMATIC and name it, and its receipt stands in Contributing Equipment (PS3.3 C.12.1);
    else they are MANUAL by ``author``.

    Raises CatalogError where a voxel has a value that no structure has, or the mask is not on the grid of the series.
    """
    import highdicom as hd

    array = _numbered(mask, labels, about=series_uid)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the source's own peculiarities
        try:
            segmentation = hd.seg.Segmentation(
                source_images=[inherited(sources[0]), *sources[1:]],
                pixel_array=mask.with_array(array),
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=[_segment(i + 1, s, algorithm) for i, s in enumerate(labels.structures)],
                series_instance_uid=series_uid,
                series_number=SERIES_NUMBER,
                sop_instance_uid=sop_uid,
                instance_number=1,
                manufacturer=MANUFACTURER,
                manufacturer_model_name=MANUFACTURER,
                software_versions="1",
                device_serial_number="1",
                content_creator_name=_person(author),
                content_description=short(description),
                content_label="SEGMENTATION",
                series_description=short(description),
                omit_empty_frames=bool(array.any()),
                contributing_equipment=_equipment(algorithm),
            )
        except (ValueError, AttributeError, TypeError, KeyError) as problem:
            raise CatalogError(f"no segmentation can be made for it: {_line(problem)}", about=series_uid) from problem
    return segmentation


def decode(path: "Path | Dataset", like: "hd.Volume | hd.VolumeGeometry", labels: LabelSet) -> "hd.Volume":
    """The label map (uint8) that a SEG holds, on the grid of ``like``; slices without a frame are zero.

    Segments are matched with structures as by ``catalog.matching``. Raises CatalogError where the file is no BINARY or LABELMAP
    SEG, a segment has no structure, segments overlap, or a frame does not lie on the grid of ``like``.
    """
    import highdicom as hd

    stored = opened(path, like)
    found = segments(stored)
    structures = matched(found, labels)
    for segment in found:
        if segment.number not in structures:
            remedy = f"name it as one of {', '.join(structure.name for structure in labels.structures)}"
            problem = f"segment {segment.name!r} is no structure of {labels.name}"
            raise CatalogError(problem, about=_about(path), remedy=remedy)
    values = {number: structure.value for number, structure in structures.items()}
    array = label_map(stored, like, values, about=_about(path))
    return hd.Volume(array, like.affine, "PATIENT", frame_of_reference_uid=like.frame_of_reference_uid)


def opened(path: "Path | Dataset", like: "hd.VolumeGeometry | hd.Volume | None" = None) -> "hd.seg.Segmentation":
    """The SEG of a file. Where it does not say how far its slices lie apart, it may follow from the image's grid, ``like``; of
    one slice on an image of one slice it does, whatever the SEG says.

    CatalogError where the file is no segmentation.
    """
    import highdicom as hd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = read_dataset(path) if isinstance(path, Path) else path
            return hd.seg.Segmentation.from_dataset(dataset if like is None else _spaced(dataset, like), copy=False)
    except (ValueError, AttributeError, RuntimeError, TypeError, LookupError, OSError) as problem:
        raise CatalogError(f"the segmentation cannot be read: {_line(problem)}", about=_about(path)) from problem


def segments(seg: "hd.seg.Segmentation") -> list[Outlined]:
    """What it says it outlines, in order; of a label map without its background."""
    found = []
    for number in seg.segment_numbers:
        segment = seg.get_segment_description(number)
        code = segment.segmented_property_type
        plain = not any("SegmentedPropertyTypeModifierCodeSequence" in said for said in (code, segment))
        told = (str(code.scheme_designator), str(code.value)) if plain else ()
        found.append(Outlined(int(number), str(segment.segment_label), told))
    return [one for one in found if one.number]


def label_map(
    seg: "hd.seg.Segmentation",
    like: "hd.Volume | hd.VolumeGeometry",
    values: Mapping[int, int],
    *,
    threshold: float | None = None,
    about: str = "",
) -> np.ndarray:
    """A label map (uint8) on the grid of ``like`` of the segments in ``values``: segment number → voxel value.

    A voxel of a FRACTIONAL segment counts from ``threshold`` (0…1, of MaximumFractionalValue); without one such SEGs are
    refused. Raises CatalogError where segments of different values overlap, naming them, and as ``catalog.grid.placed``.
    """
    fractional = seg.segmentation_type.value == "FRACTIONAL"
    if fractional and threshold is None:
        raise CatalogError("a FRACTIONAL segmentation", about=about, remedy="import it: voxloop import-labels --threshold")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drawn = _one_by_one(seg, values, threshold or 0.5, about) if fractional else _combined(seg, values, about)
    except (ValueError, AttributeError, RuntimeError, TypeError, LookupError, OSError, NotImplementedError) as problem:
        raise CatalogError(f"the segmentation cannot be read: {_line(problem)}", about=about) from problem
    return placed(drawn, like, about=about)


def shows(seg: "hd.seg.Segmentation", number: int) -> bool:
    """Whether a voxel of a segment is not zero, be its share ever so small."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(seg.get_volume(combine_segments=False, segment_numbers=[number]).array.any())


def _combined(seg: "hd.seg.Segmentation", values: Mapping[int, int], about: str) -> "hd.Volume":
    numbers = list(values)
    alone = len(numbers) == 1
    try:
        dtype = np.uint8 if max(numbers) < 256 else np.uint16
        stored = seg.get_volume(combine_segments=True, segment_numbers=numbers, dtype=dtype, skip_overlap_checks=alone)
    except RuntimeError:  # two of them overlap, or it cannot be read at all
        return _one_by_one(seg, values, 1, about)
    lookup = np.zeros(max(numbers) + 1, np.uint8)
    lookup[numbers] = list(values.values())
    return stored.with_array(lookup[stored.array])


def _one_by_one(seg: "hd.seg.Segmentation", values: Mapping[int, int], threshold: float, about: str) -> "hd.Volume":
    painted = None
    for number, value in values.items():
        stored = seg.get_volume(combine_segments=False, segment_numbers=[number])
        painted = stored.with_array(np.zeros(stored.spatial_shape, np.uint8)) if painted is None else painted
        drawn = stored.array[..., 0] >= threshold
        if (shared := drawn & ~np.isin(painted.array, (0, value))).any():
            other = int(painted.array[shared][0])
            names = [
                repr(str(seg.get_segment_description(n).segment_label)) for n in values if n == number or values[n] == other
            ]
            problem = f"the segments {' and '.join(names)} overlap in {np.count_nonzero(shared)} voxels"
            raise CatalogError(problem, about=about, remedy="a label map has one structure a voxel: take one of them")
        painted.array[drawn] = value
    assert painted is not None  # nobody asks for no segment
    return painted


def _spaced(dataset: "Dataset", like: "hd.Volume | hd.VolumeGeometry") -> "Dataset":
    """``dataset`` with SpacingBetweenSlices, where it lacks it and is one slice, or as thick as the image's are apart; and
    where it and the image are one slice: what either says of a distance is no distance of slices then."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or [{}]
    measures = (shared[0].get("PixelMeasuresSequence") or [None])[0]
    planes = shared[0].get("PlaneOrientationSequence")
    if measures is None or not planes:
        return dataset
    rows, columns = np.array(planes[0].ImageOrientationPatient, float).reshape(2, 3)
    along = int(np.abs(np.array(like.unit_vectors()) @ np.cross(rows, columns)).argmax())
    spacing, thickness = float(like.spacing[along]), float(measures.get("SliceThickness") or 0)
    several = _planes(dataset) > 1
    if measures.get("SpacingBetweenSlices") and (several or like.spatial_shape[along] > 1):
        return dataset
    if several and not np.isclose(thickness, spacing, rtol=1e-3):
        return dataset
    dataset = copy.deepcopy(dataset)
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = round(spacing, 10)
    return dataset


def _numbered(mask: "hd.Volume", labels: LabelSet, *, about: str) -> np.ndarray:
    """The mask with segment numbers, which count from one, for voxel values."""
    lookup = np.full(256, 255, np.uint8)
    lookup[0] = 0
    for number, structure in enumerate(labels.structures, start=1):
        lookup[structure.value] = number
    allowed = {0, *(structure.value for structure in labels.structures)}
    foreign = sorted(set(np.unique(mask.array).tolist()) - allowed)
    if foreign:
        remedy = f"the values of label set {labels.name} are {sorted(allowed)}"
        raise CatalogError(f"voxels with value {', '.join(map(str, foreign))} have no structure", about=about, remedy=remedy)
    numbered: np.ndarray = lookup[mask.array.astype(np.uint8)]
    return numbered


def _segment(number: int, structure: Structure, algorithm: Algorithm | None) -> "hd.seg.SegmentDescription":
    import highdicom as hd
    from highdicom.color import CIELabColor

    scheme, value, meaning = structure.code
    category = _TISSUE if structure.code[:2] == _TISSUE[:2] else _ANATOMY
    kinds = hd.seg.SegmentAlgorithmTypeValues
    made_by = None if algorithm is None else _identification(algorithm)
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=short(structure.name),
        segmented_property_category=hd.sr.CodedConcept(category[1], category[0], category[2]),
        segmented_property_type=hd.sr.CodedConcept(value, scheme, short(meaning)),
        algorithm_type=kinds.MANUAL if algorithm is None else kinds.AUTOMATIC,
        algorithm_identification=made_by,
        display_color=CIELabColor.from_rgb(*structure.color),
    )


def _identification(algorithm: Algorithm) -> "hd.AlgorithmIdentificationSequence":
    import highdicom as hd
    from pydicom.sr.codedict import codes

    return hd.AlgorithmIdentificationSequence(
        name=short(algorithm.name), family=codes.DCM.ArtificialIntelligence, version=short(algorithm.version)
    )


def _equipment(algorithm: Algorithm | None) -> "list[hd.ContributingEquipment] | None":
    """The receipt, where one leads back from the mask to the labels it was learnt from."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    if algorithm is None or not algorithm.receipt:
        return None
    return [
        hd.ContributingEquipment(
            manufacturer=MANUFACTURER,
            purpose_of_reference=codes.DCM.ProcessingEquipment,
            manufacturer_model_name=short(algorithm.name),
            software_versions=short(algorithm.version),
            contribution_description=f"receipt sha256:{algorithm.receipt}",
        )
    ]


def _person(author: str) -> str:
    """``author`` as a DICOM person name: without the separators ``^`` and ``=``, one component."""
    return (short(author.replace("^", " ").replace("=", " ").replace("\\", " ").strip(), 63) or "unknown") + "^"


def _planes(dataset: "Dataset") -> int:
    """In how many places its frames lie."""
    places = [frame.get("PlanePositionSequence") for frame in dataset.get("PerFrameFunctionalGroupsSequence") or ()]
    return len({tuple(place[0].ImagePositionPatient) if place else () for place in places})


def _about(path: "Path | Dataset") -> str:
    return str(path) if isinstance(path, Path) else str(path.get("SOPInstanceUID", "SEG"))


def _line(problem: Any) -> str:
    return " ".join(str(problem).split())[:200]
