"""``voxloop sweep``: try plans for the one that scores best on the validation cases."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxloop import console
from voxloop.command import HomeOption, JsonOption, app, guarded, spark_session
from voxloop.settings import Settings, read

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from datamodules.fingerprint import Fingerprint
    from datamodules.plan import Plan
    from training.launch import TrainJob
    from training.training_set import TrainingSet

__all__ = ["sweep"]


@app.command()
@guarded
def sweep(
    config: Annotated[Path, typer.Argument(help="The sweep's file (YAML).")],
    trials: Annotated[int | None, typer.Option(min=1, help="How many trials, those of earlier calls included.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Trials at a time; GPUs are shared out among them.")] = 1,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Train by different plans and keep the best; a sweep that was stopped goes on."""
    from experiments.sweep_config import SweepConfig
    from voxloop.tracking import tracking_server

    loaded, settings = SweepConfig.load(config), read(home)
    if trials is not None:
        loaded = loaded.model_copy(update={"trials": trials})
    with tracking_server(settings) as uri, _target(settings, loaded.target, uri) as target:
        from experiments.sweep import Sweep

        with console.stage(f"sweep {loaded.name}") as report:
            made = Sweep(loaded, target, settings.home / "sweeps", uri, note=_note, progress=report)
            result = made.run(workers=workers)
    console.note(f"best: trial {result.best_trial} with {result.best_score:.4f}, run {result.best_run}")
    console.note(f"its plan: best_plan.json of run {result.run_id}")
    if json:
        console.emit(result.as_json())


@contextmanager
def _target(settings: Settings, source: Path, tracking_uri: str) -> Iterator["_Target"]:
    """What ``source`` names (see ``training_set``), measured; Spark, where it is needed, runs while the ``with`` lasts."""
    from voxloop.train_commands import training_set

    chosen = training_set(settings, source)
    if chosen.prepared is not None:
        yield _Target(settings, chosen, tracking_uri, None, None)
        return
    with spark_session(settings) as spark:
        with console.stage(f"measure {len(chosen.cases)} cases"):
            fingerprint = chosen.fingerprint(spark)
        yield _Target(settings, chosen, tracking_uri, spark, fingerprint)


@dataclass(frozen=True)
class _Target:
    """A training set as ``experiments.sweep.Trainable``."""

    settings: Settings
    chosen: "TrainingSet"
    tracking_uri: str
    spark: "SparkSession | None"
    fingerprint: "Fingerprint | None"

    @property
    def experiment(self) -> str:
        return self.chosen.name

    def plan(self, overrides: Mapping[str, Any]) -> "Plan":
        return self.chosen.plan(self.fingerprint, overrides)

    def job(self, plan: "Plan", *, run_name: str, parent_run: str) -> "TrainJob":
        from voxloop.revision import code_revision

        dataset = self.chosen.prepared
        if dataset is None:
            assert self.spark is not None
            dataset = self.chosen.build(self.spark, plan, self.settings.home / "datasets")
        return self.chosen.job(
            dataset,
            plan,
            tracking_uri=self.tracking_uri,
            code_revision=code_revision(),
            run_name=run_name,
            parent_run=parent_run,
            viewer_url=self.settings.viewer,
        )


def _note(line: str) -> None:
    console.plain(f"  {line}")
