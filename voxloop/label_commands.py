"""The commands over labels that exist already."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxloop import console
from voxloop.command import HomeOption, JsonOption, app, existing, guarded, open_archive
from voxloop.errors import FrontDoorError

if TYPE_CHECKING:
    from catalog import LabelImport

__all__: list[str] = []


@app.command("import-labels")
@guarded
def import_labels(
    project: Annotated[Path, typer.Argument(help="Project file (YAML).")],
    path: Annotated[
        list[Path] | None, typer.Argument(help="SEG, RTSTRUCT, NIfTI, folders, CSV; default: what the catalog has.")
    ] = None,
    series: Annotated[str, typer.Option(help="SeriesInstanceUID of the series that they were drawn on.")] = "",
    mapping: Annotated[
        list[str] | None, typer.Option("--map", help='What is which structure: "Segment 1=liver"; may be repeated.')
    ] = None,
    threshold: Annotated[float, typer.Option(help="From which share on a voxel of a FRACTIONAL segment counts.")] = 0.5,
    author: Annotated[str, typer.Option(help="Who outlined; default: who the object names.")] = "",
    status: Annotated[str, typer.Option(help="draft, submitted or approved.")] = "submitted",
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Make label revisions of DICOM SEG, RT Structure Sets and NIfTI masks of a project's series; again adds nothing."""
    from catalog import import_labels as take
    from voxloop.projects import load

    loaded, chosen = load(project), dict(map(_pair, mapping or ()))
    archive = open_archive(existing(home))
    told: dict[str, Any] = {"series": series, "mapping": chosen, "threshold": threshold, "author": author, "status": status}
    with console.stage("import labels") as report:
        done = take(archive, loaded, path or (), **told, progress=report)
    _show(done)
    if json:
        console.emit(done.as_json())
    if refused := done.count("refused"):
        raise FrontDoorError(f"{refused} of {len(done.sources)} were not imported", remedy="the reasons are listed above")


@app.command()
@guarded
def features(home: HomeOption = None, json: JsonOption = False) -> None:
    """Measure the labels and predictions without rows in features: from before that table, or with a file out of reach."""
    from catalog.features import complete

    archive = open_archive(existing(home))
    with console.stage("measure") as report:
        measured, notes = complete(archive, report)
    for note in notes:
        console.note(f"  not measured in full: {note}")
    console.note(f"{measured} labels and predictions measured")
    if json:
        console.emit({"measured": measured, "notes": notes})


def _pair(told: str) -> tuple[str, str]:
    """Source name and structure of NAME=STRUCTURE; a name may hold ``=``."""
    source, found, structure = told.rpartition("=")
    if not found or not source or not structure:
        raise FrontDoorError("not NAME=STRUCTURE", about=f"--map {told}", remedy='write --map "Segment 1=liver"')
    return source, structure


def _show(done: "LabelImport") -> None:
    """A row a source that was taken, a line a source that was not."""
    taken = [one for one in done.sources if one.outcome != "refused"]
    rows = [
        {
            "source": shown,
            "kind": one.kind,
            "series": one.series_uid,
            "outcome": one.outcome,
            "structures": [_said(name, state, one.volumes_ml) for name, state in one.states.items()],
            "not matched": one.unmatched,
        }
        for one, shown in zip(taken, told_apart([one.source for one in taken]), strict=True)
    ]
    console.records(rows)
    for one in done.sources:
        for note in one.notes:
            console.note(f"{one.source}: {note}")
        if one.outcome == "refused":
            console.note(f"refused: {one.source}: {one.reason}")
    counts = {outcome: done.count(outcome) for outcome in ("added", "already", "refused")}
    over = f"; {done.passed_over} files outline nothing" if done.passed_over else ""
    console.note(f"{counts['added']} added, {counts['already']} there already, {counts['refused']} refused{over}")


def told_apart(sources: Sequence[str]) -> list[str]:
    """The name of each file, with as many of its folders as tell it from the others."""
    parts = [Path(source).parts for source in sources]
    told = []
    for own in parts:
        others = {other for other in parts if other != own}
        depth = next((n for n in range(1, len(own)) if all(other[-n:] != own[-n:] for other in others)), len(own))
        told.append(str(Path(*own[-depth:])))
    return told


def _said(name: str, state: str, volumes_ml: Mapping[str, float]) -> str:
    return f"{name} {volumes_ml[name]:.2f} ml" if name in volumes_ml else f"{name} {state.replace('_', ' ')}"
