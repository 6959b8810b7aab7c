"""Receipts: the way from a prediction back to the labels that its model learned from, and the proof that nothing was changed.

A row of ``predictions`` holds every step, and digests of the image's voxels, of the labels' files and of the weights. Its own
digest (``receipt``) is the sha256 of the canonical JSON of the row without ``receipt`` and ``created_at``, so that the same
prediction made again has the same receipt; the DICOM SEG carries it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog import Case, CatalogError, case_volumes, quoted
from catalog.labelset import LabelSet, Structure
from catalog.schemas import PREDICTIONS
from catalog.uids import deterministic_uid
from serving.errors import ServingError
from serving.registry import fetched

if TYPE_CHECKING:
    import highdicom as hd
    from pydicom import Dataset

    from catalog.archive import Archive
    from serving.model import Served
    from training import Prediction

__all__ = ["Receipt", "digest", "file_sha256", "labels_sha256", "mask_sha256", "receipt", "segmentation", "volume_sha256"]

_WEIGHTS = Path("artifacts", "run", "weights.pt")  # in a model's folder

_NOT_DIGESTED = ("receipt", "created_at")


@dataclass(frozen=True)
class Receipt:
    """The way back from one prediction. ``row`` is its row of ``predictions``, ``labels`` are the label revisions that the
    model learned from (label_id, series_uid, author, role, created_at), ``checks`` say "ok" or what is wrong."""

    row: dict[str, Any]
    labels: tuple[dict[str, Any], ...]
    checks: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(said == "ok" for said in self.checks.values())

    def as_json(self) -> dict[str, Any]:
        """As one JSON object."""
        stored: dict[str, Any] = json.loads(json.dumps({**self.row, "labels": self.labels, "checks": self.checks}, default=str))
        return {**stored, "ok": self.ok}

    def __str__(self) -> str:
        row = self.row
        readers = ", ".join(row["readers"]) or "–"
        lines = [
            f"prediction     {row['sop_uid']}  ({row['created_at']:%Y-%m-%d %H:%M} UTC)",
            f"  of series    {row['series_uid']}, patient {row['patient_id'] or '–'}, {len(row['source_uids'])} images",
            f"  by model     {row['model_name']} version {row['model_version']}",
            f"  from run     {row['run_id']}, code {row['code_revision'] or '–'}, plan {row['plan_digest'][:12]}",
            f"  on data      catalog version {row['catalog_version']}, labels version {row['labels_version']}",
            f"  learned from {len(row['label_ids'])} label revisions by {readers}",
            *(
                f"    {label['label_id']}  series {label['series_uid']}  {label['author']} ({label['role']})"
                for label in self.labels
            ),
            f"  mask         sha256 {row['mask_sha256']}",
            f"  receipt      sha256 {row['receipt']}",
            *(f"  check        {name}: {said}" for name, said in self.checks.items()),
        ]
        return "\n".join([*lines, "receipt ok" if self.ok else "RECEIPT NOT OK"])


def digest(row: Mapping[str, Any]) -> str:
    """The receipt of a row of ``predictions``."""
    told = {name: row[name] for name in PREDICTIONS.names if name not in _NOT_DIGESTED and name != "channels"}
    told["volumes_ml"] = dict(told["volumes_ml"])
    if row.get("channels"):  # rows from before there were channels keep their receipt
        told["channels"] = list(row["channels"])
    canonical = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def mask_sha256(mask: np.ndarray[Any, Any], labels: LabelSet) -> str:
    """sha256 of a label map as segment numbers (1 + a structure's place in the label set; uint8, C order) and its shape."""
    numbers = np.zeros(256, np.uint8)
    numbers[[structure.value for structure in labels.structures]] = np.arange(1, len(labels.structures) + 1)
    return hashlib.sha256(repr(mask.shape).encode() + numbers[mask].tobytes()).hexdigest()


def volume_sha256(*channels: "hd.Volume") -> str:
    """sha256 of what a model is given, the volume or those of the channels in order: of each its shape, affine (LPS mm, four
    decimals) and voxels (float32, C order)."""
    if len(channels) > 1:
        return hashlib.sha256(" ".join(map(volume_sha256, channels)).encode()).hexdigest()
    (image,) = channels
    grid = (image.spatial_shape, (image.affine.round(4) + 0.0).tolist())  # + 0.0: no negative zero
    return hashlib.sha256(repr(grid).encode() + image.array.astype(np.float32).tobytes()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def labels_sha256(archive: "Archive", label_ids: Sequence[str]) -> str:
    """sha256 over the SEG files of label revisions, in the order of their ids; CatalogError where one is not there."""
    labels = _labels(archive, label_ids)
    if lacking := set(label_ids) - {label["label_id"] for label in labels}:
        raise CatalogError("no such label revision", about=min(lacking), remedy="restore the home")
    archive.index.follow(archive.objects)
    told = [f"{label['label_id']} {file_sha256(Path(_indexed(archive, label['seg_uid']).path))}" for label in labels]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def segmentation(
    served: "Served",
    images: "Sequence[hd.Volume]",
    found: "Prediction",
    sources: "Sequence[Sequence[Dataset]]",
    *,
    project: str,
    channels: Sequence[str] = (),
    sop_uid: str = "",
) -> "tuple[dict[str, Any], hd.seg.Segmentation]":
    """What was ``found`` in ``images``, a volume a channel, as its row of ``predictions`` (without ``created_at``) and the SEG
    that carries the row's receipt. ``sources`` are the headers of each channel's objects; the SEG refers to the first's.
    ``channels`` are the references where there are several. Without ``sop_uid`` the SEG is named after what it holds."""
    from catalog import seg

    first, origin = sources[0][0], served.origin
    uids = sorted({str(source.SOPInstanceUID) for channel in sources for source in channel})
    sha = mask_sha256(found.mask.array, served.label_set)
    series = str(first.SeriesInstanceUID)
    row: dict[str, Any] = {
        "sop_uid": sop_uid or deterministic_uid("answer", series, origin.run_id, sha),
        "project": project,
        "series_uid": series,
        "study_uid": str(first.StudyInstanceUID),
        "patient_id": str(first.get("PatientID") or ""),
        **{name: list(value) if isinstance(value, tuple) else value for name, value in asdict(origin).items()},
        "source_digest": _source_digest(uids),
        "source_uids": uids,
        "source_sha256": volume_sha256(*images),
        "mask_sha256": sha,
        "volumes_ml": found.volumes_ml,
        "uncertainty": found.entropy,
        "channels": list(channels),
    }
    row["receipt"] = digest(row)
    written = seg.encode(
        found.mask,
        sources[0],
        served.label_set,
        sop_uid=row["sop_uid"],
        series_uid=deterministic_uid("series", row["sop_uid"]),
        description=f"{origin.model_name} version {origin.model_version}",
        author=f"{origin.model_name} {origin.model_version}",
        algorithm=seg.Algorithm(origin.model_name, origin.model_version, row["receipt"]),
    )
    return row, written


def receipt(archive: "Archive", sop_uid: str) -> Receipt:
    """The receipt of a stored prediction, every step recomputed. ServingError where there is no such prediction."""
    found = archive.predictions.scan(PREDICTIONS.names, where=f"sop_uid = {quoted(sop_uid)}").read_all().to_pylist()
    if not found:
        raise ServingError("no such prediction", about=sop_uid, remedy="voxloop sql 'select sop_uid from predictions'")
    row = {**found[0], "volumes_ml": dict(found[0]["volumes_ml"])}
    labels = _labels(archive, row["label_ids"])
    checks = {
        "digest": "ok" if digest(row) == row["receipt"] else "the row does not have the digest that its receipt names",
        "seg": _guarded(_check_seg, archive, row),
        "mask": _guarded(_check_mask, archive, row),
        "sources": _guarded(_check_sources, archive, row),
        "labels": _guarded(_check_labels, archive, row),
    }
    folder = fetched(archive.home / "models", row["model_name"], row["model_version"], row["run_id"])
    if (weights := folder / _WEIGHTS).exists():
        checks["weights"] = "ok" if file_sha256(weights) == row["weights_sha256"] else f"{weights} was changed"
    return Receipt(row, tuple(labels), checks)


def _labels(archive: "Archive", label_ids: Sequence[str]) -> list[dict[str, Any]]:
    if not label_ids:
        return []
    wanted = ", ".join(map(quoted, label_ids))
    columns = ("label_id", "series_uid", "seg_uid", "author", "role", "created_at")
    rows: list[dict[str, Any]] = archive.labels.scan(columns, where=f"label_id IN ({wanted})").read_all().to_pylist()
    return sorted(rows, key=lambda label: str(label["label_id"]))


def _guarded(check: Any, archive: "Archive", row: Mapping[str, Any]) -> str:
    try:
        return str(check(archive, row))
    except Exception as problem:  # a changed file may break any reader
        return " ".join(f"cannot be read: {problem}".split())


def _stored(archive: "Archive", sop_uid: str) -> Any:
    """The SEG's row in the index as it is now; CatalogError where it is gone."""
    archive.index.follow(archive.objects)
    return _indexed(archive, sop_uid)


def _indexed(archive: "Archive", sop_uid: str) -> Any:
    found = archive.index.instance(sop_uid)
    if found is None:
        raise CatalogError("the DICOM SEG is not in the catalog", about=sop_uid)
    return found


def _check_seg(archive: "Archive", row: Mapping[str, Any]) -> str:
    """The file's header is what was catalogued, and it carries this receipt."""
    from catalog.walk import walk

    path = _stored(archive, row["sop_uid"]).path
    metas = archive.objects.scan(("meta", "ingested_at"), where=f"path = {quoted(path)}").read_all().to_pylist()
    _, header = walk(path).parts
    if json.loads(header) != json.loads(max(metas, key=lambda m: m["ingested_at"])["meta"]):
        return "the DICOM SEG's header was changed"
    return "ok" if row["receipt"] in header.decode() else "the DICOM SEG does not carry this receipt"


def _check_mask(archive: "Archive", row: Mapping[str, Any]) -> str:
    from pydicom import dcmread

    from catalog import seg

    stored = dcmread(_stored(archive, row["sop_uid"]).path)
    labels = _numbered(stored)
    mask = seg.decode(stored, archive.geometry(row["series_uid"]), labels)
    return "ok" if mask_sha256(mask.array, labels) == row["mask_sha256"] else "the DICOM SEG holds another mask"


def _numbered(stored: "Dataset") -> LabelSet:
    """The segments of a SEG as a label set whose values are the segment numbers."""
    structures = []
    for segment in stored.SegmentSequence:
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        code = (str(kind.CodingSchemeDesignator), str(kind.CodeValue), str(kind.CodeMeaning))
        structures.append(Structure(str(segment.SegmentLabel), int(segment.SegmentNumber), code, (0, 0, 0)))
    return LabelSet("segments", tuple(structures))


def _check_sources(archive: "Archive", row: Mapping[str, Any]) -> str:
    if _source_digest(row["source_uids"]) != row["source_digest"]:
        return "the list of source images was changed"
    case = Case(row["series_uid"], row["study_uid"], row["patient_id"], tuple(row.get("channels") or ()))
    there = {str(source.SOPInstanceUID) for ref in case.refs for source in archive.sources(ref)}
    if lacking := set(row["source_uids"]) - there:
        return f"{len(lacking)} images are not there any more, as {min(lacking)}"
    same = volume_sha256(*case_volumes(archive, case)) == row["source_sha256"]
    return "ok" if same else "the series' images were changed"


def _check_labels(archive: "Archive", row: Mapping[str, Any]) -> str:
    found = labels_sha256(archive, row["label_ids"])
    return "ok" if row["labels_sha256"] in ("", found) else "the segmentation of a label was changed"


def _source_digest(uids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(uids)).encode()).hexdigest()
