"""Whole cohorts on Spark: predictions with receipts, and the scores by which the next samples are chosen.

A task predicts one series. Python workers keep the model that they loaded, from job to job, and compute on one thread: Spark
runs as many as there are cores. Workers write the DICOM SEG files; the driver commits a wave's rows to ``object_catalog``, then
to ``predictions``. A series that has its row is not predicted again by the same version: an interrupted run goes on. Of two
runs on one project the second waits for the first, then does what is left. A full disk stops all, else a series fails alone.
"""

import errno
import fcntl
import functools
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from catalog import features
from catalog.archive import Archive
from catalog.cases import case_volumes
from catalog.disk import atomic_file, disk_full, remove_leftovers
from catalog.labels import current
from catalog.progress import Progress
from catalog.project import Case, Project
from catalog.schemas import PREDICTIONS, SCORES
from catalog.store import Journal
from catalog.table import DeltaTable
from catalog.uids import deterministic_uid
from serving.errors import ServingError
from serving.registry import Registry

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from serving.model import Served

__all__ = ["BatchReport", "batch_infer", "score_pool"]

WAVE = 256
"""Series whose rows are committed together: what a crash makes to be done again."""

FOLDER = "predictions"
ENTROPY = "entropy"


@dataclass(frozen=True)
class BatchReport:
    """What a batch did: ``done`` series now, ``already`` before; ``failed`` are (series, reason)."""

    model: str
    version: str
    done: int
    already: int
    failed: tuple[tuple[str, str], ...]

    def as_json(self) -> dict[str, Any]:
        """As one JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class _Job:
    """What a worker needs to know; ``folder`` holds the model's files."""

    home: Path
    index_url: str | None
    folder: Path
    project: str


