"""The command line. Every command takes --home and --json, ends with status 0 or says in one line what to do."""

import os
import signal
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from voxloop import catalog_commands as catalog_commands  # registers its commands
from voxloop import console
from voxloop import label_commands as label_commands
from voxloop import sweep_commands as sweep_commands
from voxloop import train_commands as train_commands
from voxloop import weights_commands as weights_commands
from voxloop.benches import BENCHES, find
from voxloop.command import HomeOption, JsonOption, app, existing, guarded, open_archive, spark_session
from voxloop.command import port as as_port
from voxloop.errors import FrontDoorError
from voxloop.settings import read

__all__ = ["app", "main"]

NOTHING_RUNS = 3  # what systemctl's status says of a service that does not

ProjectArgument = Annotated[Path, typer.Argument(help="Project file (YAML).")]


@app.command()
@guarded
def receipt(
    uid: Annotated[str, typer.Argument(help="SOPInstanceUID of a predicted segmentation.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Print the way from a prediction back to the label revisions and the images it came from, and check it."""
    from serving import receipt as follow

    found = follow(open_archive(existing(home)), uid)
    console.plain(str(found))
    if json:
        console.emit(found.as_json())
    if not found.ok:
        raise FrontDoorError("the receipt does not hold", about=uid, remedy="see what is marked above")


@app.command("batch-infer")
@guarded
def batch_infer(project: ProjectArgument, home: HomeOption = None, json: JsonOption = False) -> None:
    """Predict every series of a project's cohort that has no label, with its champion; store SEG and receipts."""
    from serving import batch_infer as predict
    from voxloop.home import only_one
    from voxloop.projects import load
    from voxloop.tracking import tracking_server

    settings, loaded = read(home), load(project)
    archive = open_archive(settings)
    servers = (only_one(settings.home), tracking_server(settings))
    with servers[0], servers[1] as uri, spark_session(settings) as spark, console.stage("predict") as report:
        done = predict(spark, archive, loaded, tracking_uri=uri, progress=report)
    for series, reason in done.failed:
        console.note(f"not predicted: {series}: {reason}")
    console.note(f"{done.done} predicted, {done.already} were there already, {len(done.failed)} failed")
    if json:
        console.emit(done.as_json())
    if done.failed:
        raise FrontDoorError(f"{len(done.failed)} series were not predicted", remedy="mend what is listed above, run again")


@app.command()
@guarded
def gate(
    project: ProjectArgument,
    version: Annotated[str, typer.Argument(help="Version of the project's model to judge.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Compare a version with the champion on the holdout, and keep the evidence."""
    from serving import Registry, evaluate
    from voxloop.projects import load
    from voxloop.tracking import tracking_server

    settings, loaded = read(home), load(project)
    archive = open_archive(settings)
    with tracking_server(settings) as uri, console.stage("compare on the holdout") as report:
        evidence = evaluate(archive, loaded, Registry(uri), version, progress=report)
    console.note(f"{evidence.verdict}: {evidence.reason}")
    if json:
        console.emit(evidence.to_dict())


@app.command()
@guarded
def promote(
    model: Annotated[str, typer.Argument(help="Registered model.")],
    version: Annotated[str, typer.Argument(help="Version whose evidence the gate has passed.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Serve a version, if the gate's evidence says that it is not worse than the champion."""
    from serving import Registry
    from voxloop.tracking import tracking_server

    with tracking_server(read(home)) as uri:
        registry = Registry(uri)
        if not registry.promote(model, version):
            evidence = registry.evidence(model, version)
            raise FrontDoorError(evidence.reason if evidence else "rejected", about=f"{model} version {version}")
    console.note(f"{model} version {version} is the champion")
    if json:
        console.emit({"model": model, "champion": version})


@app.command()
@guarded
def rollback(
    model: Annotated[str, typer.Argument(help="Registered model.")], home: HomeOption = None, json: JsonOption = False
) -> None:
    """Serve the previous champion again."""
    from serving import Registry
    from voxloop.tracking import tracking_server

    with tracking_server(read(home)) as uri:
        version = Registry(uri).rollback(model)
    console.note(f"{model} version {version} is the champion again")
    if json:
        console.emit({"model": model, "champion": version})


@app.command()
@guarded
def up(
    project: Annotated[
        Path | None, typer.Argument(help="Project whose champion to serve; default: the home's only one.")
    ] = None,
    home: HomeOption = None,
    host: Annotated[
        str | None, typer.Option(help="Where the web server listens (VOXLOOP_HOST); beyond loopback it asks for a token.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(parser=as_port, metavar="PORT", help="The web server's port (VOXLOOP_VIEWER_PORT); 0 takes a free one."),
    ] = None,
    mlflow_port: Annotated[
        int | None, typer.Option(parser=as_port, metavar="PORT", help="MLflow's port; 0 takes a free one.")
    ] = None,
    endpoint_port: Annotated[
        int | None, typer.Option(parser=as_port, metavar="PORT", help="The endpoint's port; 0 takes a free one.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Serve the viewer, DICOMweb, MLflow and the champion's endpoint under one address until Ctrl-C."""
    from voxloop.up import serve

    settings = read(home)
    serve(
        settings,
        project,
        mlflow_port=settings.mlflow_port if mlflow_port is None else mlflow_port,
        endpoint_port=settings.endpoint_port if endpoint_port is None else endpoint_port,
        host=host or settings.host,
        port=settings.viewer_port if port is None else port,
        json=json,
    )


@app.command()
@guarded
def status(home: HomeOption = None, json: JsonOption = False) -> None:
    """Say what `voxloop up` keeps running in a home, and whether each part answers; status 3 where nothing runs."""
    from voxloop.up import status as look

    found = look(existing(home).home)
    if not found["running"]:
        console.note(f"nothing runs in {found['home']} (voxloop up starts it)")
    elif not json:
        console.note(f"Open {found['viewer']}")
        console.records(found["programs"])
    if json:
        console.emit(found)
    if not found["running"]:
        raise typer.Exit(NOTHING_RUNS)


@app.command()
@guarded
def bench(
    name: Annotated[str, typer.Argument(help=f"Which: {', '.join(BENCHES)}.")],
    n: Annotated[
        int | None, typer.Option("--n", "--rows", min=10, help="How many instances; each has its own default.")
    ] = None,
    index_url: Annotated[str | None, typer.Option(help="qido: a Postgres to measure on, in a schema of its own.")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Measure ours against the obvious way, both warmed and in turn."""
    chosen, settings = find(name), read(home)
    size = n or chosen.size
    with console.stage(f"bench {name} on {size} instances"):
        result = chosen.run(settings.model_copy(update={"index_url": index_url or settings.index_url}), size)
    figures = _rounded(result.as_json())
    for key, value in figures.items():
        console.note(
            "\n".join(f"  {key} {part:15} {value[part]}" for part in value)
            if isinstance(value, dict)
            else f"  {key:20} {value}"
        )
    if json:
        console.emit(figures)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return round(value, 3) if isinstance(value, float) else value


@app.command()
@guarded
def demo(
    cohort: Annotated[
        Path | None, typer.Option(help="Folder with images/ and labels/ (NIfTI); default: a synthetic cohort.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="How many rounds.")] = 3,
    home: HomeOption = None,
    json: Annotated[
        bool, typer.Option("--json", help="Say nothing on standard output but the one JSON object (always so).")
    ] = True,
) -> None:
    """Play the whole loop: import, ingest, and rounds of label, train, gate, promote, score; then predict the rest."""
    from voxloop.demo import play
    from voxloop.home import only_one

    settings = read(home)
    with only_one(settings.home):
        summary = play(settings, cohort=cohort, rounds=rounds)
    words = "voxloop up" + (f" --home {home}" if home else "")
    console.note(f"See the runs side by side, and label the next series yourself (docs/label.md): {words}  (or: make up)")
    console.emit(summary)


def main() -> None:
    """The ``voxloop`` command; SIGTERM is taken as Ctrl-C."""

    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    app()
