"""Labelled cases → a Petastorm dataset of prepared volumes, by a Spark job.

Under a root lie ``volumes/``, a file a prepared case (``datamodules.volumes``), and a folder a dataset, named by the digest of
its cases and their roles: hard links to those files (copies where the disk has no links), so that it can be carried elsewhere
as it is. An unchanged case is never prepared twice; a new label prepares one case. Builds may run side by side: files and
folders take their names when they are whole, and equal names are equal content.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from catalog.disk import FULL, TEMPORARY, remove_leftovers, sync_folder
from catalog.errors import VoxloopError
from catalog.labelset import LabelSet
from catalog.progress import Progress
from datamodules.cases import LabelledCase
from datamodules.errors import DataError
from datamodules.plan import Plan
from datamodules.volumes import LAYOUT, PreparedVolume, prepared_volumes

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from catalog.archive import Archive

__all__ = ["DatasetInfo", "build"]

MARKER = "dataset.json"
VOLUMES = "volumes"
ROLES = ("train", "validation", "holdout")
AGAIN = "make room, then train again: it goes on where it stopped"


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
        """The dataset at ``path``; DataError where there is none, one that was not finished, or another version's."""
        try:
            told = json.loads((path / MARKER).read_text())
            if told["layout"] != LAYOUT:
                raise ValueError("of another layout")
            left_out = tuple((case, reason) for case, reason in told["left_out"])
            plan, label_set = Plan.from_dict(told["plan"]), LabelSet.from_dict(told["label_set"])
            return cls(path, told["rows"], told["digest"], left_out, plan, label_set)
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError("no complete dataset", about=str(path), remedy="train again; it is built first") from None

    def write(self, folder: Path, cases: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
        """Write its marker into ``folder``: with it a dataset is complete. ``cases`` are listed by role, in the
        order of their files."""
        told = {
            "layout": LAYOUT,
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
    again by the next build; DataError when no case is left, a label revision is not there, or the disk is full (what was
    prepared stays).
    """
    _refuse_unfit(cases, root)
    remove_leftovers(root / VOLUMES)
    volumes = sorted(prepared_volumes(archive, cases, plan, label_set, root / VOLUMES), key=_file)
    todo = [volume for volume in volumes if not volume.path.exists()]
    there = len(volumes) - len(todo)

    def report(done: int) -> None:
        if progress:
            progress(there + done, len(volumes))

    report(0)
    problems = _make(spark, todo, report, root) if todo else {}
    kept = [volume for volume in volumes if volume.case.case not in problems]
    left_out = tuple(sorted(problems.items()))
    if not kept:
        case, reason = left_out[0]
        raise DataError(f"no case could be prepared; the first: {reason}", about=f"case {case}", remedy="mend it, train again")
    return _gathered(kept, left_out, plan, label_set, root, len(todo) - len(problems))


def _refuse_unfit(cases: Sequence[LabelledCase], root: Path) -> None:
    if not cases:
        raise DataError("no labelled case", about=str(root), remedy="label a case, then train")
    names = Counter(case.case for case in cases)
    for case in cases:
        about = f"case {case.case}"
        if names[case.case] > 1:
            raise DataError("is listed twice", about=about, remedy="list it once")
        if case.role not in ROLES:
            raise DataError(f"role {case.role!r} is none of {', '.join(ROLES)}", about=about, remedy="take one of these")
        if not case.label and not case.states:
            raise DataError("has neither a label nor states", about=about, remedy="label it, or leave it out")


def _make(spark: "SparkSession", todo: Sequence[PreparedVolume], report: Callable[[int], None], root: Path) -> dict[str, str]:
    """Make the files ``todo``, a Spark task each; case → reason where that failed. DataError where the disk is full."""
    context = spark.sparkContext
    finished, full, group = context.accumulator(0), context.accumulator(0), f"voxloop {uuid.uuid4()}"
    tasks = context.parallelize(todo, len(todo)).mapPartitions(partial(_made, finished, full))

    def collect() -> list[tuple[str, str]]:
        context.setJobGroup(group, "prepare volumes", interruptOnCancel=True)
        return list(tasks.collect())

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(collect)
        try:
            while not wait([running], timeout=0.2).done and not full.value:
                report(int(finished.value))
            results = [] if full.value else running.result()
        except BaseException as problem:
            context.cancelJobGroup(group)
            if "No space left on device" in str(problem):
                raise DataError(FULL, about="Spark's scratch folder", remedy=AGAIN) from None
            raise
        if full.value:
            context.cancelJobGroup(group)
            raise DataError(FULL, about=str(root), remedy=AGAIN)
    report(len(todo))
    return {case: problem for case, problem in results if problem}


def _made(finished: Any, full: Any, volumes: Iterable[PreparedVolume]) -> Iterator[tuple[str, str]]:
    """On a worker: (case, "" or what is wrong)."""
    import torch

    torch.set_num_threads(1)
    for volume in volumes:
        reason = ""
        try:
            volume.make()
        except VoxloopError as problem:
            full.add(int(problem.problem == FULL))
            reason = str(problem)
        except Exception as problem:  # corrupt files raise errors of every kind; the reason is reported
            reason = " ".join(f"{type(problem).__name__}: {problem}".split())
        finished.add(1)
        yield volume.case.case, reason


def _gathered(
    kept: Sequence[PreparedVolume],
    left_out: tuple[tuple[str, str], ...],
    plan: Plan,
    label_set: LabelSet,
    root: Path,
    prepared: int,
) -> DatasetInfo:
    """The dataset of these volumes: there already, or linked together and then given its name."""
    from datamodules._petastorm import seal

    listed = [[volume.case.role, _file(volume), volume.digest] for volume in kept]
    digest = hashlib.sha256(json.dumps([listed, [case for case, _ in left_out]]).encode()).hexdigest()
    roles = {role: [volume for volume in kept if volume.case.role == role] for role in ROLES}
    rows = {role: len(volumes) for role, volumes in roles.items() if volumes}
    info = DatasetInfo(root / digest, rows, digest, left_out, plan, label_set, prepared)
    if (info.path / MARKER).exists():
        return info
    remove_leftovers(root)
    folder = root / f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:8]}-{digest}"
    try:
        for role in rows:
            for volume in roles[role]:
                _link(volume.path, folder / role / _file(volume))
            seal(folder / role)
        info.write(folder, {role: [_told(volume) for volume in roles[role]] for role in rows})
        folder.rename(info.path)
        sync_folder(root)
    except OSError as problem:
        shutil.rmtree(folder, ignore_errors=True)
        if not (info.path / MARKER).exists():  # another build may have gathered the same meanwhile
            raise DataError(problem.strerror or str(problem), about=str(problem.filename or root), remedy=AGAIN) from None
    return info


def _told(volume: PreparedVolume) -> dict[str, str]:
    case = volume.case
    return {"case": case.case, "study_uid": case.study_uid, "patient_id": case.patient_id, "label_id": volume.label_id}


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOENT):
            raise
        shutil.copyfile(source, target)


def _file(volume: PreparedVolume) -> str:
    """The name of a case's file in its dataset: the case's where that is safe, else one that follows from it."""
    case = volume.case.case
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}", case):
        case = f"{re.sub(r'[^A-Za-z0-9_-]+', '-', case)[:80]}-{hashlib.sha256(case.encode()).hexdigest()[:12]}"
    return f"{case}.parquet"
