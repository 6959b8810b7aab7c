"""Labelled cases → a Petastorm dataset of prepared volumes, by a Spark job.

Under a root lie ``volumes/``, a file a prepared case, named by the digest of all that went into it, and a folder a dataset,
named by the digest of its cases and their roles: hard links to those files (copies where the disk has no links), so that it can
be carried elsewhere as it is. An unchanged case is never prepared twice; a new label prepares one case.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from catalog.disk import FULL, remove_leftovers
from catalog.errors import VoxloopError
from catalog.labelset import LabelSet
from catalog.progress import Progress
from datamodules.cases import LabelledCase, case_image, case_mask, drawn_states
from datamodules.errors import DataError
from datamodules.plan import Plan

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from catalog.archive import Archive
    from catalog.labels import LabelRevision
    from datamodules.sample import Sample

__all__ = ["DatasetInfo", "build"]

LAYOUT = 2  # raised when prepare() or the files change, so that older volumes are prepared anew
MARKER = "dataset.json"
VOLUMES = "volumes"
ROLES = ("train", "validation", "holdout")
CENTRES = 2000
"""Voxels of each structure that are noted, for patches to lie around."""


@dataclass(frozen=True)
class DatasetInfo:
    """A complete dataset: ``rows`` cases of each role under ``path``/role; ``digest`` is of its cases; ``left_out`` are those
    that could not be prepared, each with its reason; ``plan`` is the one it was built by, of which the preparation counts.
    ``prepared`` is how many cases this build had to prepare."""

    path: Path
    rows: Mapping[str, int]
    digest: str
    left_out: tuple[tuple[str, str], ...]
    plan: Plan = field(compare=False)
    label_set: LabelSet
    prepared: int = field(default=0, compare=False)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The dataset at ``path``; DataError where there is none, or one that was not finished."""
        try:
            told = json.loads((path / MARKER).read_text())
            left_out = tuple((case, reason) for case, reason in told["left_out"])
            plan, label_set = Plan.from_dict(told["plan"]), LabelSet.from_dict(told["label_set"])
            return cls(path, told["rows"], told["digest"], left_out, plan, label_set)
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError("no complete dataset", about=str(path), remedy="train again; it is built first") from None

    def write(self, folder: Path, cases: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
        """Write its marker into ``folder``: with it a dataset is complete. ``cases`` are listed by role."""
        told = {
            "rows": dict(self.rows),
            "digest": self.digest,
            "left_out": [list(case) for case in self.left_out],
            "label_set": self.label_set.to_dict(),
            "plan": self.plan.to_dict(),
            "cases": cases,
        }
        with (folder / MARKER).open("w") as file:
            json.dump(told, file, indent=1)
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class _Task:
    """What a Spark worker needs for one case; without ``home`` the images are NIfTI files."""

    home: Path | None
    index_url: str | None
    case: LabelledCase
    revision: "LabelRevision | None"
    label_set: LabelSet
    plan: Plan
    digest: str
    target: Path


def build(
    spark: "SparkSession",
    archive: "Archive | None",
    cases: Sequence[LabelledCase],
    plan: Plan,
    label_set: LabelSet,
    root: Path,
    *,
    progress: Progress | None = None,
) -> DatasetInfo:
    """The dataset of ``cases``, prepared by ``plan``, under ``root``; ``archive`` is None where they are NIfTI files.

    Only cases that were never prepared so are. A case whose image or label cannot be read is left out and named, and tried
    again by the next build; DataError when no case is left, or the disk is full (what was prepared stays).
    """
    repeated = [case for case, number in Counter(case.case for case in cases).items() if number > 1]
    if repeated:
        raise DataError("is listed twice", about=f"case {repeated[0]}")
    if not cases:
        raise DataError("no labelled case", about=str(root), remedy="label a case, then train")
    remove_leftovers(root / VOLUMES)
    tasks = _tasks(archive, cases, plan, label_set, root / VOLUMES)
    todo = [task for task in tasks if not task.target.exists()]
    left_out = []
    for done, (case, problem) in enumerate(_prepared(spark, todo), len(tasks) - len(todo) + 1):
        if problem == FULL:
            raise DataError(problem, about=str(root), remedy="make room, then train again: it goes on where it stopped")
        if problem:
            left_out.append((case, problem))
        if progress:
            progress(done, len(tasks))
    kept = [task for task in tasks if task.case.case not in dict(left_out)]
    if not kept:
        case, reason = left_out[0]
        raise DataError(f"no case could be prepared; the first: {reason}", about=f"case {case}")
    return _gathered(kept, plan, label_set, root, tuple(sorted(left_out)), len(todo) - len(left_out))


def _tasks(
    archive: "Archive | None", cases: Sequence[LabelledCase], plan: Plan, label_set: LabelSet, folder: Path
) -> list[_Task]:
    """A task a case, by name."""
    revisions = _revisions(archive, cases) if archive is not None else {}
    tasks = []
    for case in sorted(cases, key=lambda case: case.case):
        inputs = _file_inputs(case) if archive is None else _catalogued_inputs(archive, case)
        told = {
            "layout": LAYOUT,
            "case": {**asdict(case), "images": inputs, "label": Path(case.label).name, "states": dict(case.states)},
            "plan": plan.preparation(),
        }
        del told["case"]["role"]  # type: ignore[attr-defined]  # the same volume whatever it is used for
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        home, index_url = (None, None) if archive is None else (archive.home, archive.index_url)
        target = folder / f"{digest}.parquet"
        tasks.append(_Task(home, index_url, case, revisions.get(case.label), label_set, plan, digest, target))
    return tasks


def _revisions(archive: "Archive", cases: Sequence[LabelledCase]) -> "dict[str, LabelRevision]":
    from catalog.labels import revisions

    found = revisions(archive, [case.label for case in cases if case.label])
    for case in cases:
        if case.label and (case.label not in found or found[case.label].series_uid != case.case):
            raise DataError(f"no such label revision of series {case.case}", about=f"label {case.label}")
    return found


def _file_inputs(case: LabelledCase) -> list[list[Any]]:
    """Name, size and time of each file; a file that is not there is found missing when it is read."""
    inputs = []
    for path in map(Path, (*case.images, *([case.label] if case.label else []))):
        stat = path.stat() if path.exists() else None
        inputs.append([path.name, stat and stat.st_size, stat and stat.st_mtime_ns])
    return inputs


def _catalogued_inputs(archive: "Archive", case: LabelledCase) -> list[list[Any]]:
    """Of each channel its reference, and SOPInstanceUID, size and time of each of its series' files."""
    from catalog.volumes import parse

    archive.index.follow(archive.objects)
    inputs: list[list[Any]] = []
    for ref in case.images:
        files = []
        for found in archive.index.files(parse(ref)[0]):
            stat = os.stat(found.path) if os.path.exists(found.path) else None
            files.append([found.sop_uid, stat and stat.st_size, stat and stat.st_mtime_ns])
        inputs.append([ref, sorted(files)])
    return inputs


def _prepared(spark: "SparkSession", todo: list[_Task]) -> Iterator[tuple[str, str]]:
    """(case, "" or what is wrong), as the cases are done."""
    if todo:
        slices = min(len(todo), 4 * spark.sparkContext.defaultParallelism)
        yield from spark.sparkContext.parallelize(todo, slices).map(_prepare).toLocalIterator(prefetchPartitions=True)


def _prepare(task: _Task) -> tuple[str, str]:
    """On a worker: read, prepare and write one case."""
    from datamodules._petastorm import write

    try:
        write(task.target, _sample(task))
    except VoxloopError as problem:
        return task.case.case, FULL if problem.problem == FULL else str(problem)
    except OSError as problem:
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
        return task.case.case, FULL if full else problem.strerror or str(problem)
    except (ValueError, RuntimeError, AttributeError, KeyError) as problem:
        return task.case.case, " ".join(str(problem).split()) or type(problem).__name__
    return task.case.case, ""


def _sample(task: _Task) -> "Sample":
    import torch

    from catalog.archive import Archive
    from datamodules.prepare import compact, intensity, prepare_mask, resampled
    from datamodules.sample import Sample

    case, plan = task.case, task.plan
    archive = None if task.home is None else Archive(task.home, index_url=task.index_url)
    images = case_image(archive, case)
    drawn = case_mask(archive, case, task.revision, task.label_set, images[0])
    image, _ = resampled(images, plan)
    image, numbers = compact(image, intensity(image, plan))
    mask = torch.zeros(image.shape[1:], dtype=torch.uint8) if drawn is None else prepare_mask(drawn, plan)
    if image.shape[1:] != mask.shape:
        raise DataError(
            f"label of {tuple(mask.shape)} voxels for an image of {tuple(image.shape[1:])}", about=f"case {case.case}"
        )
    states = case.states or drawn_states(drawn, task.label_set)
    annotated, present = (
        torch.tensor([states.get(name) in known for name in plan.structures]) for known in (("present", "absent"), ("present",))
    )
    centres = _centres(mask.numpy(), len(plan.structures), int(task.digest[:8], 16))
    named = (case.case, case.study_uid, case.patient_id, "" if archive is None else case.label)
    return Sample(*named, image, numbers, mask, annotated, present, torch.from_numpy(centres))


def _centres(mask: np.ndarray, structures: int, seed: int) -> np.ndarray:
    """(n, 4) int32 (class, z, y, x): CENTRES voxels of each structure at most, drawn by ``seed``."""
    rng, found = np.random.default_rng(seed), [np.zeros((0, 4), np.int32)]
    for index in range(1, structures + 1):
        places = np.flatnonzero(mask == index)
        if len(places) > CENTRES:
            places = np.sort(rng.choice(places, CENTRES, replace=False))
        where = np.stack(np.unravel_index(places, mask.shape), 1)
        found.append(np.c_[np.full(len(where), index), where].astype(np.int32))
    return np.concatenate(found)


def _gathered(
    kept: Sequence[_Task], plan: Plan, label_set: LabelSet, root: Path, left_out: tuple[tuple[str, str], ...], prepared: int
) -> DatasetInfo:
    """The dataset of the tasks' volumes: there already, or linked together and then given its name."""
    from datamodules._petastorm import seal

    listed = sorted((task.case.role, task.digest) for task in kept)
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    counts = dict(Counter(task.case.role for task in kept))
    info = DatasetInfo(root / digest, counts, digest, left_out, plan, label_set, prepared)
    if (info.path / MARKER).exists():
        return info
    partial = root / f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}-{digest}"
    remove_leftovers(root)
    try:
        for task in kept:
            _link(task.target, partial / task.case.role / f"{_file_name(task.case.case)}.parquet")
        for role in counts:
            seal(partial / role)
        told = ("case", "study_uid", "patient_id", "label")
        info.write(
            partial,
            {r: [{n: str(getattr(t.case, n)) for n in told} for t in kept if t.case.role == r] for r in counts},
        )
        partial.rename(info.path)
    except OSError as problem:
        shutil.rmtree(partial, ignore_errors=True)
        if not (info.path / MARKER).exists():  # another build may have gathered the same meanwhile
            raise DataError(problem.strerror or str(problem), about=str(root), remedy="make room, then train again") from None
    return info


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOENT):
            raise
        shutil.copyfile(source, target)


def _file_name(case: str) -> str:
    """``case`` where that is a safe name, else one that follows from it."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}", case):
        return case
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', case)[:80]}-{hashlib.sha256(case.encode()).hexdigest()[:12]}"
