"""The round: next → label → train → register → gate → promote → score, one durable sequence of idempotent steps.

A step's result is kept (labeling.jobs), so a killed round goes on with the step that was interrupted; a step that had done its
work before the kill finds it done: label ids follow from project, round and series, a finished run is found by its job's key, a
run has one version, evidence and promotion are written over by equal values, scores are keyed.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from catalog import Archive, Progress, Project, current, freeze, submit
from datamodules import Plan
from labeling.errors import LabelingError
from labeling.jobs import Step
from labeling.readers import Reader
from labeling.strategies import EntropyStrategy, RandomStrategy, Strategy
from serving import Registry, evaluate, score_pool
from training import Launcher, TrainingSet, TrainJob

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["Round", "Workplace"]

Watch = Callable[[str], AbstractContextManager[Progress]]
"""Shows a titled stage and gives what reports its progress."""

_LABELS = uuid.UUID("3b9df1ae-7a5c-5d0e-8f43-9f6a8a1a4f6d")


@contextmanager
def _unwatched(_: str) -> Iterator[Progress]:
    yield lambda done, total: None


@dataclass(frozen=True)
class Workplace:
    """What the rounds of a project work with."""

    archive: Archive
    spark: "SparkSession"
    project: Project
    tracking_uri: str
    reader: Reader
    launcher: Callable[[Progress], Launcher]
    code_revision: str
    viewer_url: str = ""
    first: Strategy = field(default_factory=RandomStrategy)
    later: Strategy = field(default_factory=EntropyStrategy)
    watch: Watch = _unwatched

    @property
    def datasets(self) -> Path:
        """Where the project's datasets are."""
        return self.archive.home / "datasets"


