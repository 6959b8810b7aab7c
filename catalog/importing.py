"""NIfTI cohorts as DICOM: ``images/*.nii.gz`` become series, ``labels/*.nii.gz`` segmentations of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog.cohort import CohortFolder, Origin
from catalog.errors import CatalogError
from catalog.labelset import LabelSet
from catalog.nifti import lps_affine, open_nifti, right_angled, voxels
from catalog.nifti_folder import NiftiCase, NiftiFolder
from catalog.progress import Progress

if TYPE_CHECKING:
    import highdicom as hd

__all__ = ["ImportReport", "import_nifti"]

_AIR = -500.0  # an image whose lowest value is below is in Hounsfield units: CT


@dataclass(frozen=True)
class ImportReport:
    """``images`` and ``labels`` of the cohort, how many cases were ``written`` now (the others were there), and where."""

    images: int
    labels: int
    written: int
    modality: str
    out: Path

    def as_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "out": str(self.out)}


def import_nifti(folder: Path, out: Path, *, modality: str | None = None, progress: Progress | None = None) -> ImportReport:
    """Write the cohort in ``folder`` to ``out``, a ``catalog.cohort`` folder.

    One patient, study and series a case; UIDs follow from the cohort's name (dataset.json's, else the folder's) and the
    case. Structures come from label_set.json in ``folder``, else from ``labels`` in its dataset.json, else from the values
    found, as structure_1 …; the modality from the argument, else from dataset.json, else CT where the first image goes
    below -500, else MR. Everything is read and checked before anything is written; each case is written whole or not
    at all, and one that is there is left alone, so an interrupted import is run again.

    Raises CatalogError, which names the file and the remedy, for: no images, a label without an image or with another
    shape or affine, a file that is cut short, is no NIfTI or has more than three dimensions, a sheared affine, a value that
    is not finite or has no structure, a case that ``out`` has from another image or label, another label set, a full disk.
    """
    folder, out = Path(folder), Path(out)
    source = NiftiFolder(folder)
    pairs = _single(source.cases)
    low, values = _check(pairs, progress)
    labels = source.label_set(values)
    _refuse_foreign(values, labels)
    cohort = CohortFolder(out, source.name, labels, modality=modality or _modality(source.described, low))
    missing = cohort.claim({pair.case: Origin.of_files(pair.images[0], pair.label) for pair in pairs})
    for done, pair in enumerate(pairs, start=1):
        if pair.case in missing:
            cohort.write(pair.case, _volume(pair.images[0]), _mask(pair))
        if progress:
            progress(len(pairs) + done, 2 * len(pairs))
    cohort.close((pair.case, pair.label is not None) for pair in pairs)
    return ImportReport(len(pairs), sum(pair.label is not None for pair in pairs), len(missing), cohort.modality, out)


def _single(cases: Sequence[NiftiCase]) -> Sequence[NiftiCase]:
    """``cases``, where each is one image."""
    if len(cases[0].images) > 1:
        problem = f"cases of {len(cases[0].images)} channels are not imported"
        raise CatalogError(problem, about=str(cases[0].images[0]), remedy="train on the folder as it is: voxloop train FOLDER")
    return cases


def _check(pairs: Sequence[NiftiCase], progress: Progress | None) -> tuple[float, dict[int, Path]]:
    """Read every file once; the lowest value of the first image, and each label value with a file that has it."""
    for pair in pairs:
        _check_fit(pair)
    low = 0.0
    values: dict[int, Path] = {}
    for done, pair in enumerate(pairs, start=1):
        lowest = float(voxels(open_nifti(pair.images[0]), pair.images[0]).min())
        low = lowest if done == 1 else low
        if pair.label is not None:
            for value in np.unique(voxels(open_nifti(pair.label), pair.label)).tolist():
                if value != int(value) or not 0 <= value <= 255:
                    remedy = "a label map has whole values from 0 to 255"
                    raise CatalogError(f"the label has a voxel of value {value}", about=str(pair.label), remedy=remedy)
                values.setdefault(int(value), pair.label)
        if progress:
            progress(done, 2 * len(pairs))
    return low, values


def _check_fit(pair: NiftiCase) -> None:
    image = open_nifti(pair.images[0])
    if pair.label is None:
        return
    label = open_nifti(pair.label)
    remedy = f"resample it to the grid of {pair.images[0].name}"
    if label.shape[:3] != image.shape[:3]:
        problem = f"the label's shape {label.shape[:3]} is not its image's {image.shape[:3]}"
        raise CatalogError(problem, about=str(pair.label), remedy=remedy)
    corner = np.array([*image.shape[:3], 1.0])
    apart = np.abs((lps_affine(label) - lps_affine(image)) * corner[[2, 1, 0, 3]]).max()
    if apart > 0.05:
        raise CatalogError(f"the label's affine is {apart:.2f} mm off its image's", about=str(pair.label), remedy=remedy)


def _refuse_foreign(values: dict[int, Path], labels: LabelSet | None) -> None:
    known = {0, *(structure.value for structure in labels.structures)} if labels else {0}
    for value in sorted(set(values) - known):
        remedy = "add it to label_set.json or dataset.json, or clear those voxels"
        raise CatalogError(f"its value {value} is in no label set", about=str(values[value]), remedy=remedy)


def _modality(described: dict[str, Any], low: float) -> str:
    said = described.get("modality") or described.get("channel_names") or {}
    first = str(next(iter(said.values()), "") if isinstance(said, dict) else said).upper()
    return "CT" if "CT" in first or (not first and low < _AIR) else "MR"


def _mask(pair: NiftiCase) -> "hd.Volume | None":
    return None if pair.label is None else _volume(pair.label, lps_affine(open_nifti(pair.images[0])))


def _volume(path: Path, affine: np.ndarray | None = None) -> "hd.Volume":
    import highdicom as hd

    image = open_nifti(path)
    return hd.Volume(voxels(image, path), right_angled(lps_affine(image) if affine is None else affine), "PATIENT")
