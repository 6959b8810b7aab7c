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


@app.command()
@guarded
def thumbnails(
    series: Annotated[str, typer.Option(help="SeriesInstanceUID of the one series to keep to.")] = "",
    every: Annotated[bool, typer.Option("--all", help="Every instance, not only the middle one of each series.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Make the pictures that are missing: a PNG of at most 256 pixels for each series, in HOME/volume/thumbnails."""
    from catalog.thumbnail_extractor import make_thumbnails

    settings = existing(home)
    archive = open_archive(settings)
    with spark_session(settings, warm=False) as spark, console.stage("thumbnails") as report:
        done = make_thumbnails(spark, archive, series=series, every=every, progress=report)
    console.note(f"{done.wanted} instances: {done.made} pictures made, {done.unchanged} unchanged in {done.folder}")
    if done.without_pixels:
        console.note(f"{done.without_pixels} have no pixels: reports, plans and the like")
    if done.failed:
        console.note(f"{len(done.failed)} have no picture:")
        for path, error in done.failed[:5]:
            console.note(f"  {path}: {error}")
        if len(done.failed) > 5:
            console.note("  … and more: --json lists them all")
    if json:
        console.emit(done.as_json())


@app.command()
@guarded
def export(
    source: Annotated[str, typer.Argument(help="A SeriesInstanceUID of the catalog, or a folder or file with DICOM.")],
    nifti: Annotated[bool, typer.Option("--nifti", help="As NIfTI, the one format there is.")] = False,
    out: Annotated[Path | None, typer.Option(help="File to write; default NAME.nii.gz in the current folder.")] = None,
    resample: Annotated[bool, typer.Option("--resample", help="Straighten a tilted gantry, even out uneven slices.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file where it is there.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Write a series as a volume file: values and affine as its headers give them."""
    from catalog.export import export_nifti, files_under

    if not nifti:
        raise FrontDoorError("name a format", about=source, remedy="add --nifti")
    path = Path(source)
    if path.exists():
        files = files_under(path)
        name = path.resolve().name.removesuffix(".dcm")
    elif all(part.isdigit() for part in source.split(".")):
        files, name = open_archive(existing(home)).series_files(source), source
    else:
        remedy = "name a SeriesInstanceUID, as voxloop sql lists them, or a folder or file that is there"
        raise FrontDoorError("neither a UID nor a path that is there", about=source, remedy=remedy)
    with console.stage(f"export {source}") as report:
        done = export_nifti(files, out or Path(f"{name}.nii.gz"), about=source, resample=resample, force=force, progress=report)
    console.note(f"{' × '.join(map(str, done.shape))} voxels, {done.dtype}, are in {done.out}")
    for warning in done.warnings:
        console.note(f"  {warning}")
    if json:
        console.emit(done.as_json())
