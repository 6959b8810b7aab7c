"""A sweep: many trainings of one target by different plans, for the plan that scores best on the validation cases.

Optuna keeps the trials in a database, so that a sweep that was killed goes on. One process holds a sweep: it asks for plans,
builds their datasets and judges scores; with several workers it hands each training to a process of a device's own.
"""

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.trial import TrialState

from catalog.progress import Progress
from datamodules.dataset import DatasetInfo
from datamodules.plan import Plan
from experiments.errors import ExperimentError
from experiments.sweep_config import SweepConfig
from experiments.sweep_log import TRIAL, SweepLog, overrides
from experiments.sweep_study import SCORED, Watch, alone, begin
from experiments.sweep_worker import TrainingProcess, devices, free_memory
from training.launch import LocalLauncher, TrainJob

__all__ = ["Sweep", "SweepResult", "Trainable"]

FAILURES = 3
"""Failed trials in a row that end a sweep."""

RETRIES = 2
"""Times that a trial is tried anew whose sweep ended under it: it may be what ends it."""

Train = Callable[[TrainJob, Callable[[int, Mapping[str, float]], None]], str]


class Trainable(Protocol):
    """What a sweep trains."""

    @property
    def experiment(self) -> str:
        """The MLflow experiment that its runs belong to."""

    def plan(self, overrides: Mapping[str, Any]) -> Plan:
        """The derived plan with ``overrides`` put in; DataError or TrainingError where they do not fit."""

    def job(self, plan: Plan, *, run_name: str, parent_run: str) -> TrainJob:
        """All that a training by ``plan`` depends on; its dataset, of training and validation cases alone, is built."""


