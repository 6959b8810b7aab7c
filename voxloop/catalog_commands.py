"""The commands over the catalog: files in, questions, files out."""

from pathlib import Path
from typing import Annotated

import typer

from voxloop import console
from voxloop.command import HomeOption, JsonOption, app, existing, guarded, open_archive, spark_session
from voxloop.errors import FrontDoorError
from voxloop.settings import read

__all__: list[str] = []


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
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Ask the catalog, read-only."""
    rows = open_archive(existing(home)).sql(query).to_pylist()
    if json:
        console.emit({"rows": rows})
        return
    console.records(rows)
    console.note(f"{len(rows)} row{'' if len(rows) == 1 else 's'}")
