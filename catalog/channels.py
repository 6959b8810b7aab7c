"""A channel of a project's cases: the conditions over headers that a volume has to fit."""

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from catalog.slices import Slice, number

__all__ = ["Channel", "Prefer"]

Prefer = Literal["largest", "latest", "first"]
_COMPARISON = re.compile(r"(<=|>=|<|>)\s*(\S+)")
_OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Channel:
    """What ``where`` asks of a volume, attribute (keyword or tag) → values, of which one has to fit.

    A value is text with the wildcards ``*`` and ``?``, in any case, compared with each of the attribute's values and with all
    of them (joined by a backslash); a number, compared as one; ``<``, ``<=``, ``>``, ``>=`` and a number; or ``!`` before one
    of these, which must not fit. The empty text fits what is absent. Where several volumes fit, ``prefer`` takes the
    ``largest`` (voxels), the ``latest`` (by SeriesDate and SeriesTime) or the ``first`` (by SeriesNumber); without it none is.
    """

    name: str
    where: Mapping[str, tuple[str, ...]]
    prefer: Prefer | None = None

    def __post_init__(self) -> None:
        """ValueError where a comparison has no number."""
        for keyword, wanted in self.where.items():
            for one in wanted:
                compared = _COMPARISON.fullmatch(one.removeprefix("!"))
                if compared and number(compared[2]) is None:
                    raise ValueError(f"{keyword} {one!r}: {compared[1]} needs a number")

    def misfit(self, found: Slice) -> str:
        """The first condition that the volume of a slice does not fit, in words; empty where it fits all."""
        for keyword, wanted in self.where.items():
            if not _fits(found[keyword], wanted):
                return f"{keyword} is {found[keyword] or 'absent'}, not {' or '.join(wanted) or 'absent'}"
        return ""


def _fits(text: str, wanted: tuple[str, ...]) -> bool:
    refused = [one[1:] for one in wanted if one.startswith("!")]
    asked = [one for one in wanted if not one.startswith("!")]
    return not any(_is(text, one) for one in refused) and (not asked or any(_is(text, one) for one in asked))


def _is(text: str, wanted: str) -> bool:
    values = [text, *text.split("\\")]
    compared = _COMPARISON.fullmatch(wanted)
    bound = number(compared[2] if compared else wanted)
    if bound is not None:
        compare = _OPERATORS[compared[1]] if compared else operator.eq
        if any(compare(found, bound) for found in map(number, values) if found is not None):
            return True
    return any(fnmatchcase(value.lower(), wanted.lower()) for value in values)
