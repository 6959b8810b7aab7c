"""A labelled case: where its channels and its label map come from, of the catalog or of NIfTI files, and how they are read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from catalog.labelset import LabelSet
from datamodules.errors import DataError

if TYPE_CHECKING:
    import highdicom as hd

    from catalog.archive import Archive
    from catalog.labels import LabelRevision

__all__ = ["LabelledCase", "case_image", "case_mask", "drawn_states"]

NEAR = 0.05
"""mm that a NIfTI label map may lie beside its image."""


@dataclass(frozen=True)
class LabelledCase:
    """A case to learn from. ``case`` names it in its dataset: the first channel's SeriesInstanceUID, or a NIfTI case's name.

    ``images`` are a channel each: what ``Archive.volume`` takes, or paths of NIfTI files. ``label`` is a label revision's id,
    or the path of a NIfTI label map; without one nothing is outlined, and ``states`` alone are learned from. ``states`` say for
    each structure whether it is present, absent or not_annotated; where there are none, the label map's values do. ``role`` is
    the split's.
    """

    case: str
    images: tuple[str, ...]
    label: str
    role: str
    states: Mapping[str, str] = field(default_factory=dict)
    study_uid: str = ""
    patient_id: str = ""


def case_image(archive: "Archive | None", case: LabelledCase) -> "list[hd.Volume]":
    """A case's channels, on the first one's grid."""
    from catalog.cases import case_volumes
    from catalog.project import Case
    from catalog.sources import FileVolumes

    return case_volumes(archive or FileVolumes(), Case(case.case, case.study_uid, case.patient_id, case.images))


def case_mask(
    archive: "Archive | None", case: LabelledCase, revision: "LabelRevision | None", label_set: LabelSet, image: "hd.Volume"
) -> "hd.Volume | None":
    """A case's label map on the grid of ``image``; None where it has none. DataError where a NIfTI file does not fit."""
    from catalog.labels import mask
    from catalog.sources import FileVolumes

    if not case.label:
        return None
    if archive is not None:
        assert revision is not None
        return mask(archive, revision, label_set)
    found = FileVolumes().volume(case.label)
    if found.spatial_shape != image.spatial_shape or np.abs(_corners(found) - _corners(image)).max() > NEAR:
        problem = f"the label map, {found.spatial_shape}, is not on its image's grid, {image.spatial_shape}"
        raise DataError(problem, about=case.label, remedy="resample it to the image")
    values = np.unique(found.array)
    if unknown := [value for value in values.tolist() if value not in (0, *(s.value for s in label_set.structures))]:
        raise DataError(
            f"its value {unknown[0]:g} is in no label set", about=case.label, remedy="name it, or clear those voxels"
        )
    return image.with_array(found.array.astype(np.uint8))


def _corners(volume: "hd.Volume") -> np.ndarray:
    return np.asarray(volume.map_indices_to_reference(np.array([[0, 0, 0], np.array(volume.spatial_shape) - 1])))


def drawn_states(drawn: "hd.Volume | None", label_set: LabelSet) -> dict[str, str]:
    """What a label map says of each structure: present or absent."""
    there = set() if drawn is None else set(np.unique(drawn.array).tolist())
    return {s.name: "present" if s.value in there else "absent" for s in label_set.structures}
