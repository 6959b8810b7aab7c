"""Label revisions: append-only events, each a segmentation and what its author says of it."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from catalog import features, seg
from catalog._query import quoted
from catalog.errors import CatalogError
from catalog.labelset import LabelSet
from catalog.schemas import LABELS
from catalog.store import Journal, label_rows, put
from catalog.uids import deterministic_uid

if TYPE_CHECKING:
    import highdicom as hd
    from pydicom import Dataset

    from catalog.archive import Archive

__all__ = [
    "LabelRevision",
    "LabelTaken",
    "State",
    "Submission",
    "current",
    "history",
    "mask",
    "revision",
    "revisions",
    "submit",
]

State = Literal["present", "absent", "not_annotated"]
FOLDER = "labels"
STATUSES = ("draft", "submitted", "approved")
_SAID = ("series_uid", "parent", "author", "role", "status", "suggested_by")
"""What is the same where a submission is handed in again; how long it took and what it is measured against may not be."""


class LabelTaken(CatalogError):
    """A label with this id is there, and is another."""


@dataclass(frozen=True)
class Submission:
    """What an author hands in for a series.

    ``mask`` is a uint8 label map on the series' grid; ``states`` says for each structure whether it is there, is not, or
    was not looked for; ``seconds`` is the author's time, ``parent`` the revision it builds on, ``suggested_by`` the model
    version it began from, ``voxels_changed`` how many voxels of that suggestion were changed, and ``added_path_length`` how
    many voxels of the contours are not on the suggestion's.
    """

    series_uid: str
    mask: "hd.Volume"
    states: Mapping[str, State]
    author: str
    role: str = "reader"
    status: str = "submitted"
    suggested_by: str | None = None
    seconds: float = 0.0
    parent: str | None = None
    voxels_changed: int | None = None
    added_path_length: int | None = None


@dataclass(frozen=True)
class LabelRevision:
    """A row of ``labels``; ``seg_uid`` is the SOPInstanceUID of its segmentation."""

    label_id: str
    project: str
    seg_uid: str
    series_uid: str
    study_uid: str
    patient_id: str | None
    parent: str | None
    author: str
    role: str
    status: str
    suggested_by: str | None
    seconds: float
    voxels_changed: int | None
    created_at: datetime
    added_path_length: int | None = None
    states: Mapping[str, State] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As JSON holds it; ``created_at`` in ISO 8601."""
        return {**asdict(self), "created_at": self.created_at.isoformat()}


def submit(
    archive: "Archive", project: str, labels: LabelSet, submission: Submission, *, label_id: str | None = None
) -> LabelRevision:
    """Store the segmentation, then the event; the same again with its ``label_id`` adds nothing and returns what is there.

    Raises LabelTaken where another mask, or something else said of it, is there under the ``label_id``; CatalogError where the
    mask is not on the series' grid, a state is missing or is no state, a structure that is said to be absent or not annotated
    has voxels, or the parent is no revision of the same series in the project.
    """
    label_id = label_id or str(uuid.uuid4())
    stored = revision(archive, label_id)
    if stored is not None:
        return _repeated(archive, stored, project, labels, submission)
    _check_states(submission, labels)
    parent = _parent(archive, project, submission)
    sources = archive.sources(submission.series_uid)
    _check_grid(archive.geometry(submission.series_uid), submission)
    event = _event(label_id, project, submission, sources[0], parent)
    segmentation = seg.encode(
        submission.mask,
        sources,
        labels,
        sop_uid=event["seg_uid"],
        series_uid=deterministic_uid("label series", label_id),
        description=f"{project}: {labels.name}",
        author=submission.author,
    )
    measured = _measured(archive, event, submission, labels, sources)
    journal = Journal(archive.home, f"label/{label_id}", label=event)
    with archive.labelling(), archive.writing():
        stored = revision(archive, label_id)
        if stored is not None:
            return _repeated(archive, stored, project, labels, submission)
        put(archive, [segmentation], folder=FOLDER, journal=journal)
        archive.labels.append(label_rows(event), writer=f"label/{label_id}", batch=0)
        features.append(archive, measured, writer=features.writer(event["seg_uid"]))
        journal.close()
    stored = revision(archive, label_id)
    assert stored is not None
    return stored


def revision(archive: "Archive", label_id: str) -> LabelRevision | None:
    """The revision with this id."""
    found = _revisions(archive, f"label_id = {quoted(label_id)}")
    return found[0] if found else None


def revisions(archive: "Archive", label_ids: Sequence[str]) -> dict[str, LabelRevision]:
    """The revisions with these ids, by id; those that there are."""
    if not label_ids:
        return {}
    found = _revisions(archive, f"label_id IN ({', '.join(map(quoted, label_ids))})")
    return {revision.label_id: revision for revision in found}


def current(archive: "Archive", project: str, *, version: int | None = None, drafts: bool = False) -> dict[str, LabelRevision]:
    """Series UID → its latest revision in the project, as of a version of the ``labels`` table; drafts only if asked for."""
    where = f"project = {quoted(project)}" + ("" if drafts else " AND status <> 'draft'")
    return {found.series_uid: found for found in _revisions(archive, where, version)}


