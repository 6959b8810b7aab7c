"""The commands over the catalog: files in, questions, files out."""

import signal
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from catalog.errors import CatalogError
from catalog.views import VIEWS
from voxloop import console
from voxloop.answer import Format, show, write
from voxloop.command import HomeOption, JsonOption, app, existing, guarded, open_archive, spark_session
from voxloop.errors import FrontDoorError
from voxloop.settings import read

if TYPE_CHECKING:
    from catalog import Archive
    from voxloop.settings import Settings

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
    path: Annotated[str, typer.Argument(help="A folder, a file or a URL (s3://…, abfs://…) with DICOM.")],
    pattern: Annotated[str, typer.Option(help="Only files whose name fits this glob.")] = "*",
    recurse: Annotated[bool, typer.Option(help="Look into subfolders too.")] = True,
    extract_zip: Annotated[bool, typer.Option("--extract-zip", help="Take in what zip and tar archives hold as well.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Read the pixels too: hash, min, max, mean, shape.")] = False,
    watch: Annotated[str | None, typer.Option(help='Go on until Ctrl-C, looking for new files every "30 seconds".')] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Read every file's header into the catalog; what is there already, unchanged, is not opened again."""
    from catalog import ingest as read_headers

    _there(path)
    settings = read(home)
    archive = open_archive(settings)
    if watch:
        return _watch(settings, archive, path, watch, pattern, recurse, extract_zip, deep, json)
    with spark_session(settings, warm=False) as spark, console.stage(f"ingest {path}") as report:
        done = read_headers(
            spark, archive, path, pattern=pattern, recurse=recurse, extract=extract_zip, deep=deep, progress=report
        )
    with console.stage("follow with the query index"):
        archive.index.follow(archive.objects)
    console.note(f"{done.found} files: {done.added} added, {done.unchanged} unchanged, {done.bad} not usable")
    if not done.found:
        console.note(f"nothing in {path} fits: is it the right folder?")
    if done.archives and not extract_zip:
        console.note(f"{done.archives} archives were not looked into: add --extract-zip")
    if done.growing:
        console.note(f"{done.growing} are still being written: run the same command again when they are complete")
    if done.conflicts:
        console.note(f"{done.conflicts} in conflict with a labelled object: voxloop catalog conflicts")
    if done.bad:
        _show_bad(archive, path, home)
    if json:
        console.emit(done.as_json())
    return None


def _there(path: str) -> None:
    """CatalogError where nothing is at ``path``: before Spark starts, which takes longer than the question."""
    from catalog import exists, located

    if not exists(located(path)):
        raise CatalogError("no such folder or file", about=path, remedy="check the path")


def _show_bad(archive: "Archive", path: str, home: Path | None) -> None:
    """How many files under ``path`` are unusable for which reason, and where to see each."""
    from catalog import located, quoted

    bad = f"status NOT IN ('ok', 'archive', 'rejected') AND starts_with(original_path, {quoted(located(path))})"
    why = f"""SELECT status, error, count(*) AS files, min(relative_path) AS one FROM files WHERE {bad}
        GROUP BY ALL ORDER BY files DESC"""
    rows = archive.sql(why).to_pylist()
    for row in rows[:9]:
        console.note(f"  {row['files']} × {row['status']}: {row['error']}   ({row['one']})")
    if len(rows) > 9:
        console.note(f"  … and {len(rows) - 9} more reasons")
    at = f" --home {home}" if home else ""
    console.note(f'  each of them: voxloop sql "SELECT path, status, error FROM files WHERE {bad}"{at}')


def _watch(
    settings: "Settings",
    archive: "Archive",
    path: str,
    interval: str,
    pattern: str,
    recurse: bool,
    extract: bool,
    deep: bool,
    json: bool,
) -> None:
    """Take in what arrives until Ctrl-C, which ends the query between two of its steps."""
    from catalog import Catalog
    from catalog.dicom import DicomMetaExtractor

    with spark_session(settings, warm=False) as spark:
        catalog = Catalog(spark, home=settings.home, index_url=settings.index_url or None)
        files = catalog.catalog(path, pattern, recurse, streaming=True, triggerProcessingTime=interval, extractZip=extract)
        query = catalog.save(DicomMetaExtractor(catalog, deep=deep, useVariant=False).transform(files))
        assert not isinstance(query, int)
        stopped = threading.Event()
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: stopped.set())
        console.note(f"watching {path}, every {interval}; Ctrl-C ends it, and the next watch goes on from there")
        version, total = archive.objects.version(), {"added": 0, "bad": 0}
        while not stopped.wait(1) and query.isActive:
            version = _tell(archive, version, total)
        failed = query.exception() if not query.isActive else None
        query.stop()
        _tell(archive, version, total)
    if failed:
        raise FrontDoorError(f"the watch ended: {str(failed).strip().splitlines()[0]}", about=path, remedy="run it again")
    console.note(f"{total['added']} files added in all, {total['bad']} not usable")
    if json:
        console.emit(total)


