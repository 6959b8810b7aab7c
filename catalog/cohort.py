"""A folder of DICOM that Voxloop wrote: images/CASE/NNNN.dcm, labels/CASE.dcm (SEG), label_set.json, index.csv, sources.json.

NIfTI cohorts are imported into one, the synthetic cohort is made as one. sources.json says from what each case was made.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog import seg
from catalog.disk import atomic_file, remove_leftovers
from catalog.errors import CatalogError
from catalog.labelset import LabelSet
from catalog.series import as_series, series_uids, write_slices
from catalog.uids import deterministic_uid

if TYPE_CHECKING:
    import highdicom as hd

__all__ = ["CohortFolder", "Origin"]


@dataclass(frozen=True)
class Origin:
    """What a case is made from: the sha256 of its image, and of its label where it has one."""

    image: str
    label: str | None

    @classmethod
    def of_files(cls, image: Path, label: Path | None) -> "Origin":
        """By the bytes of the files."""
        return cls(_sha256(image), None if label is None else _sha256(label))

    @classmethod
    def of_volumes(cls, image: "hd.Volume", label: "hd.Volume | None") -> "Origin":
        """By voxels and grid."""
        return cls(_voxels_sha256(image), None if label is None else _voxels_sha256(label))


class CohortFolder:
    """The folder ``path``; UIDs follow from ``name`` and the case."""

    def __init__(self, path: Path, name: str, labels: LabelSet | None, *, modality: str = "MR", author: str = "import") -> None:
        self.path, self.name, self.labels, self.modality, self.author = path, name, labels, modality, author

    def claim(self, origins: Mapping[str, Origin]) -> set[str]:
        """Record what the cases are made from, before any is written; those that are not there yet, or lack their label.

        CatalogError where one is there from another source, or labels are there by another label set: nothing is changed.
        """
        for folder in ("", "images", "labels"):
            remove_leftovers(self.path / folder)
        self._refuse_other_label_set()
        sources = self._sources()
        before, missing = dict(sources), set()
        for case, origin in origins.items():
            told = {"cohort": self.name, "modality": self.modality, "image": origin.image, "label": origin.label}
            known = sources.get(case, {})
            if self._images(case).exists():
                self._refuse_other(case, told, known, "cohort", "modality", "image")
            if self._label(case).exists():
                told["label"] = told["label"] or known.get("label")
                self._refuse_other(case, told, known, "label")
            if not self._images(case).exists() or (origin.label and not self._label(case).exists()):
                missing.add(case)
            sources[case] = told
        if sources != before:
            _write_json(self.path / "sources.json", sources)
        return missing

    def write(self, case: str, image: "hd.Volume", mask: "hd.Volume | None") -> None:
        """One patient, study and series; ``mask`` is a uint8 label map on the image's grid. What is there is left as it is."""
        told = {"patient_id": case, "case": case, "cohort": self.name, "modality": self.modality, "description": case}
        made = as_series(image, **told)
        if not self._images(case).exists():
            write_slices(made, self._images(case))
        if mask is None or self.labels is None or self._label(case).exists():
            return
        self._write_label_set()
        segmentation = seg.encode(
            mask.ensure_handedness("RIGHT_HANDED", flip_axis=0).astype(np.uint8),
            made.headers,
            self.labels,
            sop_uid=deterministic_uid("segmentation", self.name, case),
            series_uid=deterministic_uid("segmentation series", self.name, case),
            description=f"{self.labels.name}: {case}",
            author=self.author,
        )
        with atomic_file(self._label(case)) as file:
            segmentation.save_as(file, enforce_file_format=True)

    def close(self, cases: Iterable[tuple[str, bool]]) -> None:
        """Write label_set.json, and index.csv of ``cases``: (name, whether it has a label)."""
        self._write_label_set()
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["case", "series_uid", "label"])
        for case, labelled in cases:
            rows.writerow([case, series_uids(self.name, case)[1], f"labels/{case}.dcm" if labelled else ""])
        index = self.path / "index.csv"
        if not index.exists() or index.read_text() != text.getvalue():
            with atomic_file(index) as file:
                file.write(text.getvalue().encode())

    def _sources(self) -> dict[str, dict[str, Any]]:
        path = self.path / "sources.json"
        return json.loads(path.read_bytes()) if path.exists() else {}

    def _refuse_other(self, case: str, told: Mapping[str, Any], known: Mapping[str, Any], *names: str) -> None:
        differs = [name for name in names if told[name] != known.get(name)]
        if differs:
            other = f"with another {' and '.join(differs)}" if known else "and does not say from what it was made"
            problem = f"{self.path} has this case {other}"
            raise CatalogError(problem, about=f"case {case}", remedy=_ELSEWHERE)

    def _refuse_other_label_set(self) -> None:
        stored = self.path / "label_set.json"
        labelled = any((self.path / "labels").glob("*.dcm"))
        if self.labels is None or not labelled or not stored.exists():
            return
        if json.loads(stored.read_bytes()) != self.labels.to_dict():
            raise CatalogError("the labels there were written by another label set", about=str(stored), remedy=_ELSEWHERE)

    def _write_label_set(self) -> None:
        """Before the first label: a label is never without its label set."""
        self._refuse_other_label_set()
        if self.labels is not None:
            _write_json(self.path / "label_set.json", self.labels.to_dict())

    def _images(self, case: str) -> Path:
        return self.path / "images" / case

    def _label(self, case: str) -> Path:
        return self.path / "labels" / f"{case}.dcm"


_ELSEWHERE = "import into another folder (--out) or under another name, or remove that one first"


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    written = json.dumps(content, indent=1).encode()
    if not path.exists() or path.read_bytes() != written:
        with atomic_file(path) as file:
            file.write(written)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _voxels_sha256(volume: "hd.Volume") -> str:
    digest = hashlib.sha256(repr((volume.array.dtype.str, volume.spatial_shape)).encode())
    digest.update(np.ascontiguousarray(volume.affine).tobytes())
    digest.update(np.ascontiguousarray(volume.array).tobytes())
    return digest.hexdigest()
