"""The command line. Every command takes --home and --json, ends with status 0 or says in one line what to do."""

import errno
import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, ParamSpec

import typer

from catalog.errors import VoxloopError
from voxloop import console
from voxloop.errors import FrontDoorError
from voxloop.settings import Settings, read

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from catalog import Archive, Project

__all__ = ["app", "main"]

app = typer.Typer(
    help="The label, train and serve loop for medical images.", no_args_is_help=True, pretty_exceptions_enable=False
)

HomeOption = Annotated[Path | None, typer.Option("--home", help="Folder with all state (VOXLOOP_HOME, ./.voxloop).")]
JsonOption = Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")]
ProjectArgument = Annotated[Path, typer.Argument(help="Project file (YAML).")]

P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """A user's mistake or a full disk becomes one line and status 1, Ctrl-C one line and status 130.

    Any other exception is a bug, and shows its traceback.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except VoxloopError as problem:
            console.error(str(problem))
        except KeyboardInterrupt:
            console.error("stopped; run the same command again to go on where it was")
            _leave(130)
        except Exception as problem:
            if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                console.error(f"{problem.filename or 'the disk'}: {problem.strerror} (make room or choose another --home)")
            else:
                traceback.print_exc()
        else:
            _leave(0)
        _leave(1)

    return run


def _leave(status: int) -> NoReturn:
    """End now: no thread that still computes is waited for, no library's farewell is printed; servers were stopped, or end
    with this process (voxloop.child)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def _spark(settings: Settings, *, warm: bool = True) -> "Iterator[SparkSession]":
    from voxloop.spark import start

    with console.stage("start Spark"):
        spark = start(settings, warm=warm)
    try:
        yield spark
    finally:
        spark.stop()


def _archive(settings: Settings) -> "Archive":
    from catalog import Archive

    archive = Archive(settings.home, index_url=settings.index_url or None)
    for line in archive.finish():
        console.note(f"  finished after a crash: {line}")
    return archive


def _existing(home: Path | None) -> Settings:
    """The settings of a home that is there; FrontDoorError where none is, so that a slip is not taken for an empty archive."""
    settings = read(home)
    if not (settings.home / "tables").is_dir():
        raise FrontDoorError("no Voxloop home here", about=str(settings.home), remedy="name it with --home or VOXLOOP_HOME")
    return settings


def _project(path: Path) -> "Project":
    from catalog import Project

    return Project.load(path)


@app.command("import-nifti")
@guarded
def import_nifti(
    folder: Annotated[Path, typer.Argument(help="Folder with images/*.nii.gz and labels/*.nii.gz.")],
    out: Annotated[Path | None, typer.Option(help="Where the DICOM goes; default HOME/volume/imported/NAME.")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Turn a folder of NIfTI images and labels into DICOM: one patient, study and series a case, labels as DICOM SEG."""
    from catalog import import_nifti as convert

    target = out or read(home).home / "volume" / "imported" / folder.resolve().name
    with console.stage(f"import {folder}") as report:
        done = convert(folder, target, progress=report)
    console.note(f"{done.images} images and {done.labels} labels are in {target}")
    at = f" --home {home}" if home else ""
    console.note(f"next: voxloop ingest {target / 'images'}{at}   (labels/ holds the SEG files; ingest them too to see them)")
    if json:
        console.emit({**done.as_json(), "out": str(target)})


@app.command()
@guarded
def ingest(
    path: Annotated[Path, typer.Argument(help="A folder (or one file) with DICOM.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Read every file's header into the catalog; what is there already, unchanged, is not opened again."""
    from catalog import ingest as read_headers

    if not path.exists():
        raise FrontDoorError("no such file or folder", about=str(path), remedy="name a folder with DICOM files")
    settings = read(home)
    archive = _archive(settings)
    with _spark(settings, warm=False) as spark, console.stage(f"ingest {path}") as report:
        done = read_headers(spark, archive, path, progress=report)
    console.note(f"{done.found} files: {done.added} added, {done.unchanged} unchanged, {done.bad} not usable")
    if done.bad:
        under = str(path.absolute()).replace("'", "''")
        bad = f"status <> 'ok' and starts_with(path, '{under}')"
        why = f"select relative_path, status, error from object_catalog where {bad} limit 5"
        for row in archive.sql(why).to_pylist():
            console.note(f"  {row['relative_path']}: {row['status']}: {row['error']}")
        if done.bad > 5:
            console.note("  … and more: voxloop sql \"select path, status, error from object_catalog where status <> 'ok'\"")
    if json:
        console.emit(done.as_json())


@app.command()
@guarded
def sql(
    query: Annotated[
        str, typer.Argument(help="SQL over object_catalog, instances, series, studies, labels, predictions, scores.")
    ],
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Ask the catalog, read-only."""
    rows = _archive(_existing(home)).sql(query).to_pylist()
    if json:
        console.emit({"rows": rows})
        return
    console.records(rows)
    console.note(f"{len(rows)} row{'' if len(rows) == 1 else 's'}")


@app.command()
@guarded
def receipt(
    uid: Annotated[str, typer.Argument(help="SOPInstanceUID of a predicted segmentation.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Print the way from a prediction back to the label revisions and the images it came from, and check it."""
    from serving import receipt as follow

    found = follow(_archive(_existing(home)), uid)
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
    from voxloop.tracking import tracking_server

    settings, loaded = read(home), _project(project)
    archive = _archive(settings)
    servers = (only_one(settings.home), tracking_server(settings))
    with servers[0], servers[1] as uri, _spark(settings) as spark, console.stage("predict") as report:
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
    from voxloop.tracking import tracking_server

    settings, loaded = read(home), _project(project)
    archive = _archive(settings)
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
    mlflow_port: Annotated[int | None, typer.Option(help="MLflow's port; 0 takes a free one.")] = None,
    endpoint_port: Annotated[int | None, typer.Option(help="The endpoint's port; 0 takes a free one.")] = None,
    json: JsonOption = False,
) -> None:
    """Serve MLflow and the champion's endpoint on this machine until Ctrl-C."""
    from voxloop.up import serve

    settings = read(home)
    serve(
        settings,
        project,
        mlflow_port=settings.mlflow_port if mlflow_port is None else mlflow_port,
        endpoint_port=settings.endpoint_port if endpoint_port is None else endpoint_port,
        json=json,
    )


@app.command()
@guarded
def bench(
    name: Annotated[str, typer.Argument(help="Which: ingest.")],
    n: Annotated[int, typer.Option(min=10, help="How many instances.")] = 4000,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Measure ours against the obvious way, both warmed and in turn."""
    from experiments import ingest_bench

    if name != "ingest":
        raise FrontDoorError("no such bench", about=name, remedy="there is: ingest")
    settings = read(home)
    with _spark(settings, warm=False) as spark, console.stage(f"bench {name} on {n} instances"):
        result = ingest_bench.bench(spark, settings.home / "bench" / name, n=n)
    figures = {key: round(value, 3) if isinstance(value, float) else value for key, value in result.as_json().items()}
    console.note("\n".join(f"  {key:20} {value}" for key, value in figures.items()))
    if json:
        console.emit(figures)


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
    console.note(
        f"See the runs side by side: {Path(sys.argv[0]).name} up" + (f" --home {home}" if home else "") + "  (or: make up)"
    )
    console.emit(summary)


def main() -> None:
    """The ``voxloop`` command; SIGTERM is taken as Ctrl-C."""

    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    app()
