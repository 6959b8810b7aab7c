"""`voxloop demo`: the whole loop on a cohort, from files to stored predictions with receipts, played by a simulated reader."""

import csv
import re
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.table import Table

from catalog import Archive, LabelSet, Project, import_nifti, ingest
from experiments import synthetic
from labeling import Jobs, Round, SimulatedReader, Workplace, in_background
from serving import Registry, batch_infer, receipt
from training import LocalLauncher
from voxloop import console
from voxloop.endpoint import ask, endpoint
from voxloop.errors import FrontDoorError
from voxloop.projects import load
from voxloop.revision import code_revision
from voxloop.settings import Settings, sqlite_url
from voxloop.spark import start
from voxloop.tracking import tracking_server

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["play"]

VALIDATION, HOLDOUT = 0.1, 0.25
FEWEST = 8  # patients: some to train on in two rounds, one to validate, two to hold out


@dataclass
class Cohort:
    """Files of one cohort: ``images`` to ingest, the label set, and the truth of each series by its UID."""

    name: str
    images: Path
    label_set: LabelSet
    truth: Mapping[str, Path]


@dataclass
class Clock:
    """Seconds by stage, in the order of the stages."""

    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        """The time since the last lap belongs to ``stage``."""
        now = time.perf_counter()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self._last, 2)
        self._last = now


def play(settings: Settings, *, cohort: Path | None, rounds: int) -> dict[str, Any]:
    """Play ``rounds`` rounds on ``cohort`` (a folder with images/ and labels/), or on a synthetic one; the summary.

    A home that holds an unfinished demo is gone on with, a finished one is shown again.
    """
    clock, archive = Clock(), Archive(settings.home, index_url=settings.index_url or None)
    for line in archive.finish():
        console.note(f"  finished after a crash: {line}")
    files = _cohort(settings.home, cohort)
    clock.lap("cohort")
    with ExitStack() as stack:
        served = in_background(lambda: stack.enter_context(tracking_server(settings)))
        with console.stage("start Spark and MLflow"):
            spark = start(settings)
            stack.callback(spark.stop)
            uri = served()
        clock.lap("start")
        with console.stage("ingest") as report:
            ingested = ingest(spark, archive, files.images, progress=report)
        console.note(f"  {ingested.found} files: {ingested.added} added, {ingested.unchanged} unchanged, {ingested.bad} bad")
        clock.lap("ingest")
        project = _project(settings.home, files)
        place = Workplace(
            archive=archive,
            spark=spark,
            project=project,
            tracking_uri=uri,
            reader=SimulatedReader(archive, project.label_set, files.truth),
            launcher=lambda report: LocalLauncher(progress=report),
            code_revision=code_revision(),
            viewer_url=settings.viewer,
            watch=console.stage,
        )
        console.note("  the reader is simulated: it reveals the label that the cohort has of each series")
        results = _rounds(settings, place, rounds, clock, stack)
        summary = _predict(place, spark, clock)
    cases = project.cases(archive)
    return {
        "patients": len({case.patient_id for case in cases}),
        "instances": _instances(archive, project),
        "labels": [result["labels"] for result in results],
        "dice": [round(result["dice"], 4) for result in results],
        "champion": results[-1]["champion"],
        **summary,
        "seconds": clock.seconds,
    }


def _instances(archive: Archive, project: Project) -> int:
    """The DICOM instances of the project's series."""
    cohort = f"select SeriesInstanceUID from ({project.cohort})"
    counted = archive.sql(f"select sum(instances)::bigint as n from series where SeriesInstanceUID in ({cohort})")
    return int(counted["n"][0].as_py() or 0)


def _cohort(home: Path, folder: Path | None) -> Cohort:
    """The cohort's files as DICOM under HOME/volume/imported."""
    name = "synthetic" if folder is None else re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name).strip("-") or "cohort"
    out = home / "volume" / "imported" / name
    if folder is None:
        with console.stage("make a synthetic cohort") as report:
            synthetic.write(out, progress=report)
    else:
        with console.stage(f"import {folder}") as report:
            import_nifti(folder, out, progress=report)
    if not (out / "label_set.json").exists():
        remedy = "put a label map for each image into its folder labels/"
        raise FrontDoorError("no labels, and the demo's reader reveals them", about=str(folder), remedy=remedy)
    with (out / "index.csv").open(newline="") as rows:
        truth = {row["series_uid"]: out / row["label"] for row in csv.DictReader(rows) if row["label"]}
    if len(truth) < FEWEST:
        remedy = "training, validation and holdout each need some"
        raise FrontDoorError(f"{len(truth)} labelled images are too few, {FEWEST} are needed", about=str(folder), remedy=remedy)
    label_set = LabelSet.from_dict(yaml.safe_load((out / "label_set.json").read_text()))
    return Cohort(name, out / "images", label_set, truth)


