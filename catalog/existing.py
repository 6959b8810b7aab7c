"""Labels that exist already, as DICOM SEG, RT Structure Set or NIfTI, as label revisions of a project."""

import csv
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog import labels
from catalog._query import quoted
from catalog.errors import CatalogError
from catalog.files import exists
from catalog.labels import STATUSES, State, Submission
from catalog.labelset import LabelSet, Structure
from catalog.matching import checked_mapping, matched
from catalog.outlines import OUTLINES, NotOutlines, Outlines, is_nifti_name, read_outlines
from catalog.progress import Progress
from catalog.project import Project
from catalog.uids import deterministic_uid
from catalog.walk import NotDicom

if TYPE_CHECKING:
    import highdicom as hd

    from catalog.archive import Archive

__all__ = ["Imported", "LabelImport", "import_labels"]

IMPORTED = "imported"
_SERIES = re.compile(r'"0020000E":\{"vr":"UI","Value":\["([0-9.]+)"')


@dataclass(frozen=True)
class Imported:
    """What became of one source: ``added``, ``already`` there, or ``refused`` for a ``reason``. ``states`` are the revision's;
    ``unmatched`` names what is outlined in the source and no structure of the label set; ``volumes_ml`` is by structure;
    ``notes`` say of which structure nothing was left, though it is outlined: it is not annotated then."""

    source: str
    kind: str = ""
    series_uid: str = ""
    outcome: str = "refused"
    reason: str = ""
    label_id: str = ""
    states: Mapping[str, State] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelImport:
    """What became of each source; ``passed_over`` counts the files of a folder that outline nothing."""

    sources: tuple[Imported, ...]
    passed_over: int = 0

    def count(self, outcome: str) -> int:
        """How many sources came out so."""
        return sum(one.outcome == outcome for one in self.sources)

    def as_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        counts = {outcome: self.count(outcome) for outcome in ("added", "already", "refused")}
        return {**counts, "passed_over": self.passed_over, "sources": [asdict(one) for one in self.sources]}


@dataclass(frozen=True)
class _Source:
    """A file, and the series that the user says it belongs to."""

    path: str
    series: str = ""
    of_folder: bool = False


def import_labels(
    archive: "Archive",
    project: Project,
    paths: Sequence[str | Path] = (),
    *,
    series: str = "",
    mapping: Mapping[str, str] | None = None,
    threshold: float = 0.5,
    author: str = "",
    status: str = "submitted",
    progress: Progress | None = None,
) -> LabelImport:
    """Make label revisions of outlines of the project's cohort; what does not fit is refused with the reason, the others go on.

    Without ``paths``: every segmentation and structure set of the catalog that refers to a series of the cohort and that
    Voxloop did not make itself. Else files, folders, or CSV files with the columns ``series_uid`` and ``label`` (a path,
    relative to the CSV's folder). A DICOM object says on which series it was drawn, a NIfTI file by its name, which is a
    SeriesInstanceUID or the PatientID of a patient with one case; ``series`` says it for all.

    Structures are matched as by ``catalog.matching``. One that is there without anything in it is absent; one that the source
    does not name is not annotated, and so is one of whose outline no voxel is left, which is noted. The author is ``author``,
    else the object's; the role is ``imported``. The revision's id follows from project, series, source, matching and
    ``status``: a repeat adds nothing. A series that has another's revision than an import gets only drafts: an import hides
    nobody's work.

    CatalogError where an argument fits nothing; nothing is imported then.
    """
    run = _Run(archive, project, checked_mapping(mapping or {}, project.label_set), threshold, author, status, series)
    found = [one for path in paths for one in _listed(str(path))] if paths else run.catalogued()
    results, passed_over = [], 0
    for done, source in enumerate(found, 1):
        try:
            results.append(run.take(source))
        except (NotOutlines, NotDicom) as problem:
            if source.of_folder:
                passed_over += 1
            else:
                results.append(Imported(source.path, reason=str(problem)))
        if progress:
            progress(done, len(found))
    return LabelImport(tuple(results), passed_over)


