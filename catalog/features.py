"""What is measured of each structure of a label or a prediction: rows of ``features``, one a value.

volume (ml), and of structures that have a voxel: diameter and in_plane_diameter (mm, ``catalog.measure``), and mean, std, min,
max, median, p10 and p90 of the image inside, in the image's unit. A structure that is absent has the volume 0 and nothing else,
one that was not annotated no row. What could not be measured is a row without a value, whose ``note`` says why: nobody's label
is lost for it. Where that was a file out of reach, which may be there another time, nothing is written, and ``complete`` tries
again.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from catalog import measure, seg
from catalog._query import quoted
from catalog.errors import CatalogError
from catalog.matching import short
from catalog.schemas import FEATURES
from catalog.slices import thickness
from catalog.sources import read_series

if TYPE_CHECKING:
    import highdicom as hd
    from pydicom import Dataset

    from catalog.archive import Archive
    from catalog.progress import Progress

__all__ = ["Subject", "append", "complete", "lacking", "of_files", "of_mask"]

Pixels = Callable[[slice], np.ndarray]
"""The image's slices (of the first axis) in its own unit."""


_log = logging.getLogger(__name__)
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_HOUNSFIELD = "[hnsf'U]"  # in UCUM
_SHARED = ("series_uid", "study_uid", "patient_id", "project")


@dataclass(frozen=True)
class _Note:
    """Why something was not measured; ``again``: because a file could not be reached."""

    text: str = ""
    again: bool = False


@dataclass(frozen=True)
class Subject:
    """What is measured: the SEG ``source_uid`` on ``series_uid``, a ``label`` or a ``prediction`` (``source``)."""

    source_uid: str
    series_uid: str
    study_uid: str
    patient_id: str | None
    project: str
    source: str
    label_id: str | None = None
    model_name: str | None = None
    model_version: str | None = None

    @classmethod
    def of_label(cls, event: Mapping[str, Any]) -> "Subject":
        """By a row of ``labels``."""
        told = {name: event[name] for name in _SHARED}
        return cls(**told, source_uid=event["seg_uid"], source="label", label_id=event["label_id"])

    @classmethod
    def of_prediction(cls, row: Mapping[str, Any]) -> "Subject":
        """By a row of ``predictions``."""
        told = {name: row[name] for name in (*_SHARED, "model_name", "model_version")}
        return cls(**told, source_uid=row["sop_uid"], source="prediction")


def of_mask(
    subject: Subject, mask: "hd.Volume", structures: Mapping[str, int], pixels: Pixels, header: "Dataset"
) -> list[dict[str, Any]]:
    """The rows of a label map (uint8, index → LPS mm) for ``structures`` (name → voxel value), on an image with ``header``.

    The slices that have a structure are asked for together, once. Never raises for what cannot be measured. Besides the
    table's columns a row tells whether it is to be measured ``again``; ``append`` leaves out what is.
    """
    spacing, unit, flat = np.array(mask.spacing), _unit(header), _flat(mask, header)
    rows: list[dict[str, Any]] = []
    found = dict(measure.boxes(np.asarray(mask.array, np.uint8), structures))
    inside, unread = _tried(lambda: _inside(found, pixels))
    for name, box in found.items():
        if box is None:
            rows.append({"structure": name, "name": "volume", "value": 0.0, "unit": "ml"})
            continue
        volume = None if flat.text else box.voxels * mask.voxel_volume / 1000
        rows.append({"structure": name, "name": "volume", "value": volume, "unit": "ml", "note": flat})
        for size, unknown in (("diameter", flat), ("in_plane_diameter", _Note())):
            measured, note = ({}, unknown) if unknown.text else _tried(lambda: {size: getattr(measure, size)(box, spacing)})  # noqa: B023
            rows.append({"structure": name, "name": size, "value": measured.get(size), "unit": "mm", "note": note})
        measured, note = ({}, unread) if unread.text else _tried(lambda: measure.intensities(inside[name]))  # noqa: B023
        for statistic in measure.INTENSITIES:
            value = measured.get(statistic)
            rows.append({"structure": name, "name": statistic, "value": value, "unit": unit, "note": note})
    return [_row(subject, **row) for row in rows]


def of_files(archive: "Archive", subject: Subject, structures: Sequence[str]) -> list[dict[str, Any]]:
    """As ``of_mask``, of the SEG as it is stored, on its series as it is in the catalog."""

    def measured() -> dict[str, Any]:
        archive.index.follow(archive.objects)
        stored = archive.index.instance(subject.source_uid)
        if stored is None:
            raise FileNotFoundError("its segmentation is not in the catalog")
        named = {short(name): name for name in structures}
        headers = archive.sources(subject.series_uid)
        grid = archive.geometry(subject.series_uid)
        opened = seg.opened(Path(stored.path), grid)
        values = {named[one.name]: one.number for one in seg.segments(opened) if one.name in named}
        array = seg.label_map(opened, grid, {number: number for number in values.values()}, about=subject.source_uid)
        pixels = image_pixels(archive, subject.series_uid, headers)
        return {"rows": of_mask(subject, grid.with_array(array), values, pixels, headers[0])}

    found, note = _tried(measured)
    return found.get("rows") or [
        _row(subject, structure=name, name="volume", value=None, unit="ml", note=note) for name in structures
    ]


