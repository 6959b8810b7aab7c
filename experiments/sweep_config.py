"""What a sweep's file says: what is trained, what of the plan is fixed, what is searched, and how."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import pydantic
import yaml

from datamodules.plan import Plan
from experiments.errors import ExperimentError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["Search", "SweepConfig"]

KINDS = get_type_hints(Plan)


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Search(_Strict):
    """What one field of the plan may be: a number from ``low`` to ``high``, both included (``log``: evenly by factor;
    ``step``: between neighbours), or one of ``choices``. A list stands for its choices."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    choices: Annotated[tuple[Any, ...] | None, pydantic.Field(min_length=1)] = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        return {"choices": given} if isinstance(given, list) else given

    @pydantic.model_validator(mode="after")
    def _is_one_of_the_two(self) -> "Search":
        numbers = (self.low, self.high, self.step)
        if self.choices is not None:
            if self.log or any(number is not None for number in numbers):
                raise ValueError("give low and high, or choices, not both")
            if len(set(map(_told, self.choices))) < len(self.choices):
                raise ValueError("a choice is listed twice")
        elif self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        elif self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        return self

    def distribution(self, field: str) -> "BaseDistribution":
        """As Optuna takes it for this field of a plan. ValueError where such a field cannot be searched so.

        Choices that are no plain values stand there as JSON.
        """
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices is not None:
            return CategoricalDistribution([_told(choice) for choice in self.choices])
        assert self.low is not None
        assert self.high is not None
        if KINDS[field] is float:
            return FloatDistribution(self.low, self.high, log=self.log, step=self.step)
        if KINDS[field] is not int:
            raise ValueError("is no number: give choices")
        if any(number != int(number) for number in (self.low, self.high, self.step or 1)):
            raise ValueError("takes whole numbers")
        return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))

    def ends(self) -> tuple[Any, ...]:
        """The values that show whether all will do."""
        return self.choices if self.choices is not None else (self.low, self.high)

    def value(self, param: Any) -> Any:
        """What Optuna's ``param`` stands for."""
        return param if self.choices is None else next(choice for choice in self.choices if _told(choice) == param)


class SweepConfig(_Strict):
    """A sweep. ``target`` is a project's file or a folder of NIfTI files, ``plan`` what is fixed, ``space`` what is searched.

    ``trials`` are those that end by themselves or are pruned. ``storage`` is an SQLAlchemy URL; empty: a file in the home.
    ``seed`` is the sampler's: each trial trains with the plan's own.
    """

    name: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
    target: Path
    space: Annotated[dict[str, Search], pydantic.Field(min_length=1)]
    plan: dict[str, Any] = {}
    trials: Annotated[int, pydantic.Field(ge=1)] = 20
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["median", "hyperband", "none"] = "median"
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**31)] = 0
    storage: str = ""

    @pydantic.field_validator("plan", "space")
    @classmethod
    def _names_fields_of_a_plan(cls, given: dict[str, Any]) -> dict[str, Any]:
        unknown = sorted(set(given) - set(KINDS))
        if unknown:
            raise ValueError(f"a plan has no field {', '.join(unknown)}; it has {', '.join(sorted(KINDS))}")
        return given

    @pydantic.model_validator(mode="after")
    def _searches_what_is_free(self) -> "SweepConfig":
        for field, search in self.space.items():
            if field in self.plan:
                raise ValueError(f"space.{field}: is fixed by plan.{field}; keep one of them")
            try:
                search.distribution(field)
            except ValueError as problem:
                raise ValueError(f"space.{field}: {problem}") from None
        return self

    @classmethod
    def load(cls, path: Path) -> "SweepConfig":
        """Read a sweep's file, whose ``target`` is relative to it; ExperimentError names the field that does not fit."""
        remedy = "mend the sweep's file"
        try:
            config = cls.model_validate(yaml.safe_load(path.read_text()))
        except FileNotFoundError:
            raise ExperimentError("no such file", about=str(path), remedy="check the path") from None
        except pydantic.ValidationError as problem:
            raise ExperimentError(_first(problem), about=str(path), remedy=remedy) from None
        except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as problem:
            raise ExperimentError(f"not YAML: {' '.join(str(problem).split())}", about=str(path), remedy=remedy) from None
        target = (path.parent / config.target.expanduser()).resolve()
        if not target.exists():
            raise ExperimentError(f"target: there is no {target}", about=str(path), remedy=remedy)
        return config.model_copy(update={"target": target})

    @cached_property
    def distributions(self) -> "dict[str, BaseDistribution]":
        """The space as Optuna takes it."""
        return {field: search.distribution(field) for field, search in self.space.items()}

    def overrides(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """What the plan of a trial with Optuna's ``params`` is overridden by."""
        return {**self.plan, **{field: self.space[field].value(param) for field, param in params.items()}}

    def kept(self) -> dict[str, str]:
        """What must stay as it was begun, or trials could not be compared: by field, as text."""
        names = ("target", "plan", "space", "sampler", "pruner", "seed")
        told = self.model_dump(mode="json", include=set(names), exclude_defaults=False)
        return {name: told[name] if isinstance(told[name], str) else _json(told[name]) for name in names}


def _told(choice: Any) -> Any:
    return choice if choice is None or isinstance(choice, bool | int | float | str) else _json(choice)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _first(problem: pydantic.ValidationError) -> str:
    """The first error: where, and what is wrong."""
    first = problem.errors()[0]
    where = ".".join(map(str, first["loc"]))
    said = first["msg"].removeprefix("Value error, ")
    return f"{where}: {said}" if where else said
