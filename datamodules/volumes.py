"""Prepared volumes: a file a case, named by the digest of all that went into it, made by a Spark job.

The digest is of what identifies the inputs' content, not of where they lie: of a catalogued series its instances, of a NIfTI
file its bytes. So an unchanged case is prepared once, wherever its files were moved to.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog.labelset import LabelSet
from datamodules.cases import LabelledCase, case_image, case_mask, drawn_states
from datamodules.errors import DataError
from datamodules.plan import Plan

if TYPE_CHECKING:
    from catalog.archive import Archive
    from catalog.labels import LabelRevision
    from datamodules.sample import Sample

__all__ = ["LAYOUT", "PreparedVolume", "prepared_volumes"]

LAYOUT = 3
"""Raised when prepare() or the files change, so that older volumes are prepared anew."""

CENTRES = 2000
"""Voxels of each structure that are noted, for patches to lie around."""


@dataclass(frozen=True)
class PreparedVolume:
    """The file at ``path`` that ``case`` is or will be, and what a worker needs to make it; without ``home`` the images are
    NIfTI files. ``label_id`` is the revision's, or of a NIfTI label map its name and the beginning of its sha256."""

    case: LabelledCase
    label_id: str
    digest: str
    path: Path
    plan: Plan
    label_set: LabelSet
    revision: "LabelRevision | None" = None
    home: Path | None = None
    index_url: str | None = None

    def make(self) -> None:
        """Read, prepare and write it, whole or not at all.

        VoxloopError where the case cannot be used or the disk is full; other errors where its files are corrupt.
        """
        from datamodules._petastorm import write

        write(self.path, self.sample())

    def sample(self) -> "Sample":
        """What is to be written."""
        import torch

        from catalog.archive import Archive
        from datamodules.prepare import compact, intensity, prepare_mask, resampled
        from datamodules.sample import Sample

        case, plan = self.case, self.plan
        archive = None if self.home is None else Archive(self.home, index_url=self.index_url)
        images = case_image(archive, case)
        drawn = case_mask(archive, case, self.revision, self.label_set, images[0])
        image, _ = resampled(images, plan)
        del images
        if not bool(image.isfinite().all()):
            raise DataError("has voxels that are no finite numbers", about=f"case {case.case}", remedy="replace them")
        image, numbers = compact(image, intensity(image, plan))
        mask = torch.zeros(image.shape[1:], dtype=torch.uint8) if drawn is None else prepare_mask(drawn, plan)
        states = case.states or drawn_states(drawn, self.label_set)
        annotated, present = (
            torch.tensor([states.get(name) in known for name in plan.structures])
            for known in (("present", "absent"), ("present",))
        )
        centres = torch.from_numpy(_centres(mask.numpy(), int(self.digest[:8], 16)))
        named = (case.case, case.study_uid, case.patient_id, self.label_id)
        return Sample(*named, image, numbers, mask, annotated, present, centres)


def prepared_volumes(
    archive: "Archive | None", cases: Sequence[LabelledCase], plan: Plan, label_set: LabelSet, folder: Path
) -> list[PreparedVolume]:
    """The file of each case in ``folder``, whether it is there or not.

    DataError where a label revision is not there, or not of its case.
    """
    if archive is None:
        return _of_files(cases, plan, label_set, folder)
    revisions = _revisions(archive, cases)
    known = _instances(archive, cases, [revision.seg_uid for revision in revisions.values()])
    found = []
    for case in cases:
        revision = revisions.get(case.label)
        label = [case.label, known.get(revision.seg_uid, [])] if revision else []
        digest = _digest(case, [[ref, known.get(_series(ref), [])] for ref in case.images], label, plan, label_set)
        path = folder / f"{digest}.parquet"
        more = (revision, archive.home, archive.index_url)
        found.append(PreparedVolume(case, case.label, digest, path, plan, label_set, *more))
    return found


def _of_files(cases: Sequence[LabelledCase], plan: Plan, label_set: LabelSet, folder: Path) -> list[PreparedVolume]:
    paths = sorted({path for case in cases for path in (*case.images, case.label) if path})
    with ThreadPoolExecutor(8) as pool:
        hashes = dict(zip(paths, pool.map(_sha256, paths), strict=True))
    found = []
    for case in cases:
        label_id = f"{Path(case.label).name}@{hashes[case.label][:12]}" if case.label else ""
        label = hashes[case.label] if case.label else ""
        digest = _digest(case, [hashes[path] for path in case.images], [label_id, label], plan, label_set)
        found.append(PreparedVolume(case, label_id, digest, folder / f"{digest}.parquet", plan, label_set))
    return found


def _digest(case: LabelledCase, images: Sequence[Any], label: Sequence[Any], plan: Plan, label_set: LabelSet) -> str:
    """Without the role: the same volume whatever it is used for."""
    told = {
        "layout": LAYOUT,
        "case": [case.case, case.study_uid, case.patient_id, dict(case.states)],
        "images": images,
        "label": label,
        "values": [[structure.name, structure.value, structure.code] for structure in label_set.structures],
        "plan": plan.preparation(),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _sha256(path: str) -> str:
    """Of a file's bytes; empty where it cannot be read, which is found when its case is."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _series(ref: str) -> str:
    from catalog.volumes import parse

    return str(parse(ref)[0])


def _revisions(archive: "Archive", cases: Sequence[LabelledCase]) -> "dict[str, LabelRevision]":
    from catalog.labels import revisions

    found = revisions(archive, [case.label for case in cases if case.label])
    for case in cases:
        if case.label and (case.label not in found or found[case.label].series_uid != case.case):
            remedy = "list the labels anew: it may be another catalog's"
            raise DataError(f"no such label revision of series {case.case}", about=f"label {case.label}", remedy=remedy)
    return found


def _instances(archive: "Archive", cases: Sequence[LabelledCase], segs: Sequence[str]) -> Mapping[str, list[Any]]:
    """Of each series its instances and of each segmentation itself: SOPInstanceUID, length, time of change."""
    series = {_series(ref) for case in cases for ref in case.images}
    wanted = [", ".join("'" + uid.replace("'", "''") + "'" for uid in sorted(uids) or [""]) for uids in (series, segs)]
    query = f"""SELECT SeriesInstanceUID, SOPInstanceUID, length, epoch_us(modificationTime) FROM instances
        WHERE SeriesInstanceUID IN ({wanted[0]}) OR SOPInstanceUID IN ({wanted[1]}) ORDER BY SOPInstanceUID"""
    found: dict[str, list[Any]] = {}
    for row in _rows(archive, query):
        found.setdefault(row[0] if row[0] in series else row[1], []).append(row[1:])
    return found


def _rows(archive: "Archive", query: str) -> Iterator[tuple[Any, ...]]:
    for batch in archive.query(query):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _centres(mask: np.ndarray, seed: int) -> np.ndarray:
    """(n, 4) int32 (class, z, y, x): CENTRES voxels of each class at most, drawn by ``seed``."""
    rng, found = np.random.default_rng(seed), [np.zeros((0, 4), np.int32)]
    places = np.flatnonzero(mask)
    classes = mask.ravel()[places]
    for index in np.unique(classes):
        chosen = places[classes == index]
        if len(chosen) > CENTRES:
            chosen = np.sort(rng.choice(chosen, CENTRES, replace=False))
        where = np.stack(np.unravel_index(chosen, mask.shape), 1)
        found.append(np.c_[np.full(len(where), index), where].astype(np.int32))
    return np.concatenate(found)
