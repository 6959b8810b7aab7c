"""The commands over the catalog: files in, questions, files out."""

from contextlib import ExitStack
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from voxloop import console
from voxloop.answer import Format, show, write
from voxloop.command import HomeOption, JsonOption, app, existing, guarded, open_archive, spark_session
from voxloop.errors import FrontDoorError
from voxloop.settings import read

__all__: list[str] = []


class Engine(StrEnum):
    """What answers SQL."""

    DUCKDB = "duckdb"
    SPARK = "spark"


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
    archive = open_archive(settings)
    with spark_session(settings, warm=False) as spark, console.stage(f"ingest {path}") as report:
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
    engine: Annotated[Engine, typer.Option(help="DuckDB in this process, or Spark.")] = Engine.DUCKDB,
    form: Annotated[Format, typer.Option("--format", help="How the rows are given.")] = Format.TABLE,
    out: Annotated[Path | None, typer.Option(help="The file for json, csv or parquet; else standard output.")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Ask the catalog, read-only: one query, dicom_tag(meta, 'ConvolutionKernel') for any attribute of a header."""
    if form is Format.TABLE and (json or out):
        form = Format.JSON if json and not out else _by_name(out)
    settings = existing(home)
    with ExitStack() as opened:
        archive = open_archive(settings)
        spark = opened.enter_context(spark_session(settings, warm=False)) if engine is Engine.SPARK else None
        rows = archive.query(query, spark=spark)
        if form is Format.TABLE:
            show(rows)
            return
        count = write(rows, form, out)
    if out:
        console.note(f"{count} row{'' if count == 1 else 's'} in {out}")
        if json:
            console.emit({"out": str(out), "count": count})


@app.command()
@guarded
def cases(
    project: Annotated[Path, typer.Argument(help="Project file (YAML).")],
    explain: Annotated[bool, typer.Option("--explain", help="Say of every series which case it is in, or why none.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """List the cases that a project's rules make of its cohort, and the studies that they refuse, with the reason."""
    from catalog import Project, examine

    rules = Project.load(project)
    names = [channel.name for channel in rules.channels] or ["image"]
    studies = list(examine(open_archive(existing(home)), rules))
    listed = [(case, dict(zip(names, case.refs, strict=True))) for study in studies for case in study.cases]
    refusals = [{"study_uid": study.study_uid, "reason": study.reason} for study in studies if study.reason]
    if json:
        verdicts = [{"study_uid": study.study_uid, **asdict(found)} for study in studies for found in study.verdicts]
        told = [{**asdict(case), "channels": channels} for case, channels in listed]
        console.emit({"cases": told, "refused": refusals, **({"series": verdicts} if explain else {})})
        return
    console.records([{"study_uid": case.study_uid, "patient_id": case.patient_id, **channels} for case, channels in listed])
    for study in studies if explain else ():
        console.plain(f"\nstudy {study.study_uid}")
        for found in study.verdicts:
            fate = f"in: {found.channel}" if found.channel else f"out: {found.reason}"
            console.plain(f"  {found.ref}  {found.modality} {found.description!r}  {fate}")
    for refusal in refusals:
        console.plain(f"refused: study {refusal['study_uid']}: {refusal['reason']}")
    console.note(f"{len(listed)} case{'' if len(listed) == 1 else 's'} of {len(studies)} studies, {len(refusals)} refused")


def _by_name(out: Path | None) -> Format:
    """The format that a file's name ends with."""
    ending = (out.suffix if out else "").removeprefix(".").lower()
    if ending not in {form.value for form in Format if form is not Format.TABLE}:
        raise FrontDoorError("a table is for the screen", about=str(out), remedy="add --format json, csv or parquet")
    return Format(ending)