class Round:
    """Round ``number`` (1, 2, …) of a project: ``k`` more series are labelled, a candidate is trained on all labels so far."""

    def __init__(self, place: Workplace, number: int, k: int) -> None:
        self.place, self.number, self.k = place, number, k
        self.key = f"{place.project.key}/round-{number}"

    def __call__(self, step: Step) -> dict[str, Any]:
        """Play the round; ``step`` keeps each step's result. The result is a JSON object: see docs/architecture.md."""
        chosen = step("next", self._timed(self._next))
        labelled = step("label", self._timed(lambda: self._label(chosen["choices"])))
        trained = step("train", self._timed(self._train))
        version = step("register", self._timed(lambda: self._register(trained["run_id"])))["version"]
        judged = step("gate", self._timed(lambda: self._gate(version)))
        promoted = step("promote", self._timed(lambda: self._promote(version)))
        scored = step("score", self._timed(self._score))
        steps = {"next": chosen, "label": labelled, "train": trained, "gate": judged, "promote": promoted, "score": scored}
        return {
            "round": self.number,
            "labels": trained["labels"],
            "dice": judged["dice"],
            "structures": judged["structures"],
            "version": version,
            "run_id": trained["run_id"],
            "promoted": promoted["promoted"],
            "champion": promoted["champion"],
            "reason": judged["reason"],
            "left_out": trained["left_out"],
            "seconds": {name: result["seconds"] for name, result in steps.items()},
        }

    def _timed(self, work: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
        def timed() -> dict[str, Any]:
            started = time.perf_counter()
            result = work()
            return {**result, "seconds": round(time.perf_counter() - started, 2)}

        return timed

    def _seed(self) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.place.project.split.seed}/{self.key}".encode()).digest()[:4], "big")

    def _label_id(self, series: str) -> str:
        return str(uuid.uuid5(_LABELS, f"{self.key}/{series}"))

    def _next(self) -> dict[str, Any]:
        """Choose the series to label: those that this round had labelled before it was killed, then by the champion's scores,
        at random while there is no champion."""
        place = self.place
        roles = freeze(place.archive, place.project)
        known = current(place.archive, place.project.key)
        training = sorted(series for series, role in roles.items() if role == "train")
        ours = [uid for uid in training if uid in known and known[uid].label_id == self._label_id(uid)]
        choices = [{"series_uid": uid, "score": None, "reason": "labelled before"} for uid in ours]
        pool = [uid for uid in training if uid not in known]
        champion = Registry(place.tracking_uri).champion(place.project.model)
        entropy = self._entropy(champion) if champion else {}
        strategy = place.later if entropy else place.first
        table = pa.table({"series_uid": pool, "entropy": pa.array([entropy.get(uid) for uid in pool], pa.float64())})
        chosen = strategy.choose(table, max(0, self.k - len(ours)), seed=self._seed())
        return {"choices": choices + [{"series_uid": c.series_uid, "score": c.score, "reason": c.reason} for c in chosen]}

    def _entropy(self, version: str) -> dict[str, float]:
        where = f"project = '{self.place.project.key}' and model_version = '{version}' and kind = 'entropy'"
        found = self.place.archive.scores.scan(["series_uid", "value"], where=where).read_all()
        return dict(zip(found["series_uid"].to_pylist(), found["value"].to_pylist(), strict=True))

    def _label(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Have the chosen series labelled; before the first round, the reference patients (validation, holdout) too."""
        place = self.place
        series = [choice["series_uid"] for choice in choices]
        known = current(place.archive, place.project.key)
        reference: set[str] = set()
        if self.number == 1:
            reference = {uid for uid, role in freeze(place.archive, place.project).items() if role != "train"}
            series = sorted(reference) + series
        todo = [uid for uid in series if uid not in known]
        apart = len(reference.intersection(todo))
        of_them = f", {apart} of them the reference (validation and holdout)" if apart else ""
        with place.watch(f"label {len(todo)} series{of_them}") as report:
            for done, uid in enumerate(todo, start=1):
                started = time.perf_counter()
                submission = place.reader.label(uid, None)
                submission = replace(submission, seconds=submission.seconds or time.perf_counter() - started)
                submit(place.archive, place.project.key, place.project.label_set, submission, label_id=self._label_id(uid))
                report(done, len(todo))
        return {"series": series}

    def _plan(self) -> Plan:
        """The project's plan, derived once from its cohort and kept: every round trains alike."""
        place = self.place
        kept = place.archive.home / "projects" / f"{place.project.key}.plan.json"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            written = kept.with_suffix(".tmp")
            written.write_text(json.dumps(self._derive().to_dict(), indent=1))
            written.replace(kept)
        plan = Plan.from_dict(json.loads(kept.read_text()))
        structures = place.project.label_set.structures
        drawn = (tuple(s.name for s in structures), tuple(s.value for s in structures))
        if drawn != (plan.structures, plan.values) or Plan.from_dict({**plan.to_dict(), **place.project.plan}) != plan:
            remedy = f"undo the change, or remove {kept} to derive a new plan (rounds before and after cannot be compared)"
            raise LabelingError("label_set or plan changed since the plan was frozen", about=place.project.key, remedy=remedy)
        return plan

    def _derive(self) -> Plan:
        found = TrainingSet.of_project(self.place.archive, self.place.project)
        return found.plan(found.fingerprint(self.place.spark), {})

    def _train(self) -> dict[str, Any]:
        """Build the dataset of the labels so far and train on it."""
        place, plan = self.place, self._plan()
        labels = TrainingSet.of_project(place.archive, place.project)
        with place.watch("build the dataset") as report:
            dataset = labels.build(place.spark, plan, place.datasets, progress=report)
        count = len(labels.learned(dataset))
        told = {"round": self.number, "run_name": f"round {self.number}", "code_revision": place.code_revision}
        job = labels.job(dataset, plan, tracking_uri=place.tracking_uri, viewer_url=place.viewer_url, **told)
        with place.watch(f"train {plan.steps} steps on {count} labels") as report:
            run_id = self._launch(job, report)
        return {"run_id": run_id, "labels": count, "left_out": [list(case) for case in dataset.left_out]}

    def _launch(self, job: TrainJob, report: Progress) -> str:
        """The job's run: one that finished before a kill, one that was killed gone on with, or a new one."""
        from mlflow import MlflowClient

        client = MlflowClient(job.tracking_uri)
        known = client.get_experiment_by_name(job.experiment)
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in job.key().items())
        runs = client.search_runs([known.experiment_id], wanted, order_by=["start_time DESC"]) if known else []
        for run in runs:
            if run.info.status == "FINISHED":
                return str(run.info.run_id)
        stopped = [run.info.run_id for run in runs if run.info.status in ("RUNNING", "KILLED")]
        return self.place.launcher(report).run(job, resume=stopped[0] if stopped else None)

    def _register(self, run_id: str) -> dict[str, Any]:
        place = self.place
        with place.watch("register the model"):
            version = Registry(place.tracking_uri).register(run_id, model=place.project.model, home=place.archive.home)
        return {"version": version}

    def _gate(self, version: str) -> dict[str, Any]:
        """Candidate against champion on the holdout, paired by patient."""
        place = self.place
        with place.watch("compare with the champion on the holdout") as report:
            evidence = evaluate(place.archive, place.project, Registry(place.tracking_uri), version, progress=report)
        return {
            "dice": evidence.means.get(version),
            "structures": evidence.structures,
            "verdict": evidence.verdict,
            "reason": evidence.reason,
            "unproven": evidence.unproven,
        }

    def _promote(self, version: str) -> dict[str, Any]:
        registry, model = Registry(self.place.tracking_uri), self.place.project.model
        promoted = registry.promote(model, version)
        return {"promoted": promoted, "champion": registry.champion(model)}

    def _score(self) -> dict[str, Any]:
        """Predictive entropy of every series that is still to be labelled, by the champion."""
        place = self.place
        roles = freeze(place.archive, place.project)
        known = current(place.archive, place.project.key)
        pool = sorted(uid for uid, role in roles.items() if role == "train" and uid not in known)
        with place.watch(f"score {len(pool)} unlabelled series") as report:
            scored = score_pool(
                place.spark, place.archive, place.project, pool, tracking_uri=place.tracking_uri, progress=report
            )
        return {"scored": scored.done + scored.already, "failed": [list(failed) for failed in scored.failed]}
