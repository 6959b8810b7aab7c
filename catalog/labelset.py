"""What a project labels: structures, the voxel value of each in a label map, their codes and colours."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from catalog.errors import CatalogError

__all__ = ["LabelSet", "Structure"]


@dataclass(frozen=True)
class Structure:
    """One thing that is outlined: ``value`` is its voxel value (1…255), ``code`` is (scheme, value, meaning) as in
    (``SCT``, ``10200004``, ``Liver``), ``color`` is sRGB, 0…255."""

    name: str
    value: int
    code: tuple[str, str, str]
    color: tuple[int, int, int]


@dataclass(frozen=True)
class LabelSet:
    """The structures of a project, in the order of their values; 0 is background."""

    name: str
    structures: tuple[Structure, ...]

    def __post_init__(self) -> None:
        values = [structure.value for structure in self.structures]
        names = [structure.name for structure in self.structures]
        if (
            not values
            or values != sorted(set(values))
            or not 1 <= values[0] <= values[-1] <= 255
            or len(set(names)) < len(names)
        ):
            raise CatalogError(
                "structures need distinct names and ascending values between 1 and 255",
                about=f"label set {self.name}",
                remedy="mend label_set in the project file",
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON stores it."""
        return {
            "name": self.name,
            "structures": [
                {"name": s.name, "value": s.value, "code": list(s.code), "color": list(s.color)} for s in self.structures
            ],
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "LabelSet":
        """The inverse of ``to_dict``; CatalogError where a field is missing or of the wrong kind."""
        try:
            structures = tuple(
                Structure(str(s["name"]), int(s["value"]), _three(s["code"], str), _three(s["color"], int))
                for s in stored["structures"]
            )
            return cls(str(stored["name"]), structures)
        except (KeyError, TypeError, ValueError) as problem:
            raise CatalogError(f"not a label set: {problem!r}", about=str(stored.get("name", "label set"))) from None


def _three(items: Any, kind: type) -> Any:
    first, second, third = items
    return kind(first), kind(second), kind(third)
