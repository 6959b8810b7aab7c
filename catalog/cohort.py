"""A folder of DICOM that Voxloop wrote: images/CASE/NNNN.dcm, labels/CASE.dcm (SEG), label_set.json, index.csv.

NIfTI cohorts are imported into one, the synthetic cohort is made as one.
"""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from catalog import seg
from catalog.disk import atomic_file
from catalog.labelset import LabelSet
from catalog.series import as_series, series_uids, write_slices
from catalog.uids import deterministic_uid

if TYPE_CHECKING:
    import highdicom as hd

__all__ = ["CohortFolder"]


class CohortFolder:
    """The folder ``path``; UIDs follow from ``name`` and the case."""

    def __init__(self, path: Path, name: str, labels: LabelSet | None, *, modality: str = "MR", author: str = "import") -> None:
        self.path, self.name, self.labels, self.modality, self.author = path, name, labels, modality, author

    def has(self, case: str, *, labelled: bool) -> bool:
        """Whether the case is there, with its label if it is ``labelled``."""
        return self._images(case).exists() and (not labelled or self._label(case).exists())

    def write(self, case: str, image: "hd.Volume", mask: "hd.Volume | None") -> None:
        """One patient, study and series; ``mask`` is a uint8 label map on the image's grid. What is there is left as it is."""
        told = {"patient_id": case, "case": case, "cohort": self.name, "modality": self.modality, "description": case}
        made = as_series(image, **told)
        if not self._images(case).exists():
            write_slices(made, self._images(case))
        if mask is None or self.labels is None or self._label(case).exists():
            return
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
        if self.labels is not None:
            with atomic_file(self.path / "label_set.json") as file:
                file.write(json.dumps(self.labels.to_dict(), indent=1).encode())
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["case", "series_uid", "label"])
        for case, labelled in cases:
            rows.writerow([case, series_uids(self.name, case)[1], f"labels/{case}.dcm" if labelled else ""])
        with atomic_file(self.path / "index.csv") as file:
            file.write(text.getvalue().encode())

    def _images(self, case: str) -> Path:
        return self.path / "images" / case

    def _label(self, case: str) -> Path:
        return self.path / "labels" / f"{case}.dcm"