class _Run:
    """One import: what is asked of each source, and what the project has so far."""

    def __init__(
        self,
        archive: "Archive",
        project: Project,
        mapping: Mapping[str, str],
        threshold: float,
        author: str,
        status: str,
        series: str,
    ) -> None:
        if not 0 < threshold <= 1:
            raise CatalogError(
                "the threshold is a share above 0, up to 1", about=f"--threshold {threshold:g}", remedy="try 0.5"
            )
        if status not in STATUSES:
            raise CatalogError(f"{status!r} is no status", about="--status", remedy=f"one of {', '.join(STATUSES)}")
        self.archive, self.project, self.mapping, self.threshold = archive, project, mapping, threshold
        self.author, self.status, self.series = author, status, series
        archive.index.follow(archive.objects)
        self.cases = {case.series_uid: case for case in project.cases(archive)}
        if series and series not in self.cases:
            raise self._not_in_cohort([series])
        self.own = {
            **dict.fromkeys(archive.labels.scan(("seg_uid",)).read_all()["seg_uid"].to_pylist(), "a label"),
            **dict.fromkeys(archive.predictions.scan(("sop_uid",)).read_all()["sop_uid"].to_pylist(), "a prediction"),
        }

    def catalogued(self) -> list[_Source]:
        """The outlines in the catalog that refer to a series of the cohort, or do not say to which; the oldest first."""
        listed = ", ".join(quoted(uid) for uid in OUTLINES)
        told = "dicom_tag(meta, '{0}Date'), dicom_tag(meta, '{0}Time')"
        order = f"concat_ws(' ', {told.format('Content')}, {told.format('StructureSet')})"
        query = f"SELECT path, SOPInstanceUID, meta FROM instances WHERE SOPClassUID IN ({listed}) ORDER BY {order}, path"
        found = []
        for batch in self.archive.query(query):
            for path, uid, meta in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                named = set(_SERIES.findall(meta))
                if uid not in self.own and (len(named) < 2 or named & set(self.cases)):
                    found.append(_Source(path))
        return found

    def take(self, source: _Source) -> Imported:
        """Make its revision, or say why not. Raises NotOutlines and NotDicom where there is nothing to take."""
        told = Imported(source.path)
        try:
            outlines = read_outlines(source.path, self.project.label_set, threshold=self.threshold)
            told = replace(told, kind=outlines.kind)
            if outlines.identity in self.own:
                raise CatalogError(f"it is {self.own[outlines.identity]} of this home already", about=outlines.identity)
            targets = self._targets(source, outlines)
            structures = matched(outlines.named, self.project.label_set, self.mapping)
            unmatched = tuple(one.name for one in outlines.named if one.number not in structures)
            told = replace(told, series_uid=targets[0], unmatched=unmatched)
            if not structures:
                raise self._nothing_matched(outlines)
            return self._submitted(told, outlines, targets, structures)
        except (NotOutlines, NotDicom):
            raise
        except (CatalogError, OSError) as problem:
            return replace(told, reason=str(problem))
        except (
            AttributeError,
            IndexError,
            KeyError,
            TypeError,
            ValueError,
        ) as problem:  # an attribute that is not as it must be
            said = " ".join(str(problem).split())[:200]
            return replace(told, reason=f"{source.path}: it is broken: {said} (write it again)")

    def _targets(self, source: _Source, outlines: Outlines) -> list[str]:
        """The series of the cohort that it may be of, in the order in which it names them."""
        if self.series or source.series:
            chosen = [self.series or source.series]
        elif outlines.kind == "NIfTI":
            stem = outlines.series[0]
            chosen = [stem] if stem in self.cases else [uid for uid, one in self.cases.items() if one.patient_id == stem]
            if len(chosen) != 1:
                problem = f"{stem} is no series of the cohort, and as a PatientID has {len(chosen)} cases in it"
                remedy = "name the series: --series UID, or a CSV file with series_uid and label"
                raise CatalogError(problem, about=source.path, remedy=remedy)
        else:
            of_images = (self.archive.index.instance(uid) for uid in outlines.images[:20])
            chosen = [*outlines.series] or list(dict.fromkeys(found.series_uid for found in of_images if found))
        fitting = [uid for uid in chosen if uid in self.cases]
        if not fitting:
            raise self._not_in_cohort(chosen)
        return fitting

    def _not_in_cohort(self, chosen: Sequence[str]) -> CatalogError:
        if not chosen:
            return CatalogError("it does not say on which series it was drawn", remedy="name it: --series UID")
        remedy = f"voxloop cases --explain says what is in the cohort of {self.project.key}"
        return CatalogError("it is of a series that is no case of the project", about=", ".join(chosen), remedy=remedy)

    def _nothing_matched(self, outlines: Outlines) -> CatalogError:
        names = ", ".join(repr(one.name) for one in outlines.named) or "nothing"
        remedy = f"say what they are: --map {names.split(', ')[0]}={self.project.label_set.structures[0].name!r}"
        return CatalogError(f"no structure of {self.project.label_set.name}: {names}", about=outlines.identity, remedy=remedy)

    def _submitted(
        self, told: Imported, outlines: Outlines, targets: Sequence[str], structures: Mapping[int, Structure]
    ) -> Imported:
        for uid in targets:
            label_id = self._label_id(uid, outlines, structures)
            if stored := labels.revision(self.archive, label_id):
                return replace(told, outcome="already", series_uid=uid, label_id=label_id, states=stored.states)
        uid, mask = _fitting(self.archive, outlines, targets, {number: one.value for number, one in structures.items()})
        label_id, parent = self._label_id(uid, outlines, structures), labels.current(self.archive, self.project.key).get(uid)
        if parent is not None and parent.role != IMPORTED and self.status != "draft":
            problem = f"the series has a label by {parent.author} ({parent.role}) in project {self.project.key}"
            raise CatalogError(problem, about=uid, remedy="import as a draft, which hides nothing: --status draft")
        lost = _lost(outlines, structures, mask)
        submission = Submission(
            series_uid=uid,
            mask=mask,
            states=_states(self.project.label_set, {one.name for one in structures.values()} - lost, mask.array),
            author=self.author or outlines.author or IMPORTED,
            role=IMPORTED,
            status=self.status,
            parent=parent.label_id if parent else None,
        )
        stored = labels.submit(self.archive, self.project.key, self.project.label_set, submission, label_id=label_id)
        told = replace(told, outcome="added", series_uid=uid, label_id=label_id, states=stored.states)
        notes = tuple(f"{name} is outlined and has no voxel: not annotated, rather than absent" for name in sorted(lost))
        return replace(told, volumes_ml=_volumes_ml(self.project.label_set, mask), notes=notes)

    def _label_id(self, series_uid: str, outlines: Outlines, structures: Mapping[int, Structure]) -> str:
        """The same where the same source is matched in the same way."""
        matching = json.dumps({number: one.name for number, one in sorted(structures.items())})
        told = (self.project.key, series_uid, outlines.identity, outlines.kind, matching, self.status)
        return deterministic_uid("imported label", *told)


