"""A project: one YAML file that names the cohort, the label set, the plan, the split and the model."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pydantic
import yaml

from catalog.channels import Channel, Prefer
from catalog.dictionary import address
from catalog.errors import CatalogError
from catalog.labelset import LabelSet, Structure

if TYPE_CHECKING:
    from catalog.archive import Archive

__all__ = ["Case", "Project", "Split"]

_COLUMNS = ("SeriesInstanceUID", "StudyInstanceUID", "PatientID")


@dataclass(frozen=True)
class Case:
    """An image series of a cohort; ``patient_id`` is empty where the files have none.

    In a project with channels a case is a volume a channel: ``channels`` are their references in the project's order, and
    ``series_uid`` is the first one's series, on whose grid the others are resampled.
    """

    series_uid: str
    study_uid: str
    patient_id: str
    channels: tuple[str, ...] = ()

    @property
    def refs(self) -> tuple[str, ...]:
        """What ``VolumeSource.volume`` takes for each channel."""
        return self.channels or (self.series_uid,)


@dataclass(frozen=True)
class Split:
    """The shares of the cohort's patients, 0…1, that validate and that are held out for the gate; ``seed`` keys their order."""

    validation: float
    holdout: float
    seed: str


@dataclass(frozen=True)
class Project:
    """What a project file says. ``key`` stands in labels, predictions, scores and splits; ``cohort`` is SQL over
    ``catalog.views`` that gives SeriesInstanceUID, StudyInstanceUID and PatientID; ``plan`` are overrides that the plan's
    own module reads; ``model`` is the registered model's name; ``margin`` is the loss of Dice that the gate still calls
    not inferior; ``channels``, where there are any, make the series of a study one case."""

    key: str
    cohort: str
    label_set: LabelSet
    plan: dict[str, Any]
    split: Split
    model: str
    margin: float
    channels: tuple[Channel, ...] = ()

    @classmethod
    def load(cls, path: str | Path) -> "Project":
        """Read a project file; CatalogError names the field that does not fit."""
        try:
            stored = yaml.safe_load(Path(path).read_text())
            return _File.model_validate(stored).project()
        except FileNotFoundError:
            raise CatalogError("no such project file", about=str(path), remedy="check the path") from None
        except pydantic.ValidationError as problem:
            said, remedy = _told(problem.errors())
            raise CatalogError(said, about=str(path), remedy=remedy) from None
        except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as problem:
            said = f"not YAML: {' '.join(str(problem).split())}"
            raise CatalogError(said, about=str(path), remedy="mend the project file") from None

    def cases(self, archive: "Archive") -> list[Case]:
        """The image series of the cohort as the catalog is now, by SeriesInstanceUID; with channels, the studies that have
        a volume for each of them (``catalog.cases.examine`` says why the others do not).

        CatalogError where the SQL fails, lacks a column or gives a series twice.
        """
        if self.channels:
            from catalog.cases import examine

            return sorted((case for study in examine(archive, self) for case in study.cases), key=lambda case: case.series_uid)
        images = set(archive.sql("SELECT SeriesInstanceUID FROM series WHERE is_image")["SeriesInstanceUID"].to_pylist())
        return [case for case in self.series(archive) if case.series_uid in images]

    def series(self, archive: "Archive") -> list[Case]:
        """What the cohort's SQL gives, each series a case, by SeriesInstanceUID. CatalogError as ``cases``."""
        try:
            found = archive.sql(self.cohort)
        except CatalogError as problem:
            said = f"cohort: {problem.problem}"
            raise CatalogError(said, about=f"project {self.key}", remedy=f"mend its SQL; {problem.remedy}") from None
        lacking = [column for column in _COLUMNS if column not in found.column_names]
        if lacking:
            remedy = f"select {', '.join(_COLUMNS)}"
            raise CatalogError(f"the cohort lacks {', '.join(lacking)}", about=f"project {self.key}", remedy=remedy)
        rows = sorted((row[0], row[1], row[2] or "") for row in zip(*(found[c].to_pylist() for c in _COLUMNS), strict=True))
        cases = [Case(*row) for row in rows]
        if len({case.series_uid for case in cases}) < len(cases):
            raise CatalogError("the cohort gives a series twice", about=f"project {self.key}", remedy="select it from `series`")
        return cases


_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # safe in a path, in SQL and in a model's URI


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")


class _StructureIn(_Strict):
    name: Annotated[str, pydantic.Field(min_length=1, max_length=64)]
    value: Annotated[int, pydantic.Field(ge=1, le=255)]
    code: tuple[str, str, str]
    color: tuple[int, int, int]


