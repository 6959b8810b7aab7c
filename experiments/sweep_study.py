"""A sweep's trials in Optuna's database: opened, held by one process, drawn, and judged epoch by epoch."""

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.trial import TrialState
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from datamodules.plan import Plan
from experiments.errors import ExperimentError
from experiments.sweep_config import SweepConfig
from training.errors import TrainingError

__all__ = ["SCORED", "Watch", "alone", "begin"]

SCORED = (TrialState.COMPLETE, TrialState.PRUNED)
"""What a sweep's trials are counted by."""


@contextmanager
def alone(path: Path, name: str) -> Iterator[None]:
    """Hold the lock of sweep ``name``; the system lets go of it when this process ends, however it ends.

    ExperimentError where another process holds it.
    """
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            remedy = "wait for it, or stop it; --workers makes one sweep use several devices"
            raise ExperimentError("runs already", about=f"sweep {name}", remedy=remedy) from None
        yield


def begin(config: SweepConfig, folder: Path) -> optuna.Study:
    """The study of ``config``, a new one or the one that is there.

    ExperimentError where its database cannot be opened, or where it was begun with something else than ``config.kept``.
    """
    about = f"sweep {config.name}"
    default = URL.create("sqlite", database=str(folder / f"{config.name}.db")).render_as_string(hide_password=False)
    try:
        storage = optuna.storages.get_storage(config.storage or default)
        study = optuna.create_study(storage=storage, study_name=config.name, direction="maximize", load_if_exists=True)
    except (SQLAlchemyError, ImportError, optuna.exceptions.OptunaError) as problem:
        said = str(problem).splitlines()[0]
        raise ExperimentError(f"its database cannot be used: {said}", about=about, remedy="see storage: in its file") from None
    before = study.user_attrs.get("kept", config.kept())
    changed = [name for name, value in config.kept().items() if before.get(name) != value]
    if changed:
        remedy = "give it another name, or put back what it was begun with"
        raise ExperimentError(f"was begun with another {', '.join(changed)}", about=about, remedy=remedy)
    study.set_user_attr("kept", config.kept())
    study.sampler, study.pruner = _sampler(config, len(study.get_trials(deepcopy=False))), _pruner(config.pruner)
    return study


def _sampler(config: SweepConfig, before: int) -> optuna.samplers.BaseSampler:
    seed = config.seed + before  # going on must not draw again what was drawn before
    return optuna.samplers.TPESampler(seed=seed) if config.sampler == "tpe" else optuna.samplers.RandomSampler(seed=seed)


def _pruner(name: str) -> optuna.pruners.BasePruner:
    if name == "median":
        return optuna.pruners.MedianPruner()
    return optuna.pruners.HyperbandPruner() if name == "hyperband" else optuna.pruners.NopPruner()


class Watch:
    """Reports a training's val_score by epoch to its trial; raises TrialPruned where it is not worth going on."""

    def __init__(self, trial: optuna.Trial, plan: Plan) -> None:
        self._trial, self._plan = trial, plan
        self._best: float | None = None
        self.epoch = 0

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        score = values.get("val_score", float("nan"))
        if score == score and (self._best is None or score > self._best):
            self._best = score
        epoch = step // self._plan.validate_every  # trials are compared epoch by epoch, whatever their steps
        if epoch > self.epoch:
            self.epoch = epoch
            self._trial.report(score, epoch)
            if step < self._plan.steps and self._trial.should_prune():
                raise optuna.TrialPruned

    def score(self) -> float:
        """The best of all epochs."""
        if self._best is None:
            raise TrainingError("no epoch gave a val_score that is a number", about=f"trial {self._trial.number}")
        return self._best
