"""NIfTI cohorts as DICOM: ``images/*.nii.gz`` become series, ``labels/*.nii.gz`` segmentations of them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog.cohort import CohortFolder, Origin
from catalog.errors import CatalogError
from catalog.labelset import LabelSet, Structure
from catalog.nifti import lps_affine, open_nifti, right_angled, voxels
from catalog.progress import Progress

if TYPE_CHECKING:
    import highdicom as hd

__all__ = ["ImportReport", "import_nifti"]

_FOLDERS = (("images", "labels"), ("imagesTr", "labelsTr"))
_ENDINGS = (".nii.gz", ".nii")
_COLORS = ((230, 75, 53), (77, 187, 213), (0, 160, 135), (240, 180, 60), (130, 90, 200), (145, 209, 120), (220, 110, 170))
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


@dataclass(frozen=True)
class _Pair:
    case: str
    image: Path
    label: Path | None


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
    pairs = _pairs(folder)
    described = _described(folder)
    low, values = _check(pairs, progress)
    labels = _label_set(folder, described, values)
    _refuse_foreign(values, labels)
    name = str(described.get("name") or folder.resolve().name)
    cohort = CohortFolder(out, name, labels, modality=modality or _modality(described, low))
    missing = cohort.claim({pair.case: Origin.of_files(pair.image, pair.label) for pair in pairs})
    for done, pair in enumerate(pairs, start=1):
        if pair.case in missing:
            cohort.write(pair.case, _volume(pair.image), _mask(pair))
        if progress:
            progress(len(pairs) + done, 2 * len(pairs))
    cohort.close((pair.case, pair.label is not None) for pair in pairs)
    return ImportReport(len(pairs), sum(pair.label is not None for pair in pairs), len(missing), cohort.modality, out)


def _pairs(folder: Path) -> list[_Pair]:
    if not folder.is_dir():
        raise CatalogError("no such folder", about=str(folder), remedy="check the path")
    for images, labels in _FOLDERS:
        found = _volumes(folder / images)
        if not found:
            continue
        outlined = _volumes(folder / labels)
        for case in sorted(set(outlined) - set(found)):
            remedy = f"add {images}/{case}.nii.gz or remove the label"
            raise CatalogError("a label without its image", about=str(outlined[case]), remedy=remedy)
        return [_Pair(case, found[case], outlined.get(case)) for case in sorted(found)]
    raise CatalogError("no images/*.nii.gz in it", about=str(folder), remedy="put the volumes into its folder images/")


def _volumes(folder: Path) -> dict[str, Path]:
    """Case → file; hidden files, as some systems leave beside each file, are passed over."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    found: dict[str, Path] = {}
    for file in files:
        ending = next((ending for ending in _ENDINGS if file.name.endswith(ending)), None)
        if ending is None or file.name.startswith("."):
            continue
        case = file.name.removesuffix(ending)
        if case in found:
            raise CatalogError(f"the case is there twice, also as {found[case].name}", about=str(file), remedy="remove one")
        found[case] = file
    return found


def _described(folder: Path) -> dict[str, Any]:
    """The cohort's dataset.json (Medical Segmentation Decathlon, nnU-Net), empty where there is none."""
    path = folder / "dataset.json"
    try:
        found = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as problem:
        raise CatalogError(f"not JSON: {problem}", about=str(path), remedy="mend or remove it") from None
    return found if isinstance(found, dict) else {}


def _check(pairs: Sequence[_Pair], progress: Progress | None) -> tuple[float, dict[int, Path]]:
    """Read every file once; the lowest value of the first image, and each label value with a file that has it."""
    for pair in pairs:
        _check_fit(pair)
    low = 0.0
    values: dict[int, Path] = {}
    for done, pair in enumerate(pairs, start=1):
        lowest = float(voxels(open_nifti(pair.image), pair.image).min())
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


def _check_fit(pair: _Pair) -> None:
    image = open_nifti(pair.image)
    if pair.label is None:
        return
    label = open_nifti(pair.label)
    remedy = f"resample it to the grid of {pair.image.name}"
    if label.shape[:3] != image.shape[:3]:
        problem = f"the label's shape {label.shape[:3]} is not its image's {image.shape[:3]}"
        raise CatalogError(problem, about=str(pair.label), remedy=remedy)
    corner = np.array([*image.shape[:3], 1.0])
    apart = np.abs((lps_affine(label) - lps_affine(image)) * corner[[2, 1, 0, 3]]).max()
    if apart > 0.05:
        raise CatalogError(f"the label's affine is {apart:.2f} mm off its image's", about=str(pair.label), remedy=remedy)


def _label_set(folder: Path, described: dict[str, Any], values: dict[int, Path]) -> LabelSet | None:
    """The structures of the cohort; None where there are no labels and nothing says what they would be."""
    given = folder / "label_set.json"
    if given.exists():
        try:
            return LabelSet.from_dict(json.loads(given.read_text()))
        except (ValueError, AttributeError) as problem:
            raise CatalogError(f"not a label set: {problem}", about=str(given), remedy="mend or remove it") from None
    names = dict(_named(described.get("labels"), folder / "dataset.json"))
    names = names or {value: f"structure_{value}" for value in sorted(values) if value}
    if not names:
        return None
    structures = tuple(
        Structure(name, value, ("SCT", "85756007", "Tissue"), _COLORS[i % len(_COLORS)])
        for i, (value, name) in enumerate(sorted(names.items()))
    )
    return LabelSet(str(described.get("name") or folder.resolve().name), structures)


def _named(labels: Any, path: Path) -> Iterator[tuple[int, str]]:
    """Value and name from {"1": "liver"} (Decathlon) or {"liver": 1} (nnU-Net)."""
    try:
        for key, item in (labels or {}).items():
            value, name = (int(key), str(item)) if str(key).isdigit() else (int(item), str(key))
            if value:
                yield value, name
    except (AttributeError, TypeError, ValueError):
        raise CatalogError("its labels are not value and name", about=str(path), remedy="mend or remove it") from None


def _refuse_foreign(values: dict[int, Path], labels: LabelSet | None) -> None:
    known = {0, *(structure.value for structure in labels.structures)} if labels else {0}
    for value in sorted(set(values) - known):
        remedy = "add it to label_set.json or dataset.json, or clear those voxels"
        raise CatalogError(f"its value {value} is in no label set", about=str(values[value]), remedy=remedy)


def _modality(described: dict[str, Any], low: float) -> str:
    said = described.get("modality") or described.get("channel_names") or {}
    first = str(next(iter(said.values()), "") if isinstance(said, dict) else said).upper()
    return "CT" if "CT" in first or (not first and low < _AIR) else "MR"


def _mask(pair: _Pair) -> "hd.Volume | None":
    return None if pair.label is None else _volume(pair.label, lps_affine(open_nifti(pair.image)))


def _volume(path: Path, affine: np.ndarray | None = None) -> "hd.Volume":
    import highdicom as hd

    image = open_nifti(path)
    return hd.Volume(voxels(image, path), right_angled(lps_affine(image) if affine is None else affine), "PATIENT")
