"""The plan: every decision of a training that its result depends on, as one readable JSON document."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self, get_args

from catalog.labelset import LabelSet
from datamodules.errors import DataError
from datamodules.fingerprint import Fingerprint

__all__ = ["Normalization", "Plan", "Task"]

Normalization = Literal["zscore", "percentile", "ct"]
Task = Literal["segmentation", "vista3d", "classification"]
Precision = Literal["auto", "bf16", "32"]

PREPARATION = ("spacing", "structures", "values", "channels", "normalization")
"""What a prepared volume depends on; what ``ct`` goes by is put in when it is read (``prepare.by_plan``)."""

DIVISOR = 8  # the default network halves its grid at most three times
LARGEST_PATCH = 96
SMALL_UNET = {"channels": [32, 32, 64, 128], "strides": [2, 2, 2], "num_res_units": 1, "norm": "INSTANCE"}


@dataclass(frozen=True)
class Plan:
    """One training's decisions.

    ``spacing`` is in mm and ``patch`` in voxels, both (z, y, x) of the canonical orientation (see ``prepare``); a patch of one
    voxel in z makes everything two-dimensional. ``structures[k]`` is class ``k + 1`` of the network and voxel value
    ``values[k]`` of a label map; class 0 is background. ``normalization`` is one a channel, and so are ``intensities``, what
    ``ct`` goes by: (low, high, mean, standard deviation) of the cohort's foreground voxels; none: -1000…1000 HU.

    ``batch`` patches, over all processes together, make a step, ``steps`` steps a training, ``validate_every`` steps an epoch;
    at each visit a volume gives ``patches`` patches. ``network`` names a class of ``monai.networks.nets`` or one of the user's,
    ``package.module:Class``. ``ema`` is the decay of the averaged weights, which validate and are kept (0: none). After
    ``patience`` epochs without a better validation a training stops (0: never). The ``ensemble`` best epochs' weights answer
    together. ``overlap`` is the share of a window that the next one covers at inference. ``precision`` ``auto`` is bf16 where
    the device computes in it. ``exclusive`` (classification): exactly one structure is present in an image.
    """

    spacing: tuple[float, float, float]
    structures: tuple[str, ...]
    values: tuple[int, ...]
    patch: tuple[int, int, int]
    task: Task = "segmentation"
    channels: tuple[str, ...] = ("image",)
    normalization: tuple[Normalization, ...] = ("zscore",)
    intensities: tuple[tuple[float, float, float, float], ...] = ()
    batch: int = 2
    patches: int = 2
    steps: int = 500
    network: str = "UNet"
    network_args: dict[str, Any] = field(default_factory=lambda: dict(SMALL_UNET))
    deep_supervision: bool = False
    learning_rate: float = 4e-3
    weight_decay: float = 1e-4
    ema: float = 0.0
    augment: bool = True
    overlap: float = 0.25
    validate_every: int = 100
    patience: int = 0
    ensemble: int = 1
    precision: Precision = "auto"
    exclusive: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot train, by the field's name."""
        for name in ("spacing", "patch", "batch", "patches", "steps", "learning_rate", "validate_every", "ensemble"):
            value = getattr(self, name)
            if not all(part > 0 for part in (value if isinstance(value, tuple) else (value,))):
                raise _unfit(f"{name} must be above 0, not {value}")
        if not self.structures or len(self.structures) != len(self.values):
            raise _unfit("structures and values must pair up")
        for name in ("overlap", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise _unfit(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if not self.channels or len(self.normalization) != len(self.channels):
            raise _unfit(f"normalization needs one for each of {len(self.channels)} channels")
        if self.intensities and len(self.intensities) != len(self.channels):
            raise _unfit(f"intensities need one for each of {len(self.channels)} channels")
        for name, kind, given in (
            *(("normalization", Normalization, value) for value in self.normalization),
            ("task", Task, self.task),
            ("precision", Precision, self.precision),
        ):
            if given not in get_args(kind):
                raise _unfit(f"{name} {given!r} is none of {', '.join(get_args(kind))}")

    @property
    def dimensions(self) -> Literal[2, 3]:
        """Of the network."""
        return 2 if self.patch[0] == 1 else 3

    @classmethod
    def make(cls, overrides: Mapping[str, Any], label_set: LabelSet, fingerprint: Fingerprint) -> Self:
        """The default plan for a cohort, with a project's ``overrides`` (field → value) put in.

        Raises DataError that names an override which is no field of a plan, or the label set's to say.
        """
        derived: dict[str, Any] = {
            "spacing": fingerprint.spacing,
            "channels": fingerprint.channels,
            "normalization": ["ct" if modality == "CT" else "zscore" for modality in fingerprint.modalities],
            "intensities": _intensities(fingerprint),
            "structures": [structure.name for structure in label_set.structures],
            "values": [structure.value for structure in label_set.structures],
        }
        if overrides.get("network", "UNet") != "UNet" or overrides.get("task", "segmentation") != "segmentation":
            derived["network_args"] = {}  # the default ones are the small UNet's
        cls.check(overrides)
        spacing = cls.from_dict({**derived, "patch": [1, 1, 1], **overrides}).spacing
        sizes = [n * old / new for n, old, new in zip(fingerprint.shape, fingerprint.spacing, spacing, strict=True)]
        derived["patch"] = [min(LARGEST_PATCH, max(1, int(size / DIVISOR)) * DIVISOR) if size >= 2 else 1 for size in sizes]
        return cls.from_dict({**derived, **overrides})

    @classmethod
    def check(cls, overrides: Mapping[str, Any]) -> None:
        """DataError that names an override which is no field of a plan, or the label set's or the project's to say."""
        cls._check_names(overrides)
        for name in ("structures", "values", "channels"):
            if name in overrides:
                whose = "project" if name == "channels" else "label set"
                raise DataError(f"{name} follows from the {whose}", about="plan", remedy=f"take {name} out of the plan")

    @classmethod
    def _check_names(cls, given: Mapping[str, Any]) -> None:
        known = {item.name for item in fields(cls)}
        unknown = sorted(str(name) for name in given if name not in known)
        if unknown:
            raise DataError(f"unknown key {', '.join(unknown)}", about="plan", remedy=f"a plan has {', '.join(sorted(known))}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON stores it."""
        stored: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return stored

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``; DataError that names an unknown or missing field, or one of the wrong kind.

        One ``normalization`` stands for all channels.
        """
        cls._check_names(stored)
        given = dict(stored)
        if isinstance(given.get("normalization"), str):
            given["normalization"] = [given["normalization"]] * len(given.get("channels", ("image",)))
        try:
            return cls(**{name: _typed(name, value) for name, value in given.items()})
        except (TypeError, ValueError) as problem:
            raise _unfit(str(problem)) from None

    def digest(self) -> str:
        """sha256 of the canonical JSON, in hex."""
        return _sha256(self.to_dict())

    def preparation(self) -> dict[str, Any]:
        """The part of the plan that a prepared volume depends on; two plans that agree on it share their datasets."""
        stored = self.to_dict()
        return {name: stored[name] for name in PREPARATION}


def _intensities(fingerprint: Fingerprint) -> list[tuple[float, ...]]:
    """What ``ct`` goes by; nothing where no channel is CT, so that a new label does not prepare all cases anew."""
    if "CT" not in fingerprint.modalities:
        return []
    measured = zip(fingerprint.modalities, fingerprint.intensities, strict=False)
    return [values if modality == "CT" else (0.0, 0.0, 0.0, 1.0) for modality, values in measured]


_COUNTS = ("batch", "patches", "steps", "validate_every", "patience", "ensemble", "seed")
_SHARES = ("learning_rate", "weight_decay", "overlap", "ema")
_SWITCHES = ("augment", "deep_supervision", "exclusive")


def _typed(name: str, value: Any) -> Any:
    """``value`` as the field ``name`` holds it (lists become tuples, numbers the field's kind)."""
    if name in ("spacing", "patch"):
        kind = float if name == "spacing" else int
        if isinstance(value, str) or len(value) != 3:
            raise ValueError(f"{name} must be three numbers (z, y, x), not {value!r}")
        return tuple(kind(part) for part in value)
    if name in ("structures", "values", "channels", "normalization"):
        return tuple(value)
    if name == "intensities":
        if any(len(channel) != 4 for channel in value):
            raise ValueError("intensities must be four numbers (low, high, mean, standard deviation) a channel")
        return tuple(tuple(float(part) for part in channel) for channel in value)
    if name in _COUNTS:
        if isinstance(value, bool) or int(value) != float(value):
            raise ValueError(f"{name} must be a whole number, not {value!r}")
        return int(value)
    if name == "network" and not isinstance(value, str):
        raise ValueError(f"network must be a name, not {value!r}")
    if name in _SHARES:
        return float(value)
    if name in _SWITCHES:
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, not {value!r}")
        return value
    return dict(value) if name == "network_args" else value


def _unfit(problem: str) -> DataError:
    return DataError(problem, about="plan", remedy="mend the plan (in the project file, the --config file or --set)")


def _sha256(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