def _tell(archive: "Archive", version: int, total: dict[str, int]) -> int:
    """Say what was added since ``version``, and add it to ``total``; the version now."""
    if (now := archive.objects.version()) > version:
        added = archive.objects.added(("status",), since=max(version, 0), version=now).read_all()["status"].to_pylist()
        bad = sum(status not in ("ok", "archive") for status in added)
        if added:
            console.note(f"{len(added)} files added, {bad} not usable")
        total["added"], total["bad"] = total["added"] + len(added), total["bad"] + bad
        archive.index.follow(archive.objects)
    return now


catalog_app = typer.Typer(help="Look after the catalog's table.", no_args_is_help=True)
app.add_typer(catalog_app, name="catalog")


@catalog_app.command()
@guarded
def optimize(
    z_order: Annotated[
        str, typer.Option(help="Columns, as StudyDate,Modality: lay rows near in all of them together; needs memory.")
    ] = "",
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Merge the table's small files, and clear away what no version holds.

    Every version that a run or a receipt names stays readable.
    """
    archive = open_archive(existing(home))
    before = len(archive.objects.files())
    with console.stage("optimize"):
        version = archive.objects.optimize([column for column in z_order.split(",") if column])
        removed = archive.objects.vacuum()
    after = len(archive.objects.files())
    console.note(f"{before} files became {after}, {len(removed)} unused ones were removed")
    if json:
        console.emit({"version": version, "files_before": before, "files_after": after, "removed": len(removed)})


@catalog_app.command("rebuild-index")
@guarded
def rebuild_index(home: HomeOption = None, json: JsonOption = False) -> None:
    """Forget the query index and make it anew from the table; nothing else is in it."""
    archive = open_archive(existing(home))
    with console.stage("rebuild the query index"):
        version = archive.index.rebuild(archive.objects)
    if json:
        console.emit({"version": version})


@catalog_app.command()
@guarded
def conflicts(home: HomeOption = None, json: JsonOption = False) -> None:
    """Files that are not current because a labelled object with the same SOPInstanceUID has other pixels."""
    archive = open_archive(existing(home))
    rows = archive.sql("SELECT path, SOPInstanceUID, error FROM files WHERE status = 'conflict' ORDER BY path").to_pylist()
    console.records(rows)
    if not rows:
        console.note("no file is in conflict")
    if rows:
        console.note("to make one current: voxloop catalog resolve PATH --accept; to leave the first: --reject")
    if json:
        console.emit({"conflicts": rows})


@catalog_app.command()
@guarded
def resolve(
    path: Annotated[str, typer.Argument(help="A file that is in conflict, as `voxloop catalog conflicts` shows it.")],
    accept: Annotated[bool, typer.Option("--accept/--reject", help="Make this file current, or keep the first for good.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Decide a conflict: which of two files of a labelled object is the current one."""
    from catalog import resolve as decide

    archive = open_archive(existing(home))
    status = decide(archive, path, accept=accept)
    console.note(f"{path}: {status}")
    if json:
        console.emit({"path": path, "status": status})


@app.command()
@guarded
def sql(
    query: Annotated[
        str,
        typer.Argument(help=f"SQL over {', '.join(VIEWS)}."),
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
    from catalog import examine
    from voxloop.projects import load

    rules = load(project)
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
    for reason, count in Counter(refusal["reason"] for refusal in refusals).most_common():
        one = next(refusal["study_uid"] for refusal in refusals if refusal["reason"] == reason)
        console.plain(f"refused: {f'study {one}' if count == 1 else f'{count} studies, as {one}'}: {reason}")
    console.note(f"{len(listed)} case{'' if len(listed) == 1 else 's'} of {len(studies)} studies, {len(refusals)} refused")


def _by_name(out: Path | None) -> Format:
    """The format that a file's name ends with."""
    ending = (out.suffix if out else "").removeprefix(".").lower()
    if ending not in {form.value for form in Format if form is not Format.TABLE}:
        raise FrontDoorError("a table is for the screen", about=str(out), remedy="add --format json, csv or parquet")
    return Format(ending)


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
    if series:
        archive.series_files(series)  # says where there is none, before Spark starts
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


def _of_series(archive: "Archive", uid: str) -> list[str | Path]:
    """The files of a series; CatalogError, which names a study's series where the UID is a study's."""
    try:
        return [*archive.series_files(uid)]
    except CatalogError:
        series = [str(found["SeriesInstanceUID"]) for found in archive.index.series({"StudyInstanceUID": uid})]
        if not series:
            raise
        raise CatalogError("a study, not a series", about=uid, remedy=f"its series are {', '.join(series[:8])}") from None


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
        files: list[str | Path] = [*files_under(path)]
        name = path.resolve().name.removesuffix(".dcm")
    elif all(part.isdigit() for part in source.split(".")):
        files, name = _of_series(open_archive(existing(home)), source), source
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
