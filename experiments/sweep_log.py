"""A sweep in MLflow: one run that its trials' runs are nested in."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from datamodules.plan import Plan
from experiments.sweep_config import SweepConfig
from training.tracking import RunLog, experiment_id

if TYPE_CHECKING:
    import optuna
    from matplotlib.figure import Figure

__all__ = ["BEST_PLAN", "TRIAL", "SweepLog", "overrides"]

BEST_PLAN = "best_plan.json"
TRIAL = "trial"
"""The tag with a trial's number."""

NOT_SAID = ("structures", "values", "channels")  # the label set's and the project's to say


def overrides(plan: Plan) -> dict[str, Any]:
    """What gives ``plan`` again wherever it is put into one of the same target."""
    return {name: value for name, value in plan.to_dict().items() if name not in NOT_SAID}


class SweepLog:
    """The run ``run_id`` of a sweep, and the runs of its trials."""

    def __init__(self, tracking_uri: str, run_id: str) -> None:
        self.run_id, self._tracking_uri = run_id, tracking_uri
        self._run = RunLog(tracking_uri, run_id)
        self._client = self._run.client

    @classmethod
    def begin(cls, tracking_uri: str, experiment: str, config: SweepConfig, known: str | None) -> "SweepLog":
        """A new run with the sweep's parameters, or the one that is ``known`` from before, running again."""
        client = MlflowClient(tracking_uri)
        if known and _there(client, known):
            client.update_run(known, status="RUNNING")
            return cls(tracking_uri, known)
        tags = {"sweep": config.name, "mlflow.note.content": f"Sweep {config.name}: tuned on the validation cases alone."}
        run = client.create_run(experiment_id(client, experiment), run_name=config.name, tags=tags)
        for name, value in config.kept().items():
            client.log_param(run.info.run_id, name, value)
        return cls(tracking_uri, str(run.info.run_id))

    def finished(self, trial: int, score: float, best: float) -> None:
        """A trial's score, and the best so far, at the trial's number."""
        self._run.metrics({"trial_score": score, "best_score": best}, trial)

    def best_plan(self, plan: Plan) -> None:
        """best_plan.json, for ``voxloop train --config``."""
        self._client.log_dict(self.run_id, overrides(plan), BEST_PLAN)

    def pruned(self, trial: int) -> None:
        """A trial's run was stopped before its end: KILLED, tagged ``pruned``; it is not gone on with."""
        for run_id, _ in self._runs_of(trial):
            log = RunLog(self._tracking_uri, run_id)
            self._client.set_tag(run_id, "pruned", "true")
            log.forget_checkpoint()
            log.end("KILLED")

    def interrupted(self, trial: int) -> None:
        """The sweep ended under a trial, which is tried anew: its run is tagged ``retried``, and ended where it was not."""
        for run_id, status in self._runs_of(trial):
            log = RunLog(self._tracking_uri, run_id)
            self._client.set_tag(run_id, "retried", "true")
            log.forget_checkpoint()
            if status == "RUNNING":
                log.end("KILLED")

    def pictures(self, study: "optuna.Study") -> None:
        """history.png: scores by trial; importance.png: what they depend on, where two trials or more tell."""
        self._client.log_figure(self.run_id, _history(study), "history.png")
        figure = _importance(study)
        if figure is not None:
            self._client.log_figure(self.run_id, figure, "importance.png")

    @contextmanager
    def ended(self) -> Iterator[None]:
        """The run's status follows from how the block ends."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            self._run.end("KILLED")
            raise
        except BaseException:
            self._run.end("FAILED")
            raise
        self._run.end("FINISHED")

    def _runs_of(self, trial: int) -> list[tuple[str, str]]:
        """Run id and status of the runs of a trial."""
        experiment = self._client.get_run(self.run_id).info.experiment_id
        asked = f"tags.`mlflow.parentRunId` = '{self.run_id}' and tags.{TRIAL} = '{trial}'"
        return [(run.info.run_id, run.info.status) for run in self._client.search_runs([experiment], asked)]


def _there(client: MlflowClient, run_id: str) -> bool:
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException:
        return False


def _history(study: "optuna.Study") -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    from optuna.trial import TrialState

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    pruned = [t for t in study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)) if t.value is not None]
    values = [trial.value or 0.0 for trial in ended]
    axes.scatter([trial.number for trial in ended], values, label="trial")
    axes.scatter([t.number for t in pruned], [t.value or 0.0 for t in pruned], marker="x", color="grey", label="pruned")
    best = [max(values[: index + 1]) for index in range(len(values))]
    axes.step([trial.number for trial in ended], best, where="post", color="C1", label="best so far")
    axes.set(xlabel="trial", ylabel="val_score", title=study.study_name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


def _importance(study: "optuna.Study") -> "Figure | None":
    from matplotlib.figure import Figure
    from optuna.importance import get_param_importances

    try:
        found = get_param_importances(study)
    except (ValueError, RuntimeError):  # too few trials, or all of one score
        return None
    figure = Figure(figsize=(8, 1 + 0.4 * len(found)), layout="constrained")
    axes = figure.subplots()
    names = list(found)[::-1]
    axes.barh(names, [found[name] for name in names])
    axes.set(xlabel="importance (PED-ANOVA)", title=study.study_name)
    return figure
