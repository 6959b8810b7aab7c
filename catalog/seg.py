"""Label maps as DICOM SEG (PS3.3 A.51) and back, voxel for voxel."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog._inherited import inherited
from catalog.errors import CatalogError
from catalog.labelset import LabelSet, Structure

if TYPE_CHECKING:
    import highdicom as hd
    from pydicom import Dataset

__all__ = ["Algorithm", "decode", "encode"]

MANUFACTURER = "Voxloop"
SERIES_NUMBER = 300
_TISSUE = ("SCT", "85756007", "Tissue")
_ANATOMY = ("SCT", "91723000", "Anatomical Structure")
_FITS = 1e-2  # mm: how far a voxel of the SEG may lie from one of the image and still be it


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

    Segments are matched with structures by label, else by property code. Raises CatalogError where the file is no
    BINARY or LABELMAP SEG, a segment has no structure, segments overlap, or a frame does not lie on the grid of ``like``.
    """
    import highdicom as hd

    about = str(path) if isinstance(path, Path) else str(path.get("SOPInstanceUID", "SEG"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seg = hd.seg.segread(path) if isinstance(path, Path) else hd.seg.Segmentation.from_dataset(path, copy=False)
            values = _values(seg, labels, about)
            stored = seg.get_volume(combine_segments=True, dtype=np.uint8, skip_overlap_checks=len(values) == 1)
    except CatalogError:
        raise
    except (ValueError, AttributeError, RuntimeError, TypeError, KeyError, OSError) as problem:
        raise CatalogError(f"the segmentation cannot be read: {_line(problem)}", about=about) from problem
    lookup = np.zeros(256, np.uint8)
    for number, value in values.items():
        lookup[number] = value
    array = _placed(stored.with_array(lookup[stored.array]), like, about)
    return hd.Volume(array, like.affine, "PATIENT", frame_of_reference_uid=like.frame_of_reference_uid)


def _placed(stored: "hd.Volume", like: "hd.Volume | hd.VolumeGeometry", about: str) -> np.ndarray:
    """``stored`` on the grid of ``like``: its axes flipped, permuted and shifted by whole voxels, never resampled."""
    remedy = "segment this series itself"
    try:
        found = stored.match_geometry(like)
    except RuntimeError:
        found = stored
    same = found.spatial_shape == like.spatial_shape and np.allclose(found.affine, like.affine, atol=_FITS)
    if not same or not np.isclose(found.voxel_volume, stored.voxel_volume, rtol=1e-3):
        raise CatalogError("the segmentation does not lie on the image's grid", about=about, remedy=remedy)
    if np.count_nonzero(found.array) != np.count_nonzero(stored.array):
        raise CatalogError("the segmentation reaches beyond the image", about=about, remedy=remedy)
    return np.asarray(found.array)


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


def _values(seg: "hd.seg.Segmentation", labels: LabelSet, about: str) -> dict[int, int]:
    """Segment number → the voxel value of its structure."""
    by_name = {short(structure.name): structure.value for structure in labels.structures}
    by_code = {structure.code[:2]: structure.value for structure in labels.structures if structure.code[:2] != _TISSUE[:2]}
    found = {}
    for number in seg.segment_numbers:
        segment = seg.get_segment_description(number)
        code = segment.segmented_property_type
        value = by_name.get(segment.segment_label, by_code.get((code.scheme_designator, code.value)))
        if value is None:
            remedy = f"name it as one of {', '.join(by_name)}"
            raise CatalogError(
                f"segment {segment.segment_label!r} is no structure of {labels.name}", about=about, remedy=remedy
            )
        found[number] = value
    return found


def _person(author: str) -> str:
    """``author`` as a DICOM person name: without the separators ``^`` and ``=``, one component."""
    return (short(author.replace("^", " ").replace("=", " ").replace("\\", " ").strip(), 63) or "unknown") + "^"


def short(text: str, most: int = 64) -> str:
    """``text`` in at most ``most`` bytes of UTF-8: DICOM counts characters, some of its readers bytes."""
    return text.encode()[:most].decode(errors="ignore").strip()


def _line(problem: Any) -> str:
    return " ".join(str(problem).split())[:200]
