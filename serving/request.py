"""What a served model is asked and what it answers; a request names images, it never carries voxels.

A request is a list of items (``dataframe_records`` of MLflow's scoring protocol)::

    {"dataframe_records": [{"reference": {"series": "1.2.3"}, "prompts": {"classes": ["liver"]}, "outputs": ["volumes"]}]}

and each item is answered on its own by ``{"result": {...} | null, "error": {...} | null, "model": name, "version": "3"}``. The
schema is complete; what the server cannot do yet is refused by its name, for that item only.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving.errors import ServingError

__all__ = ["Item", "Output", "Point", "PromptFields", "Reference", "answer", "parse"]

Output = Literal["seg", "nifti", "labelmap", "volumes", "uncertainty"]
OUTPUTS: tuple[Output, ...] = get_args(Output)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Reference(_Strict):
    """Exactly one of: ``series``, a SeriesInstanceUID in the catalog; ``dicom``, a folder that holds one series, or a URL;
    ``nifti``, the path of a .nii or .nii.gz; ``upload``, the name that /api/uploads gave a file. Paths are the server's."""

    series: str | None = None
    dicom: str | None = None
    nifti: str | None = None
    upload: str | None = None

    @model_validator(mode="after")
    def _one(self) -> "Reference":
        given = [value for value in (self.series, self.dicom, self.nifti, self.upload) if value is not None]
        if len(given) != 1 or not given[0]:
            raise ValueError("give exactly one of series, dicom, nifti, upload")
        return self

    @property
    def kind(self) -> str:
        """Which of the four is given."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def value(self) -> str:
        """The UID, path, URL or name itself."""
        return str(getattr(self, self.kind))


class Point(_Strict):
    """A click: ``position`` in LPS mm, inside (``positive``) or outside ``structure``."""

    position: list[float] = Field(min_length=3, max_length=3)
    structure: str
    positive: bool = True


class PromptFields(_Strict):
    """What to look for: names of structures (none: all that the model knows), and clicks."""

    classes: list[str] = []
    points: list[Point] = []


class Item(_Strict):
    """One image and what is wanted of it."""

    reference: Reference
    prompts: PromptFields = PromptFields()
    outputs: list[Output] = Field(default=["volumes"], min_length=1)


def parse(row: Mapping[Any, Any]) -> Item:
    """One item of a request; fields that are null or NaN (a table's gaps) count as not given. ServingError for a field or value
    that the schema does not have, and for what is in the schema but not built yet."""
    given = {str(k): v for k, v in row.items() if v is not None and not (isinstance(v, float) and math.isnan(v))}
    try:
        item = Item.model_validate(given)
    except ValidationError as problem:
        raise ServingError("; ".join(_say(error) for error in problem.errors()), about="request") from None
    if item.prompts.points:
        raise _unbuilt("prompts.points", "prompts.classes")
    if item.reference.kind == "dicom" and "://" in item.reference.value:
        raise _unbuilt("a URL in reference.dicom", "a folder in reference.dicom, or reference.series")
    if "seg" in item.outputs and (item.reference.kind == "nifti" or item.reference.value.endswith((".nii", ".nii.gz"))):
        raise ServingError("a DICOM SEG needs DICOM images to refer to", about="outputs", remedy="ask for nifti or labelmap")
    return item


def answer(result: dict[str, Any] | None, error: Exception | None, *, model: str, version: str) -> dict[str, Any]:
    """One item's answer; an error has ``kind`` (its class) and ``message`` (one line, with the remedy)."""
    said = None if error is None else {"kind": type(error).__name__, "message": str(error)}
    return {"result": result, "error": said, "model": model, "version": version}


def _unbuilt(what: str, instead: str) -> ServingError:
    return ServingError(f"{what} is not built yet", about="request", remedy=f"use {instead}")


def _say(error: Any) -> str:
    path = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        inner: dict[str, Any] = {"reference": Reference, "prompts": PromptFields} if path[1:] else {}
        owner = Point if "points" in path[:-1] else inner.get(path[0], Item)
        return f"{'.'.join(path)} is not supported; supported: {', '.join(owner.model_fields)}"
    if error["type"] == "literal_error":
        return f"{'.'.join(path)}: {error['input']!r} is not supported; supported: {', '.join(OUTPUTS)}"
    return f"{'.'.join(path) or 'item'}: {error['msg'].removeprefix('Value error, ')}"