@dataclass(frozen=True)
class SweepResult:
    """What came out: ``best_plan`` are overrides that give the best trial's plan, ``run_id`` the sweep's run in MLflow,
    ``best_run`` the best trial's. ``complete``, ``pruned`` and ``failed`` are numbers of trials, of earlier calls too."""

    sweep: str
    run_id: str
    complete: int
    pruned: int
    failed: int
    best_trial: int
    best_score: float
    best_run: str
    best_plan: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The one JSON object that ``voxloop sweep --json`` ends with."""
        return asdict(self)


class Sweep:
    """The sweep of ``config`` over ``target``; ``folder`` holds its database and its lock.

    ``note`` is told each trial in a line, ``progress`` how many of them were scored.
    """

    def __init__(
        self,
        config: SweepConfig,
        target: Trainable,
        folder: Path,
        tracking_uri: str,
        *,
        note: Callable[[str], None] = lambda line: None,
        progress: Progress | None = None,
    ) -> None:
        self._config, self._target, self._folder, self._tracking_uri = config, target, folder, tracking_uri
        self._note, self._progress = note, progress
        self._lock, self._building = threading.Lock(), threading.Lock()
        self._running = self._failed_in_a_row = 0
        self._stopping = False

    def run(self, *, workers: int = 1) -> SweepResult:
        """Try plans until ``config.trials`` are scored, those of earlier calls included.

        ExperimentError where another process runs this sweep, where it was begun with another target, plan or space, where
        the target has no validation case or a holdout case is in a dataset, or where trials fail one after another.
        """
        for field, search in self._config.space.items():
            for value in search.ends():
                self._target.plan({**self._config.plan, field: value})
        self._folder.mkdir(parents=True, exist_ok=True)
        with alone(self._folder / f"{self._config.name}.lock", self._config.name):
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            self._study = begin(self._config, self._folder)
            self._log = self._logged()
            with self._log.ended():
                self._take_up()
                self._report()
                self._work(workers)
                return self._result()

    def _logged(self) -> SweepLog:
        known = self._study.user_attrs.get("run_id")
        log = SweepLog.begin(self._tracking_uri, self._target.experiment, self._config, known)
        self._study.set_user_attr("run_id", log.run_id)
        return log

    def _take_up(self) -> None:
        """Trials that still run are of a process that is gone: they failed, their runs end, and they are tried anew."""
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            self._log.interrupted(trial.number)
            self._study.tell(trial.number, state=TrialState.FAIL)
            retries = trial.user_attrs.get("retries", 0)
            if retries < RETRIES and trial.params:
                self._study.enqueue_trial(trial.params, user_attrs={"retries": retries + 1, "retry_of": trial.number})
                self._note(f"trial {trial.number}: the sweep ended under it; it is tried anew")

    def _work(self, workers: int) -> None:
        if workers == 1:
            self._loop(lambda job, on_metrics: LocalLauncher(on_metrics=on_metrics).run(job))
            return
        found, threads = devices() or [""], max(1, (os.cpu_count() or 1) // workers)
        processes = [TrainingProcess(found[index % len(found)], threads) for index in range(workers)]
        with ThreadPoolExecutor(workers) as pool:
            try:
                loops = [pool.submit(self._loop, process.run) for process in processes]
                for loop in as_completed(loops):
                    loop.result()
            finally:
                self._stopping = True
                for process in processes:
                    process.terminate()
                for process in processes:
                    process.stop()

    def _loop(self, train: Train) -> None:
        """Trial after trial, until enough are scored or being trained."""
        while self._claimed():
            try:
                self._trial(train)
            finally:
                with self._lock:
                    self._running -= 1

    def _claimed(self) -> bool:
        with self._lock:
            scored = len(self._study.get_trials(deepcopy=False, states=SCORED))
            if self._stopping or scored + self._running >= self._config.trials:
                return False
            self._running += 1
            return True

    def _trial(self, train: Train) -> None:
        with self._lock:
            trial = self._study.ask(self._config.distributions)
        given = self._config.overrides(trial.params)
        self._note(f"trial {trial.number}: {', '.join(f'{name} {_short(given[name])}' for name in trial.params)}")
        watch = None
        try:
            plan = self._target.plan(given)
            watch = Watch(trial, plan)
            run_id = train(self._job(plan, trial.number), watch)
            score = watch.score()
        except optuna.TrialPruned:
            self._log.pruned(trial.number)
            self._study.tell(trial, state=TrialState.PRUNED)
            self._told(f"trial {trial.number}: pruned after epoch {watch.epoch if watch else 0}")
        except ExperimentError:
            self._study.tell(trial, state=TrialState.FAIL)
            raise
        except Exception as problem:
            if not self._stopping:  # else it counts as interrupted
                self._failed(trial, problem)
        else:
            self._scored(trial, score, plan, run_id)
        free_memory()

    def _job(self, plan: Plan, trial: int) -> TrainJob:
        with self._building:
            job = self._target.job(plan, run_name=f"{self._config.name} trial {trial}", parent_run=self._log.run_id)
        rows = {role: number for role, number in DatasetInfo.read(job.dataset).rows.items() if number}
        about = f"dataset {job.dataset}"
        if other := sorted(set(rows) - {"train", "validation"}):
            remedy = "a sweep's target builds datasets of training and validation cases alone"
            raise ExperimentError(f"{', '.join(other)} cases are in it", about=about, remedy=remedy)
        if "validation" not in rows:
            raise ExperimentError("no validation case to tune on", about=about, remedy="label a case of the validation split")
        return replace(job, extra_tags={**job.extra_tags, "sweep": self._config.name, TRIAL: str(trial)})

    def _scored(self, trial: optuna.Trial, score: float, plan: Plan, run_id: str) -> None:
        trial.set_user_attr("run_id", run_id)
        trial.set_user_attr("plan", plan.to_dict())
        with self._lock:
            self._study.tell(trial, score)
            best = self._study.best_trial
            self._log.finished(trial.number, score, float(best.value or 0.0))
            if best.number == trial.number:
                self._log.best_plan(plan)
        self._told(f"trial {trial.number}: {score:.4f}")

    def _failed(self, trial: optuna.Trial, problem: Exception) -> None:
        said = str(problem) or type(problem).__name__
        trial.set_user_attr("error", said)
        self._study.tell(trial, state=TrialState.FAIL)
        self._note(f"trial {trial.number}: failed: {said}")
        with self._lock:
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= FAILURES:
                remedy = "mend that, or narrow the space; the sweep goes on from here"
                about = f"sweep {self._config.name}"
                raise ExperimentError(f"{FAILURES} trials in a row failed, the last: {said}", about=about, remedy=remedy)

    def _told(self, line: str) -> None:
        """A trial was scored."""
        with self._lock:
            self._failed_in_a_row = 0
            ended = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            best = f" (best: trial {self._study.best_trial.number}, {self._study.best_value:.4f})" if ended else ""
        self._note(line + best)
        self._report()

    def _report(self) -> None:
        if self._progress:
            scored = len(self._study.get_trials(deepcopy=False, states=SCORED))
            self._progress(min(scored, self._config.trials), self._config.trials)

    def _result(self) -> SweepResult:
        states = [trial.state for trial in self._study.get_trials(deepcopy=False)]
        about = f"sweep {self._config.name}"
        if TrialState.COMPLETE not in states:
            raise ExperimentError("no trial came to its end", about=about, remedy="ask for more --trials")
        self._log.pictures(self._study)
        best = self._study.best_trial
        plan = Plan.from_dict(best.user_attrs["plan"])
        self._log.best_plan(plan)  # a kill may have come between a score and its plan
        return SweepResult(
            sweep=self._config.name,
            run_id=self._log.run_id,
            complete=states.count(TrialState.COMPLETE),
            pruned=states.count(TrialState.PRUNED),
            failed=states.count(TrialState.FAIL),
            best_trial=best.number,
            best_score=float(best.value or 0.0),
            best_run=str(best.user_attrs["run_id"]),
            best_plan=overrides(plan),
        )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
