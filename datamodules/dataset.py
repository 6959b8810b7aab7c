"""Labelled series → a Petastorm dataset of prepared volumes, by a Spark job."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from catalog.errors import VoxloopError
from catalog.labelset import LabelSet
from catalog.progress import Progress
from datamodules.errors import DataError
from datamodules.plan import Plan

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from catalog.archive import Archive
    from catalog.labels import LabelRevision
    from catalog.project import Project

__all__ = ["DatasetInfo", "LabelledCase", "build"]

LAYOUT = 1  # raised when prepare() or the files change, so that older datasets are built anew
MARKER = "dataset.json"
ROLES = ("train", "validation", "holdout")


@dataclass(frozen=True)
class LabelledCase:
    """One series with the label revision to learn from. ``role`` is the split's; ``states`` say for each structure whether
    it is present, absent or not_annotated."""

    series_uid: str
    label_id: str
    role: str
    states: dict[str, str]


@dataclass(frozen=True)
class DatasetInfo:
    """A complete dataset: ``rows`` volumes of each role under ``path``/role; ``digest`` is of its inputs; ``left_out`` are
    the series that could not be prepared, each with its reason."""

    path: Path
    rows: dict[str, int]
    digest: str
    left_out: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """The dataset at ``path``; DataError where there is none, or one that was not finished."""
        try:
            told = json.loads((path / MARKER).read_text())
        except (OSError, ValueError):
            raise DataError("no complete dataset", about=str(path), remedy="train again; it is built first") from None
        return cls(path, told["rows"], told["digest"], tuple((uid, reason) for uid, reason in told["left_out"]))


@dataclass(frozen=True)
class _Task:
    """What a Spark worker needs for one case."""

    home: Path
    index_url: str | None
    case: LabelledCase
    revision: "LabelRevision"
    label_set: LabelSet
    plan: Plan
    target: Path


def build(
    spark: "SparkSession",
    archive: "Archive",
    project: "Project",
    cases: Sequence[LabelledCase],
    plan: Plan,
    root: Path,
    *,
    progress: Progress | None = None,
) -> DatasetInfo:
    """Prepare ``cases`` by ``plan`` under ``root``/<digest of the inputs>, or return the dataset that is there already.

    A build that was interrupted goes on with the volumes that it lacks. A case whose image or label cannot be read is left
    out and named; DataError when no case is left.
    """
    project.single_series("a dataset")
    if not cases:
        raise DataError("no labelled case", about=f"project {project.key}", remedy="label a case, then train")
    digest = _digest(cases, plan, project)
    path = root / digest
    if (path / MARKER).exists():
        return DatasetInfo.read(path)
    partial = root / f"{digest}.partial"
    tasks = _tasks(archive, project, cases, plan, partial)
    left_out = []
    for done, (series_uid, problem, fatal) in enumerate(_prepared(spark, tasks), 1):
        if fatal:
            raise DataError(problem, about=str(partial), remedy="make room, then train again: it goes on where it stopped")
        if problem:
            left_out.append((series_uid, problem))
        if progress:
            progress(done, len(tasks))
    return _complete(partial, path, digest, left_out)


def _digest(cases: Sequence[LabelledCase], plan: Plan, project: "Project") -> str:
    listed = sorted((asdict(case) for case in cases), key=lambda case: str(case["series_uid"]))
    repeated = [uid for uid, number in Counter(case.series_uid for case in cases).items() if number > 1]
    if repeated:
        raise DataError("is listed twice", about=f"series {repeated[0]}")
    told = {"layout": LAYOUT, "project": project.key, "cases": listed, "plan": plan.preparation()}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _tasks(archive: "Archive", project: "Project", cases: Sequence[LabelledCase], plan: Plan, partial: Path) -> list[_Task]:
    from catalog.labels import current, revision

    latest = {found.label_id: found for found in current(archive, project.key).values()}
    tasks = []
    for case in sorted(cases, key=lambda case: case.series_uid):
        found = latest.get(case.label_id) or revision(archive, case.label_id)  # one that was superseded meanwhile
        if found is None or found.series_uid != case.series_uid:
            raise DataError(f"no such label revision of series {case.series_uid}", about=f"label {case.label_id}")
        target = partial / case.role / f"{case.series_uid}.parquet"
        tasks.append(_Task(archive.home, archive.index_url, case, found, project.label_set, plan, target))
    return tasks


def _prepared(spark: "SparkSession", tasks: list[_Task]) -> Iterator[tuple[str, str, bool]]:
    """(series UID, "" or what is wrong, whether that concerns the disk and not the case), as the cases are done."""
    todo = [task for task in tasks if not task.target.exists()]
    yield from ((task.case.series_uid, "", False) for task in tasks if task.target.exists())
    if todo:
        slices = min(len(todo), 4 * spark.sparkContext.defaultParallelism)
        yield from spark.sparkContext.parallelize(todo, slices).map(_prepare).toLocalIterator(prefetchPartitions=True)


def _prepare(task: _Task) -> tuple[str, str, bool]:
    """On a worker: read, prepare and write one case."""
    import numpy as np

    from catalog.archive import Archive
    from catalog.labels import mask
    from datamodules._petastorm import write_row
    from datamodules.prepare import prepare, prepare_mask

    case = task.case
    try:
        archive = Archive(task.home, index_url=task.index_url)
        image = prepare(archive.volume(case.series_uid), task.plan).image[0].numpy()
        labels = prepare_mask(mask(archive, task.revision, task.label_set), task.plan).numpy()
        if image.shape != labels.shape:
            raise DataError(f"label of {labels.shape} voxels for an image of {image.shape}", about=f"label {case.label_id}")
    except (VoxloopError, OSError, ValueError, RuntimeError, AttributeError, KeyError) as problem:
        return case.series_uid, str(problem) or type(problem).__name__, False
    annotated = np.array([case.states.get(name) in ("present", "absent") for name in task.plan.structures], np.uint8)
    row: dict[str, Any] = {"image": image, "mask": labels, "annotated": annotated}
    try:
        write_row(task.target, {"series_uid": case.series_uid, "label_id": case.label_id, **row})
    except OSError as problem:
        return case.series_uid, problem.strerror or str(problem), True
    return case.series_uid, "", False


def _complete(partial: Path, path: Path, digest: str, left_out: list[tuple[str, str]]) -> DatasetInfo:
    """Seal each role's folder, write the marker, then give the folder its name."""
    from datamodules._petastorm import seal

    counts = {role: seal(partial / role) for role in ROLES if (partial / role).is_dir()}
    if not sum(counts.values()):
        series_uid, reason = left_out[0]
        shutil.rmtree(partial, ignore_errors=True)
        raise DataError(f"no case could be prepared; the first: {reason}", about=f"series {series_uid}")
    info = DatasetInfo(path, counts, digest, tuple(sorted(left_out)))
    with (partial / MARKER).open("w") as file:
        json.dump({"rows": counts, "digest": digest, "left_out": info.left_out}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    return info