class _LabelSetIn(_Strict):
    name: str
    structures: list[_StructureIn]


class _SplitIn(_Strict):
    validation: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.15
    holdout: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.2
    seed: str = "voxloop"

    @pydantic.model_validator(mode="after")
    def _leaves_some_to_train(self) -> "_SplitIn":
        if self.validation + self.holdout >= 1:
            raise ValueError("validation and holdout leave nothing to train on")
        return self


_Wanted = str | int | float


class _ChannelIn(_Strict):
    name: Annotated[str, pydantic.Field(pattern=_NAME, max_length=64)]
    where: Annotated[dict[str, _Wanted | Annotated[list[_Wanted], pydantic.Field(min_length=1)]], pydantic.Field(min_length=1)]
    prefer: Prefer | None = None

    @pydantic.field_validator("where")
    @classmethod
    def _names_attributes(cls, given: dict[str, Any]) -> dict[str, Any]:
        for keyword, wanted in given.items():
            try:
                address(keyword)
            except CatalogError as problem:
                raise ValueError(str(problem)) from None
            Channel("", {keyword: tuple(map(str, wanted if isinstance(wanted, list) else [wanted]))})
        return given

    def channel(self) -> Channel:
        listed = {keyword: given if isinstance(given, list) else [given] for keyword, given in self.where.items()}
        return Channel(self.name, {keyword: tuple(map(str, wanted)) for keyword, wanted in listed.items()}, self.prefer)


class _File(_Strict):
    key: Annotated[str, pydantic.Field(pattern=_NAME, max_length=63)]
    cohort: str
    label_set: _LabelSetIn
    plan: dict[str, Any] = {}
    split: _SplitIn = _SplitIn()
    model: Annotated[str, pydantic.Field(pattern=_NAME, max_length=128)]
    margin: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.02
    channels: list[_ChannelIn] = []

    @pydantic.field_validator("channels")
    @classmethod
    def _has_names_of_its_own(cls, given: list[_ChannelIn]) -> list[_ChannelIn]:
        if len({channel.name for channel in given}) < len(given):
            raise ValueError("two channels have one name")
        return given

    @pydantic.field_validator("label_set")
    @classmethod
    def _is_a_label_set(cls, given: _LabelSetIn) -> _LabelSetIn:
        try:
            _label_set(given)
        except CatalogError as problem:
            raise ValueError(problem.problem) from None
        return given

    def project(self) -> Project:
        split = Split(self.split.validation, self.split.holdout, self.split.seed)
        channels = tuple(channel.channel() for channel in self.channels)
        return Project(self.key, self.cohort, _label_set(self.label_set), self.plan, split, self.model, self.margin, channels)


def _told(problems: Sequence[Any]) -> tuple[str, str]:
    """The first of pydantic's problems in plain words, and the remedy. A field that there is none of goes first: it may be
    another's slip."""
    first = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    *above, name = [str(part) for part in first["loc"]] or [""]
    where = ".".join((*above, name)) or "the file"
    match first["type"]:
        case "extra_forbidden":
            known = list(_model(above).model_fields)
            meant = difflib.get_close_matches(name, known, 1)
            remedy = f"did you mean {meant[0]}?" if meant else f"the fields are {', '.join(known)}"
            return f"{where}: there is no such field", remedy
        case "missing":
            return f"{where}: is missing", "add it; docs/project.md shows a whole file"
        case "string_type":
            quote = isinstance(first["input"], int | float)
            return f"{where}: {first['input']!r} is no text", "put it in quotes" if quote else "mend the project file"
        case "string_pattern_mismatch":
            return f"{where}: {first['input']!r} is no name", "letters, digits, . _ - and at the front no sign"
        case "model_type" | "dict_type":
            return f"{where}: no fields and values", "docs/project.md shows a whole file"
        case "value_error":
            return f"{where}: {first['ctx']['error']}", "mend the project file"
    said = first["msg"].replace("Input", repr(first["input"])).replace("valid tuple", "list").partition(", unable")[0]
    return f"{where}: {said}", "mend the project file"


def _model(above: Sequence[str]) -> type[_Strict]:
    """The model at a path of a file, such as label_set.structures.0."""
    inner: dict[str, type[_Strict]] = {
        "label_set": _LabelSetIn,
        "structures": _StructureIn,
        "split": _SplitIn,
        "channels": _ChannelIn,
    }
    names = [part for part in above if part in inner]
    return inner[names[-1]] if names else _File


def _label_set(given: _LabelSetIn) -> LabelSet:
    return LabelSet(given.name, tuple(Structure(s.name, s.value, s.code, s.color) for s in given.structures))