def image_pixels(archive: "Archive", series_uid: str, headers: "Sequence[Dataset]") -> Pixels:
    """Reads the slices that are asked for, no other file; ``headers`` are ``Archive.sources`` of the series."""

    def read(place: slice) -> np.ndarray:
        if len(units := sorted({_unit(header) or "none" for header in headers})) > 1:
            raise CatalogError(f"its slices are in different units: {', '.join(units)}", about=series_uid)
        if len(headers) > 1:
            paths = {found.sop_uid: found.path for found in archive.index.files(series_uid)}
            chosen = [paths[str(header.SOPInstanceUID)] for header in headers[place]]
            return np.asarray(read_series(chosen, about=series_uid).array)
        return np.asarray(archive.volume(series_uid).array[place])

    return read


def append(archive: "Archive", rows: Sequence[Mapping[str, Any]], *, writer: str) -> None:
    """Add rows once per ``writer``, but none of a segmentation that is to be measured again; what lacks is logged."""
    for note in _notes(rows):
        _log.warning("not measured in full: %s", note)
    _append(archive, rows, writer=writer)


def _append(archive: "Archive", rows: Sequence[Mapping[str, Any]], *, writer: str) -> None:
    later = {row["source_uid"] for row in rows if row["again"]}
    kept = [row for row in rows if row["source_uid"] not in later]
    if kept:
        archive.features.append(pa.Table.from_pylist(kept, schema=FEATURES), writer=writer, batch=0)


def _notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What could not be measured, each segmentation with each reason once."""
    return sorted({f"{row['source_uid']}: {row['note']}" for row in rows if row["note"]})


def writer(source_uid: str) -> str:
    """Who writes the features of one source alone: whoever does, they are added once."""
    return f"features/{source_uid}"


def lacking(archive: "Archive", only: Iterable[str] | None = None) -> list[tuple[Subject, tuple[str, ...]]]:
    """The labels and predictions that no row of ``features`` is about (``only`` those of these UIDs), each with the structures
    that it says something of."""
    there = set(archive.features.scan(("source_uid",)).read_all()["source_uid"].to_pylist())
    wanted = None if only is None else set(only)
    found = []
    for event in _rows(archive.labels, wanted, "seg_uid"):
        structures = tuple(name for name, state in event["states"] if state != "not_annotated")
        found.append((Subject.of_label(event), structures))
    for row in _rows(archive.predictions, wanted, "sop_uid"):
        found.append((Subject.of_prediction(row), tuple(name for name, _ in row["volumes_ml"])))
    return [(subject, structures) for subject, structures in found if structures and subject.source_uid not in there]


def complete(archive: "Archive", progress: "Progress | None" = None) -> tuple[int, list[str]]:
    """Measure every label and prediction that lacks features: how many were added, and of what could not be measured why.

    What a file out of reach left out is told of each time, until it is there; what cannot be measured at all, once.
    """
    todo, notes, later = lacking(archive), list[str](), 0
    for done, (subject, structures) in enumerate(todo, 1):
        rows = of_files(archive, subject, structures)
        with archive.alone():  # who is writing this label or prediction writes its features before we look again
            if lacking(archive, [subject.source_uid]):
                _append(archive, rows, writer=writer(subject.source_uid))
        notes, later = notes + _notes(rows), later + any(row["again"] for row in rows)
        if progress:
            progress(done, len(todo))
    return len(todo) - later, notes


def _rows(table: Any, wanted: set[str] | None, key: str) -> list[dict[str, Any]]:
    where = "" if wanted is None else f"{key} IN ({', '.join(map(quoted, wanted))})"
    rows: list[dict[str, Any]] = table.scan(table.schema.names, where=where).read_all().to_pylist() if wanted != set() else []
    return rows


def _row(subject: Subject, *, note: _Note = _Note(), **told: Any) -> dict[str, Any]:
    return {**vars(subject), **told, "note": note.text, "again": note.again, "created_at": datetime.now(UTC)}


def _inside(boxes: Mapping[str, measure.Box | None], pixels: Pixels) -> dict[str, np.ndarray]:
    """The image's values in each structure that has a voxel."""
    drawn = {name: box for name, box in boxes.items() if box is not None}
    if not drawn:
        return {}
    first = min(box.place[0].start for box in drawn.values())
    image = pixels(slice(first, max(box.place[0].stop for box in drawn.values())))
    found = {}
    for name, box in drawn.items():
        slices, rows, columns = box.place
        found[name] = image[slices.start - first : slices.stop - first, rows, columns][box.inside]
    return found


def _tried(measured: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], _Note]:
    """What was measured, or nothing and the reason: whatever goes wrong here, a label or prediction is worth more."""
    try:
        return measured(), _Note()
    except Exception as problem:
        again = any(isinstance(one, OSError) for one in (problem, problem.__cause__, problem.__context__))
        return {}, _Note(" ".join(str(problem).split())[:500] or type(problem).__name__, again)


def _flat(mask: "hd.Volume", header: "Dataset") -> _Note:
    """Why it has no third dimension to measure, where that is so."""
    if mask.spatial_shape[0] > 1 or thickness(header.get):
        return _Note()
    return _Note("its image is one slice that says neither SpacingBetweenSlices nor SliceThickness")


def _unit(header: "Dataset") -> str:
    """Of the image's values as ``Archive.volume`` gives them: by the first real world value mapping where there is one (PS3.3
    C.7.6.16.2.11), in UCUM; else of the rescaled values (C.11.1.1.2, C.8.9.1)."""
    for level in (header, *(item for name in _GROUPS for item in (header.get(name) or ())[:1])):
        if mappings := level.get("RealWorldValueMappingSequence"):
            codes = mappings[0].get("MeasurementUnitsCodeSequence")
            code = str(codes[0].get("CodeValue") or "") if codes else ""
            return "HU" if code == _HOUNSFIELD else code
    said = header.get("Units") if header.get("Modality") == "PT" else header.get("RescaleType")
    return str(said or ("HU" if header.get("Modality") == "CT" else ""))
