"""The plan: every decision of a training that its result depends on, as one readable JSON document."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from statistics import median
from typing import Any, Literal, Self

import highdicom as hd

from catalog.labelset import LabelSet
from datamodules.errors import DataError

__all__ = ["Fingerprint", "Normalization", "Plan"]

Normalization = Literal["zscore", "percentile", "ct"]

PREPARATION = ("spacing", "normalization", "structures", "values")  # what prepare() and prepare_mask() look at
DIVISOR = 8  # the default network halves its grid at most three times
LARGEST_PATCH = 96
SMALL_UNET = {"channels": [32, 32, 64, 128], "strides": [2, 2, 2], "num_res_units": 1, "norm": "INSTANCE"}


@dataclass(frozen=True)
class Fingerprint:
    """What a cohort's volumes have in common: median voxel spacing (mm) and size (voxels), both (z, y, x) after
    reorientation, and the DICOM modality (``CT`` or another)."""

    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    modality: str = "MR"

    @classmethod
    def of(cls, volumes: Iterable[hd.Volume], *, modality: str = "MR") -> Self:
        """Measure ``volumes``, one at a time; DataError where there is none."""
        from datamodules.prepare import CANONICAL

        geometries = [volume.get_geometry().to_patient_orientation(CANONICAL) for volume in volumes]
        if not geometries:
            raise DataError("no volumes to derive a plan from", remedy="widen the project's cohort")
        spacing = [round(median(geometry.spacing[axis] for geometry in geometries), 4) for axis in range(3)]
        shape = [round(median(geometry.spatial_shape[axis] for geometry in geometries)) for axis in range(3)]
        return cls((spacing[0], spacing[1], spacing[2]), (shape[0], shape[1], shape[2]), modality)


@dataclass(frozen=True)
class Plan:
    """One training's decisions.

    ``spacing`` is in mm and ``patch`` in voxels, both (z, y, x) of the canonical orientation (see ``prepare``).
    ``structures[k]`` is class ``k + 1`` of the network and voxel value ``values[k]`` of a label map; class 0 is background.
    ``batch`` patches make a step, ``steps`` steps a training, ``validate_every`` steps an epoch. ``overlap`` is the share
    of a window that the next one covers at inference. ``network`` names a class of ``monai.networks.nets``.
    """

    spacing: tuple[float, float, float]
    structures: tuple[str, ...]
    values: tuple[int, ...]
    patch: tuple[int, int, int]
    normalization: Normalization = "zscore"
    batch: int = 2
    steps: int = 500
    network: str = "UNet"
    network_args: dict[str, Any] = field(default_factory=lambda: dict(SMALL_UNET))
    learning_rate: float = 4e-3
    weight_decay: float = 1e-4
    augment: bool = True
    overlap: float = 0.25
    validate_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot train, by the field's name."""
        for name in ("spacing", "patch", "batch", "steps", "learning_rate", "validate_every"):
            value = getattr(self, name)
            if not all(part > 0 for part in (value if isinstance(value, tuple) else (value,))):
                raise DataError(f"{name} must be above 0, not {value}", about="plan", remedy="mend plan in the project file")
        if not self.structures or len(self.structures) != len(self.values):
            raise DataError("structures and values must pair up", about="plan")
        if not 0 <= self.overlap < 1:
            raise DataError(f"overlap must be in [0, 1), not {self.overlap}", about="plan")
        if self.normalization not in ("zscore", "percentile", "ct"):
            raise DataError(f"normalization {self.normalization!r} is not zscore, percentile or ct", about="plan")

    @classmethod
    def make(cls, overrides: Mapping[str, Any], label_set: LabelSet, fingerprint: Fingerprint) -> Self:
        """The default plan for a cohort, with a project's ``overrides`` (field → value) put in.

        Raises DataError that names an override which is no field of a plan, or the label set's to say.
        """
        derived = {
            "spacing": fingerprint.spacing,
            "normalization": "ct" if fingerprint.modality == "CT" else "zscore",
            "structures": [structure.name for structure in label_set.structures],
            "values": [structure.value for structure in label_set.structures],
        }
        for name in ("structures", "values"):
            if name in overrides:
                raise DataError(f"{name} follows from the label set", about="plan", remedy=f"take {name} out of the plan")
        spacing = cls.from_dict({**derived, "patch": [1, 1, 1], **overrides}).spacing
        sizes = [n * old / new for n, old, new in zip(fingerprint.shape, fingerprint.spacing, spacing, strict=True)]
        derived["patch"] = [min(LARGEST_PATCH, max(1, int(size / DIVISOR)) * DIVISOR) for size in sizes]
        return cls.from_dict({**derived, **overrides})

    def to_dict(self) -> dict[str, Any]:
        """As JSON stores it."""
        stored: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return stored

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``; DataError that names an unknown or missing field, or one of the wrong kind."""
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(stored) - known)
        if unknown:
            raise DataError(f"unknown key {', '.join(unknown)}", about="plan", remedy=f"a plan has {', '.join(sorted(known))}")
        try:
            return cls(**{name: _typed(name, value) for name, value in stored.items()})
        except (TypeError, ValueError) as problem:
            raise DataError(str(problem), about="plan", remedy="mend plan in the project file") from None

    def digest(self) -> str:
        """sha256 of the canonical JSON, in hex."""
        return _sha256(self.to_dict())

    def preparation(self) -> dict[str, Any]:
        """The part of the plan that a prepared volume depends on; two plans that agree on it share their datasets."""
        stored = self.to_dict()
        return {name: stored[name] for name in PREPARATION}


def _typed(name: str, value: Any) -> Any:
    """``value`` as the field ``name`` holds it (lists become tuples, numbers the field's kind)."""
    if name in ("spacing", "patch"):
        kind = float if name == "spacing" else int
        if isinstance(value, str) or len(value) != 3:
            raise ValueError(f"{name} must be three numbers (z, y, x), not {value!r}")
        return tuple(kind(part) for part in value)
    if name in ("structures", "values"):
        return tuple(value)
    if name in ("batch", "steps", "validate_every", "seed"):
        return int(value)
    if name in ("learning_rate", "weight_decay", "overlap"):
        return float(value)
    return dict(value) if name == "network_args" else value


def _sha256(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
