"""A folder of NIfTI files as a cohort: images/ and labels/ (or imagesTr/ and labelsTr/), dataset.json, classes.csv.

Understood as they are: the Medical Segmentation Decathlon's layout, and nnU-Net's, where ``CASE_0000.nii.gz`` and
``CASE_0001.nii.gz`` are the channels of ``CASE``.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from catalog.errors import CatalogError
from catalog.labelset import LabelSet, Structure

__all__ = ["NiftiCase", "NiftiFolder"]

_FOLDERS = (("images", "labels"), ("imagesTr", "labelsTr"))
_ENDINGS = (".nii.gz", ".nii")
_COLORS = ((230, 75, 53), (77, 187, 213), (0, 160, 135), (240, 180, 60), (130, 90, 200), (145, 209, 120), (220, 110, 170))
_CHANNEL = re.compile(r"(.+)_(\d{4})")
CLASSES = "classes.csv"


@dataclass(frozen=True)
class NiftiCase:
    """A case: its ``images``, a channel each, and its label map where it has one."""

    case: str
    images: tuple[Path, ...]
    label: Path | None


class NiftiFolder:
    """The folder ``path``. Nothing but names is read before it is asked for; CatalogError says what does not fit."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise CatalogError("no such folder", about=str(path), remedy="check the path")
        self.path = path

    @cached_property
    def described(self) -> dict[str, Any]:
        """dataset.json (Medical Segmentation Decathlon, nnU-Net), empty where there is none."""
        path = self.path / "dataset.json"
        try:
            found = json.loads(path.read_text()) if path.exists() else {}
        except ValueError as problem:
            raise CatalogError(f"not JSON: {problem}", about=str(path), remedy="mend or remove it") from None
        return found if isinstance(found, dict) else {}

    @property
    def name(self) -> str:
        """Of the cohort: dataset.json's, else the folder's."""
        return str(self.described.get("name") or self.path.resolve().name)

    @cached_property
    def cases(self) -> tuple[NiftiCase, ...]:
        """By name; a label without its image is refused, and so are cases of unequal channels."""
        for images, labels in _FOLDERS:
            found = _volumes(self.path / images)
            if not found:
                continue
            outlined = _volumes(self.path / labels)
            grouped = self._grouped(found, outlined)
            for case in sorted(set(outlined) - set(grouped)):
                remedy = f"add {images}/{case}.nii.gz or remove the label"
                raise CatalogError("a label without its image", about=str(outlined[case]), remedy=remedy)
            cases = tuple(NiftiCase(case, grouped[case], outlined.get(case)) for case in sorted(grouped))
            for one in cases:
                if len(one.images) != len(cases[0].images):
                    problem = f"{len(one.images)} channels, {cases[0].case} has {len(cases[0].images)}"
                    raise CatalogError(problem, about=str(one.images[0]), remedy="bring every channel of every case")
            return cases
        raise CatalogError("no images/*.nii.gz in it", about=str(self.path), remedy="put the volumes into its folder images/")

    @cached_property
    def channels(self) -> tuple[str, ...]:
        """Their names: dataset.json's ``channel_names`` or ``modality`` where they are as many, else ``channel_0``, …; of a
        single one ``image``."""
        number = len(self.cases[0].images)
        said = self.described.get("channel_names") or self.described.get("modality") or {}
        names = [str(said[key]) for key in sorted(said, key=str)] if isinstance(said, Mapping) else []
        if number == 1:
            return ("image",)
        return tuple(names) if len(names) == number else tuple(f"channel_{index}" for index in range(number))

    def classes(self) -> dict[str, str]:
        """Case → class by classes.csv (columns ``case`` and ``class``); empty where there is none."""
        path = self.path / CLASSES
        if not path.exists():
            return {}
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or not {"case", "class"} <= set(rows[0]):
            raise CatalogError("has no rows with the columns case and class", about=str(path), remedy="write one a case")
        found = {(row["case"] or "").strip(): (row["class"] or "").strip() for row in rows}
        known = {case.case for case in self.cases}
        if unknown := sorted(set(found) - known):
            raise CatalogError(
                f"names {unknown[0]}, which has no image", about=str(path), remedy="mend the row or add the image"
            )
        if empty := sorted(case for case, name in found.items() if not name):
            raise CatalogError(f"gives {empty[0]} no class", about=str(path), remedy="fill it in or remove the row")
        return found

    def label_set(self, values: Iterable[int]) -> LabelSet | None:
        """The structures: label_set.json's, else dataset.json's ``labels``, else ``structure_1`` … of ``values`` in label maps.

        None where there are no labels and nothing says what they would be.
        """
        given = self.path / "label_set.json"
        if given.exists():
            try:
                return LabelSet.from_dict(json.loads(given.read_text()))
            except (ValueError, AttributeError) as problem:
                raise CatalogError(f"not a label set: {problem}", about=str(given), remedy="mend or remove it") from None
        names = dict(_named(self.described.get("labels"), self.path / "dataset.json"))
        names = names or {value: f"structure_{value}" for value in sorted(values) if value}
        return _tissues(self.name, names) if names else None

    def class_set(self) -> LabelSet | None:
        """The classes of classes.csv as structures without outlines, by name; None where there is no classes.csv."""
        names = sorted(set(self.classes().values()))
        return _tissues(self.name, dict(enumerate(names, 1))) if names else None

    def _grouped(self, found: Mapping[str, Path], outlined: Mapping[str, Path]) -> dict[str, tuple[Path, ...]]:
        """Case → the images of its channels: nnU-Net's endings count where the labels are named without them."""
        channels = [match for match in map(_CHANNEL.fullmatch, found) if match]
        bare = {match[1] for match in channels}
        by_labels = bool(outlined) and set(outlined) <= bare and not set(outlined) & set(found)
        if len(channels) < len(found) or not (by_labels or (not outlined and "channel_names" in self.described)):
            return {case: (path,) for case, path in found.items()}
        grouped: dict[str, tuple[Path, ...]] = {}
        for match in sorted(channels, key=lambda match: match[0]):
            grouped[match[1]] = (*grouped.get(match[1], ()), found[match[0]])
        return grouped


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


def _tissues(name: str, names: Mapping[int, str]) -> LabelSet:
    structures = tuple(
        Structure(structure, value, ("SCT", "85756007", "Tissue"), _COLORS[i % len(_COLORS)])
        for i, (value, structure) in enumerate(sorted(names.items()))
    )
    return LabelSet(name, structures)


def _named(labels: Any, path: Path) -> Iterator[tuple[int, str]]:
    """Value and name from {"1": "liver"} (Decathlon) or {"liver": 1} (nnU-Net)."""
    try:
        for key, item in (labels or {}).items():
            value, name = (int(key), str(item)) if str(key).isdigit() else (int(item), str(key))
            if value:
                yield value, name
    except (AttributeError, TypeError, ValueError):
        raise CatalogError("its labels are not value and name", about=str(path), remedy="mend or remove it") from None