def _fitting(
    archive: "Archive", outlines: Outlines, targets: Sequence[str], values: Mapping[int, int]
) -> "tuple[str, hd.Volume]":
    """The first series on whose grid it lies, and its label map; else why it does not lie on the first."""
    problems = []
    for uid in targets:
        try:
            grid = archive.geometry(uid)
            return uid, grid.with_array(outlines.label_map(grid, values))
        except CatalogError as problem:
            problems.append(problem)
    raise problems[0]


def _lost(outlines: Outlines, structures: Mapping[int, Structure], mask: "hd.Volume") -> set[str]:
    """The structures that the source shows something of, and the label map no voxel: it would be false to say absent."""
    drawn = set(np.unique(mask.array).tolist())
    grid = mask.get_geometry()
    return {one.name for number, one in structures.items() if one.value not in drawn and outlines.shows(grid, number)}


def _states(labels: LabelSet, named: Collection[str], array: np.ndarray) -> dict[str, State]:
    drawn = set(np.unique(array).tolist())
    return {
        one.name: "not_annotated" if one.name not in named else "present" if one.value in drawn else "absent"
        for one in labels.structures
    }


def _volumes_ml(labels: LabelSet, mask: "hd.Volume") -> dict[str, float]:
    voxels = np.bincount(mask.array.ravel(), minlength=256)
    return {one.name: float(voxels[one.value]) * mask.voxel_volume / 1000 for one in labels.structures if voxels[one.value]}


def _listed(path: str) -> Iterator[_Source]:
    """The files that a path of the user's stands for."""
    if path.endswith(".csv"):
        yield from _of_csv(Path(path))
    elif Path(path).is_dir():
        yield from (
            _Source(str(file), of_folder=not is_nifti_name(file)) for file in sorted(Path(path).rglob("*")) if file.is_file()
        )
    elif not exists(path):
        raise CatalogError("no such file or folder", about=path, remedy="check the path")
    else:
        yield _Source(path)


def _of_csv(path: Path) -> Iterator[_Source]:
    if not path.is_file():
        raise CatalogError("no such file", about=str(path), remedy="check the path")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin a file with a mark
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as problem:
        raise CatalogError(f"not a CSV file in UTF-8: {problem}", about=str(path), remedy="save it as CSV UTF-8") from None
    if not rows or not {"series_uid", "label"} <= set(rows[0]):
        raise CatalogError("has no rows with the columns series_uid and label", about=str(path), remedy="write one a label")
    for row in rows:
        if label := (row["label"] or "").strip():
            yield _Source(str(path.parent / label), (row["series_uid"] or "").strip())
