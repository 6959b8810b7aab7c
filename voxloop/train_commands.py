"""`voxloop train`: a training on a project's labels, a folder of NIfTI files or a dataset that was carried here."""

from contextlib import ExitStack
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.table import Table

from voxloop import console
from voxloop.command import HomeOption, JsonOption, app, existing, guarded, open_archive, spark_session
from voxloop.errors import FrontDoorError
from voxloop.settings import Settings, read

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from datamodules import Plan
    from training import Launcher, TrainJob
    from training.training_set import TrainingSet

__all__ = ["overrides", "training_set"]


class Where(StrEnum):
    """Where a training runs."""

    LOCAL = "local"
    DDP = "ddp"
    SPARK = "spark"


SetOption = Annotated[list[str] | None, typer.Option("--set", help="field=value of the plan; goes before --config. Repeat it.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML or JSON file with fields of the plan.")]


@app.command()
@guarded
def train(
    source: Annotated[
        Path | None, typer.Argument(help="Project file, folder with images/ and labels/ (NIfTI), or a prepared dataset.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    launcher: Annotated[Where, typer.Option(help="One process, several here, or a Spark cluster's tasks.")] = Where.LOCAL,
    processes: Annotated[int | None, typer.Option(min=1, help="ddp, spark: how many; default: the GPUs, or 2.")] = None,
    fold: Annotated[int | None, typer.Option(min=0, help="Which fifth of the cases validates (cross-validation).")] = None,
    resume: Annotated[str | None, typer.Option(help="Go on with this run, which was stopped.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Begin from these weights (vista3d: see voxloop weights).")] = None,
    name: Annotated[str, typer.Option(help="The run's name in MLflow.")] = "train",
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Print the plan, train nothing.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Train a network and leave the run, its weights and pictures in MLflow."""
    from voxloop.tracking import tracking_server

    if (source is None) == (resume is None):
        raise FrontDoorError("give what to train on, or --resume RUN_ID", about="train", remedy="voxloop train --help")
    if processes and launcher is Where.LOCAL:
        raise FrontDoorError("one process is all there is", about="--processes", remedy="add --launcher ddp, or spark")
    settings, given = read(home), overrides(config, set_ or [])
    if resume and (given or weights or fold is not None or plan_only):
        raise FrontDoorError("a run goes on as it was planned", about="--resume", remedy="leave out what would change it")
    with ExitStack() as stack:
        spark = _Spark(settings, stack)
        if source is not None:
            chosen = training_set(settings, source, fold=fold)
            plan = chosen.plan(_fingerprint(chosen, spark), given)
            if plan_only:
                return print(_shown(plan, json))
        uri = stack.enter_context(tracking_server(settings))
        if resume:
            from training.run import load_job

            job = load_job(uri, resume)
        else:
            job = _job(settings, chosen, plan, spark, uri, name, weights)
        with console.stage(f"train {job.plan.steps} steps of {job.plan.network or job.plan.task}") as report:
            run_id = _launcher(launcher, processes, spark, report).run(job, resume=resume)
        _tell(uri, run_id, home, json)
    return None


def training_set(settings: Settings, source: Path, *, fold: int | None = None) -> "TrainingSet":
    """What ``source`` names: a prepared dataset, a folder of NIfTI files, or a project file of the home."""
    from training.training_set import TrainingSet

    if (source / "dataset.json").exists() and (source / "train").is_dir():
        if fold is not None:
            raise FrontDoorError("a prepared dataset has its roles", about="--fold", remedy="leave it out, or build another")
        return TrainingSet.of_dataset(source)
    if source.is_dir():
        return TrainingSet.of_folder(source, fold=fold)

    from voxloop.projects import load

    project = load(source)
    return TrainingSet.of_project(open_archive(existing(settings.home)), project, fold=fold)


def overrides(config: Path | None, given: list[str]) -> dict[str, Any]:
    """Fields of the plan from a file and from ``field=value`` (YAML; ``network_args.filters=[16, 32]`` sets one argument)."""
    found: dict[str, Any] = {}
    if config is not None:
        try:
            found = yaml.safe_load(config.read_text()) or {}
        except OSError as problem:
            raise FrontDoorError(problem.strerror or str(problem), about=str(config), remedy="check the path") from None
        except (yaml.YAMLError, UnicodeDecodeError) as problem:
            raise FrontDoorError(f"not YAML: {' '.join(str(problem).split())}", about=str(config)) from None
        if not isinstance(found, dict):
            raise FrontDoorError("not fields and values", about=str(config), remedy="write lines like  steps: 2000")
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise FrontDoorError("not field=value", about=f"--set {text}", remedy="write it like  --set steps=2000")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            parsed = value
        field, _, argument = name.partition(".")
        if argument and not isinstance(found.get(field) or {}, dict):
            raise FrontDoorError(
                f"{field} has no arguments", about=f"--set {text}", remedy=f"write it like  --set {field}=VALUE"
            )
        found[field] = {**(found.get(field) or {}), argument: parsed} if argument else parsed
    return found


class _Spark:
    """A session that starts when it is asked for first."""

    def __init__(self, settings: Settings, stack: ExitStack) -> None:
        self._settings, self._stack = settings, stack
        self._session: SparkSession | None = None

    def __call__(self) -> "SparkSession":
        if self._session is None:
            self._session = self._stack.enter_context(spark_session(self._settings))
        return self._session


def _fingerprint(chosen: "TrainingSet", spark: _Spark) -> Any:
    if chosen.prepared is not None:
        return None
    with console.stage(f"measure {len(chosen.cases)} cases"):
        return chosen.fingerprint(spark())


def _job(
    settings: Settings, chosen: "TrainingSet", plan: "Plan", spark: _Spark, uri: str, name: str, weights: Path | None
) -> "TrainJob":
    from training.download import sha256_of
    from voxloop.revision import code_revision

    if weights is not None and not weights.is_file():
        raise FrontDoorError("no such file", about=f"--weights {weights}", remedy="check the path, or: voxloop weights vista3d")
    if weights is not None and plan.task == "vista3d":  # so that the run says what it began from
        plan = replace(plan, network_args={**plan.network_args, "weights_sha256": sha256_of(weights)})
    if chosen.prepared is not None:
        dataset = chosen.prepared
    else:
        with console.stage("build the dataset") as report:
            dataset = chosen.build(spark(), plan, settings.home / "datasets", progress=report)
    for case, reason in dataset.left_out:
        console.note(f"[yellow]left out[/yellow] {case}: {reason}")
    return chosen.job(
        dataset,
        plan,
        tracking_uri=uri,
        code_revision=code_revision(),
        run_name=name,
        viewer_url=settings.viewer,
        weights="" if weights is None else str(weights.resolve()),
    )


def _launcher(where: Where, processes: int | None, spark: _Spark, report: Any) -> "Launcher":
    import torch

    from training.launch import DDPLauncher, LocalLauncher, SparkLauncher

    if where is Where.LOCAL:
        return LocalLauncher(progress=report)
    number = processes or torch.cuda.device_count() or 2
    if where is Where.DDP:
        return DDPLauncher(number, progress=report)
    return SparkLauncher(spark(), number, progress=report)


def _shown(plan: "Plan", json: bool) -> str:
    import json as encoder

    return encoder.dumps(plan.to_dict()) if json else yaml.safe_dump(plan.to_dict(), sort_keys=False, default_flow_style=None)


def _tell(uri: str, run_id: str, home: Path | None, json: bool) -> None:
    """What came out, and where to look."""
    from mlflow import MlflowClient

    run = MlflowClient(uri).get_run(run_id)
    final = {name.removeprefix("final_"): value for name, value in run.data.metrics.items() if name.startswith("final_")}
    table = Table(title=f"Run {run_id}", title_justify="left", show_header=False)
    for key, value in sorted(final.items()):
        table.add_row(key, f"{value:.4f}")
    console.table(table)
    at = f" --home {home}" if home else ""
    where = f"experiment {run.info.experiment_id}, run {run.info.run_name}"
    console.note(f"curves, slices and the worst cases: voxloop up{at}  ({where})")
    if json:
        console.emit({"run_id": run_id, "status": run.info.status, "experiment": run.info.experiment_id, "metrics": final})
