"""What a viewer hands in becomes a label revision."""

import io
import uuid
from typing import Annotated, Any, Literal

import highdicom as hd
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from catalog import Archive, CatalogError, LabelRevision, Project, State, Submission, deflated, seg, submit
from catalog.labels import LabelTaken, revision
from catalog.problem import Refused
from catalog.repair import repair
from labeling.contours import added_path_length
from labeling.masks import Masks, from_bytes

__all__ = ["Drawn", "SubmittedLabel", "take"]


class Drawn(BaseModel):
    """A structure as the viewer numbered it: ``value`` is its voxel value in the submitted mask."""

    model_config = ConfigDict(extra="forbid")
    value: Annotated[int, Field(ge=1, le=255)]
    name: Annotated[str, Field(max_length=256)]


class SubmittedLabel(BaseModel):
    """What is said of a submitted mask. ``label_id`` is the client's: the same again adds nothing. ``parent`` is the revision
    that it builds on, ``suggestion`` the mask that it began from and ``suggested_by`` the model version that made that.
    ``slices`` and ``segments`` explain the voxels, where they come as bytes rather than as a DICOM SEG."""

    model_config = ConfigDict(extra="forbid")
    label_id: uuid.UUID
    series: Annotated[str, Field(min_length=1, max_length=128)]
    states: dict[str, State]
    author: Annotated[str, Field(max_length=64)] = ""
    status: Literal["draft", "submitted"] = "submitted"
    seconds: Annotated[float, Field(ge=0, le=1e7)] = 0.0
    parent: str | None = None
    suggestion: str | None = None
    suggested_by: Annotated[str, Field(max_length=256)] | None = None
    slices: list[Annotated[str, Field(max_length=128)]] = []
    segments: list[Drawn] = []


def take(
    archive: Archive, project: Project, masks: Masks, told: SubmittedLabel, sent: bytes, *, dicom: bool, author: str
) -> LabelRevision:
    """Store ``sent``, a DICOM SEG or (not ``dicom``) the gzipped voxels that ``told`` explains, as a revision.

    Its voxels changed and added path length are against the suggestion, where that is still kept. The SEG that is stored is
    written anew, with the label set's codes. Refused (409) where another label is there under the id, (422) where the mask
    does not fit or nothing is annotated.
    """
    label_id = str(told.label_id)
    if revision(archive, label_id) is None and told.series not in {case.series_uid for case in project.cases(archive)}:
        remedy = f"open a series of its cohort: voxloop cases --explain says what is in that of {project.key}"
        raise Refused(422, "the series is no case of the project", about=told.series, remedy=remedy)
    grid = archive.geometry(told.series)
    array = _decoded(archive, project, told, sent) if dicom else _unpacked(archive, project, told, sent)
    if told.status != "draft" and set(told.states.values()) <= {"not_annotated"}:
        remedy = "draw a structure, or say of one that it is absent"
        raise Refused(422, "the label says nothing: no structure is annotated", about=told.series, remedy=remedy)
    mask = hd.Volume(array, grid.affine, "PATIENT", frame_of_reference_uid=grid.frame_of_reference_uid)
    began = _suggested(masks, told)
    submission = Submission(
        series_uid=told.series,
        mask=mask,
        states=told.states,
        author=author,
        status=told.status,
        suggested_by=told.suggested_by,
        seconds=told.seconds,
        parent=told.parent,
        voxels_changed=None if began is None else int(np.count_nonzero(array != began)),
        added_path_length=None if began is None else added_path_length(array, began),
    )
    try:
        return submit(archive, project.key, project.label_set, submission, label_id=label_id)
    except LabelTaken as taken:
        raise Refused(409, taken.problem, about=taken.about, remedy=taken.remedy) from None


def _suggested(masks: Masks, told: SubmittedLabel) -> "np.ndarray[Any, Any] | None":
    """The suggestion that it began from, where that is still kept."""
    if told.suggestion is None:
        return None
    series = masks.series(told.suggestion)
    if series not in (None, told.series):
        raise Refused(422, "the suggestion is another series'", about=told.suggestion, remedy=f"name one of {told.series}")
    return masks.array(told.suggestion)


def _unpacked(archive: Archive, project: Project, told: SubmittedLabel, sent: bytes) -> "np.ndarray[Any, Any]":
    names = {drawn.value: drawn.name for drawn in told.segments}
    return from_bytes(sent, told.slices, names, archive=archive, series=told.series, labels=project.label_set)


def _decoded(archive: Archive, project: Project, told: SubmittedLabel, sent: bytes) -> "np.ndarray[Any, Any]":
    from pydicom.errors import InvalidDicomError

    try:
        dataset = deflated.read(io.BytesIO(sent))
    except CatalogError as problem:
        raise Refused(422, problem.problem, about=told.series, remedy=problem.remedy) from None
    except (InvalidDicomError, EOFError, ValueError, KeyError) as problem:
        said = " ".join(str(problem).split())[:200]
        raise Refused(
            422, f"the segmentation is not DICOM: {said}", about=told.series, remedy="send a DICOM SEG file"
        ) from None
    repair(dataset, archive)
    array: np.ndarray[Any, Any] = seg.decode(dataset, archive.geometry(told.series), project.label_set).array
    return array