def batch_infer(
    spark: "SparkSession",
    archive: Archive,
    project: Project,
    *,
    tracking_uri: str,
    series: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> BatchReport:
    """Predict with the champion: every series of the cohort without a current label, or those of ``series``.

    Each prediction is a DICOM SEG in the catalog and a row of ``predictions``. What this version has predicted before is left
    alone. ServingError where there is no champion or the alias was moved by hand.
    """
    version, job = _champion(archive, project, tracking_uri)
    cases = _chosen(archive, project, series)
    where = f"project = '{project.key}' AND model_version = '{version}'"
    with _alone(job):
        before = set(archive.predictions.scan(("sop_uid",), where=where).read_all()["sop_uid"].to_pylist())
        todo = [case for case in cases if _sop_uid(project.key, case.series_uid, project.model, version) not in before]
        commit = functools.partial(_commit_predictions, archive)
        failed = _waves(spark, todo, functools.partial(_predict, job), commit, progress)
    return BatchReport(project.model, version, len(todo) - len(failed), len(cases) - len(todo), failed)


def score_pool(
    spark: "SparkSession",
    archive: Archive,
    project: Project,
    series: Sequence[str] | None = None,
    *,
    tracking_uri: str,
    version: str | None = None,
    progress: Progress | None = None,
) -> BatchReport:
    """Append the mean predictive entropy (nats) of ``series``, by default the unlabelled ones, to ``scores``. Nothing is served
    by it, so any ``version`` may score, by default the champion."""
    version, job = _champion(archive, project, tracking_uri, version)
    cases = _chosen(archive, project, series)
    where = f"project = '{project.key}' AND model_version = '{version}' AND kind = '{ENTROPY}'"
    key = {"project": project.key, "model_version": version, "kind": ENTROPY}

    def commit(good: Sequence[dict[str, Any]]) -> None:
        now = datetime.now(UTC)
        _append(archive.scores, [{**key, **row, "created_at": now} for row in good], SCORES)

    with _alone(job):
        before = set(archive.scores.scan(("series_uid",), where=where).read_all()["series_uid"].to_pylist())
        todo = [case for case in cases if case.series_uid not in before]
        failed = _waves(spark, todo, functools.partial(_score, job), commit, progress)
    return BatchReport(project.model, version, len(todo) - len(failed), len(cases) - len(todo), failed)


def _champion(archive: Archive, project: Project, tracking_uri: str, version: str | None = None) -> tuple[str, _Job]:
    from serving.model import intact

    registry = Registry(tracking_uri)
    version = version or registry.champion(project.model)
    if version is None:
        raise ServingError("has no champion yet", about=f"model {project.model}", remedy="train and promote a version first")
    folder = intact(registry.fetch(project.model, version, archive.home / "models"))
    return version, _Job(archive.home, archive.index_url, folder, project.key)


@contextmanager
def _alone(job: _Job) -> Iterator[None]:
    """One batch of a project at a time: what it finds not done, nobody else is doing."""
    with (job.home / f".batch-{job.project}").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _chosen(archive: Archive, project: Project, series: Sequence[str] | None) -> list[Case]:
    cases = {case.series_uid: case for case in project.cases(archive)}
    if series is None:
        labelled = current(archive, project.key)
        return [case for uid, case in cases.items() if uid not in labelled]
    unknown = [uid for uid in series if uid not in cases]
    if unknown:
        raise ServingError(
            "not in the project's cohort", about=f"series {unknown[0]}", remedy="widen cohort in the project file"
        )
    return [cases[uid] for uid in series]


def _sop_uid(project: str, series_uid: str, model: str, version: str) -> str:
    return deterministic_uid("prediction", project, series_uid, model, version)


def _waves(
    spark: "SparkSession",
    todo: Sequence[Case],
    work: Callable[[Case], dict[str, Any]],
    commit: Callable[[Sequence[dict[str, Any]]], None],
    progress: Progress | None,
) -> tuple[tuple[str, str], ...]:
    """Run ``work`` on each case, a task each, and commit wave by wave; (series, reason) where it failed."""
    failed: list[tuple[str, str]] = []
    for start in range(0, len(todo), WAVE):
        wave = todo[start : start + WAVE]
        report = functools.partial(_report, progress, start, len(todo))
        results = _spread(spark, work, wave, report)
        commit([row for _, row, _ in results if row is not None])
        failed += [(uid, reason) for uid, row, reason in results if row is None]
        report(len(wave))
    return tuple(failed)


def _spread(
    spark: "SparkSession", work: Callable[[Case], dict[str, Any]], cases: Sequence[Case], report: Callable[[int], None]
) -> list[tuple[str, Any, str]]:
    context = spark.sparkContext
    finished, full, group = context.accumulator(0), context.accumulator(0), f"voxloop {uuid.uuid4()}"
    tasks = context.parallelize(cases, len(cases)).mapPartitions(functools.partial(_each, work, finished, full))

    def collect() -> list[tuple[str, Any, str]]:
        context.setJobGroup(group, "predict", interruptOnCancel=True)
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
                raise disk_full("Spark's scratch folder") from None
            raise
        if full.value:
            context.cancelJobGroup(group)
            raise disk_full("the home")
        return results


def _each(
    work: Callable[[Case], dict[str, Any]], finished: Any, full: Any, cases: Iterable[Case]
) -> Iterator[tuple[str, Any, str]]:
    import torch

    torch.set_num_threads(1)
    for case in cases:
        try:
            yield case.series_uid, work(case), ""
        except Exception as problem:  # one case never fails the others; the reason is reported
            full.add(int(_is_full(problem)))
            yield case.series_uid, None, " ".join(f"{type(problem).__name__}: {problem}".split())
        finished.add(1)


def _is_full(problem: BaseException | None) -> bool:
    while problem is not None:
        if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        problem = problem.__cause__
    return False


@functools.lru_cache(maxsize=2)
def _hot(folder: Path) -> "Served":
    from serving.model import load

    return load(folder)


@functools.lru_cache(maxsize=2)
def _archive(home: Path, index_url: str | None) -> Archive:
    return Archive(home, index_url=index_url)


def _predict(job: _Job, case: Case) -> dict[str, Any]:
    """On a worker: predict, write the SEG; its row of ``predictions``, under ``path`` where it lies, under ``measured``
    its rows of ``features``."""
    from serving.receipt import segmentation
    from training import Prompts

    archive, served = _archive(job.home, job.index_url), _hot(job.folder)
    images = case_volumes(archive, case)
    found = served.predictor.predict(images, Prompts())
    sop_uid = _sop_uid(job.project, case.series_uid, served.origin.model_name, served.origin.model_version)
    sources = [archive.sources(ref) for ref in case.refs]
    row, seg = segmentation(served, images, found, sources, project=job.project, channels=case.channels, sop_uid=sop_uid)
    path = archive.volume_folder / FOLDER / str(seg.StudyInstanceUID) / str(seg.SeriesInstanceUID) / f"{sop_uid}.dcm"
    remove_leftovers(path.parent)
    with atomic_file(path) as file:
        seg.save_as(file, enforce_file_format=True)
    values = {one.name: one.value for one in served.label_set.structures}
    subject = features.Subject.of_prediction(row)
    measured = features.of_mask(subject, found.mask, values, lambda place: images[0].array[place], sources[0][0])
    return {**row, "path": path, "measured": measured}


def _score(job: _Job, case: Case) -> dict[str, Any]:
    from training import Prompts

    images = case_volumes(_archive(job.home, job.index_url), case)
    return {"series_uid": case.series_uid, "value": _hot(job.folder).predictor.predict(images, Prompts()).entropy}


def _commit_predictions(archive: Archive, good: Sequence[dict[str, Any]]) -> None:
    """First the files, then what is said of them, then what is measured: a row of ``predictions`` always has its SEG, and
    ``Archive.finish`` measures what a crash has left out."""
    now = datetime.now(UTC)
    told = [{**row, "volumes_ml": list(row["volumes_ml"].items()), "created_at": now} for row in good]
    work = f"batch/{uuid.uuid4()}"
    journal = Journal(archive.home, work, measured=[row["sop_uid"] for row in good])
    with archive.writing():
        journal.open([])
        archive.adopt([row["path"] for row in good], writer="batch_infer")
        _append(archive.predictions, told, PREDICTIONS)
        features.append(archive, [one for row in good for one in row["measured"]], writer=f"features/{work}")
        journal.close()


def _append(table: DeltaTable, told: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    if told:
        chosen = [{name: row[name] for name in schema.names} for row in told]
        table.append(pa.Table.from_pylist(chosen, schema=schema), writer=f"batch/{uuid.uuid4()}", batch=0)


def _report(progress: Progress | None, start: int, total: int, done: int) -> None:
    if progress:
        progress(start + done, total)