def history(archive: "Archive", project: str, series_uid: str) -> list[LabelRevision]:
    """Every revision of a series in the project, drafts too, the latest first."""
    where = f"project = {quoted(project)} AND series_uid = {quoted(series_uid)}"
    return _revisions(archive, where)[::-1]


def mask(archive: "Archive", revision: LabelRevision, labels: LabelSet) -> "hd.Volume":
    """The label map of a revision (uint8) on its series' grid."""
    archive.index.follow(archive.objects)
    stored = archive.index.instance(revision.seg_uid)
    if stored is None:
        raise CatalogError(
            "its segmentation is not in the catalog", about=f"label {revision.label_id}", remedy="restore the home"
        )
    return seg.decode(Path(stored.path), archive.geometry(revision.series_uid), labels)


def _repeated(
    archive: "Archive", stored: LabelRevision, project: str, labels: LabelSet, submission: Submission
) -> LabelRevision:
    """What is there, where it is what is handed in."""
    told = {name: getattr(submission, name) for name in _SAID} | {"project": project, "states": dict(submission.states)}
    other = [name for name, value in told.items() if getattr(stored, name) != value]
    if not other and not np.array_equal(mask(archive, stored, labels).array, submission.mask.array):
        other = ["mask"]
    if other:
        problem = f"a label of another {', '.join(other)} is there under this id"
        raise LabelTaken(problem, about=f"label {stored.label_id}", remedy="give the new label a new id")
    return stored


def _event(
    label_id: str, project: str, submission: Submission, source: "Dataset", parent: LabelRevision | None
) -> dict[str, Any]:
    """The row of ``labels`` in its JSON form; later than its parent's, whatever the clocks say."""
    now = datetime.now(UTC)
    if parent is not None:
        now = max(now, parent.created_at + timedelta(microseconds=1))
    said = {item.name: getattr(submission, item.name) for item in fields(submission) if item.name != "mask"}
    return {
        **said,
        "states": dict(submission.states),
        "label_id": label_id,
        "project": project,
        "seg_uid": deterministic_uid("label", label_id),
        "study_uid": str(source.StudyInstanceUID),
        "patient_id": str(source.get("PatientID") or "") or None,
        "created_at": int(now.timestamp() * 1_000_000),
    }


def _measured(
    archive: "Archive", event: Mapping[str, Any], submission: Submission, labels: LabelSet, sources: "Sequence[Dataset]"
) -> list[dict[str, Any]]:
    """The rows of ``features``, of the structures that the author says something of."""
    values = {one.name: one.value for one in labels.structures if submission.states[one.name] != "not_annotated"}
    pixels = features.image_pixels(archive, submission.series_uid, sources)
    return features.of_mask(features.Subject.of_label(event), submission.mask, values, pixels, sources[0])


def _revisions(archive: "Archive", where: str, version: int | None = None) -> list[LabelRevision]:
    rows = archive.labels.scan(LABELS.names, where=where, version=version).read_all().to_pylist()
    rows.sort(key=lambda row: (row["created_at"], row["label_id"]))
    return [LabelRevision(**{**row, "states": dict(row["states"])}) for row in rows]


def _parent(archive: "Archive", project: str, submission: Submission) -> LabelRevision | None:
    if submission.parent is None:
        return None
    parent = revision(archive, submission.parent)
    if parent is None or (parent.project, parent.series_uid) != (project, submission.series_uid):
        problem = f"its parent {submission.parent} is no revision of this series in project {project}"
        raise CatalogError(problem, about=submission.series_uid, remedy="name the revision that was opened")
    return parent


def _check_states(submission: Submission, labels: LabelSet) -> None:
    about, names = submission.series_uid, [structure.name for structure in labels.structures]
    if sorted(submission.states) != sorted(names) or not set(submission.states.values()) <= set(get_args(State)):
        remedy = f"say {', '.join(get_args(State))} for each of {', '.join(names)}"
        raise CatalogError(
            f"the states {dict(submission.states)} do not fit label set {labels.name}", about=about, remedy=remedy
        )
    if submission.status not in STATUSES:
        raise CatalogError(f"{submission.status!r} is no status", about=about, remedy=f"one of {', '.join(STATUSES)}")
    drawn = set(np.unique(submission.mask.array).tolist())
    for structure in labels.structures:
        state = submission.states[structure.name]
        if (structure.value in drawn) != (state == "present"):
            has = "has voxels" if structure.value in drawn else "has no voxels"
            raise CatalogError(
                f"{structure.name} is said to be {state} but {has}", about=about, remedy="mend the mask or the state"
            )


def _check_grid(grid: "hd.VolumeGeometry", submission: Submission) -> None:
    mask = submission.mask
    if mask.spatial_shape != grid.spatial_shape or not np.allclose(mask.affine, grid.affine, atol=1e-3):
        problem = f"the mask, {mask.spatial_shape}, is not on the series' grid, {grid.spatial_shape}"
        raise CatalogError(
            problem, about=submission.series_uid, remedy="label the volume that the catalog gives for this series"
        )