def _project(home: Path, cohort: Cohort) -> Project:
    """The project file of the demo, written once; edit it and the next run in a fresh home takes what you wrote."""
    path = home / "projects" / f"{cohort.name}.yaml"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "key": cohort.name,
            "cohort": "select distinct SeriesInstanceUID, StudyInstanceUID, PatientID from instances"
            f" where contains(path, '/imported/{cohort.name}/images/')",
            "label_set": cohort.label_set.to_dict(),
            "plan": {"steps": 500, "validate_every": 100},  # a round takes a minute or two
            "split": {"validation": VALIDATION, "holdout": HOLDOUT, "seed": cohort.name},
            "model": f"voxloop-{cohort.name}",
            "margin": 0.02,
        }
        written = path.with_suffix(".tmp")
        written.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
        written.replace(path)
    return load(path)


def _rounds(settings: Settings, place: Workplace, rounds: int, clock: Clock, stack: ExitStack) -> list[dict[str, Any]]:
    """Play the rounds; after each, the endpoint answers for one series with the champion of that moment."""
    pool = len(place.project.cases(place.archive))
    first, later = max(3, pool // 9), max(3, pool // 6)
    played = [Round(place, number, first if number == 1 else later) for number in range(1, rounds + 1)]
    state = settings.state_url or sqlite_url(settings.home / "state.db")
    results: list[dict[str, Any]] = []
    address = ""
    with Jobs(state, {round_.key: round_ for round_ in played}, stop=console.stop) as jobs:
        for round_ in played:
            console.note(f"[bold]Round {round_.number} of {rounds}[/bold]")
            result = jobs.run(round_.key)
            results.append(result)
            clock.lap(f"round {round_.number}")
            if not address:
                with console.stage("start the endpoint"):
                    address = stack.enter_context(endpoint(settings, place.project.model, place.tracking_uri))
            champion = Registry(place.tracking_uri).champion(place.project.model)  # a kept round's may have been followed
            answered = ask(address, place.project.cases(place.archive)[0].series_uid, version=str(champion))
            clock.lap("endpoint")
            console.table(_table(result, answered))
    return results


def _table(result: Mapping[str, Any], answered: str) -> Table:
    """One round, as its reader wants to see it."""
    table = Table(title=f"Round {result['round']}", title_justify="left", show_header=False)
    by_structure = "  ".join(f"{name} {dice:.3f}" for name, dice in result["structures"].items())
    table.add_row("labels so far", str(result["labels"]))
    table.add_row("holdout Dice", f"{result['dice']:.3f}   ({by_structure})")
    table.add_row("version", f"{result['version']}: {'champion' if result['promoted'] else 'not promoted'}")
    table.add_row("why", result["reason"])
    table.add_row("endpoint", f"answers with version {answered}")
    table.add_row("seconds", "  ".join(f"{name} {seconds:.0f}" for name, seconds in result["seconds"].items()))
    return table


def _predict(place: Workplace, spark: "SparkSession", clock: Clock) -> dict[str, Any]:
    """Predict every unlabelled series, and follow every receipt back."""
    with console.stage("predict every unlabelled series") as report:
        done = batch_infer(spark, place.archive, place.project, tracking_uri=place.tracking_uri, progress=report)
    for series, reason in done.failed:
        console.note(f"  not predicted: {series}: {reason}")
    with console.stage("follow every receipt back to its labels") as report:
        stored = place.archive.predictions.scan(["sop_uid"], where=f"project = '{place.project.key}'").read_all()
        uids = stored["sop_uid"].to_pylist()
        ok = bool(uids)
        for i, uid in enumerate(uids, start=1):
            ok = receipt(place.archive, uid).ok and ok
            report(i, len(uids))
    clock.lap("predict")
    return {"predictions": len(uids), "receipt_ok": ok}
