"""What answers a volume with a label map: the trained network, or a threshold that needs no training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import highdicom as hd
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from datamodules.plan import Plan
from datamodules.prepare import Prepared, prepare, restore
from training.errors import TrainingError
from training.frozen import FrozenNet
from training.network import device
from training.windows import windows

__all__ = ["NetPredictor", "Point", "Prediction", "Predictor", "Prompts", "ThresholdPredictor", "asked_classes"]

NEIGHBOURHOOD = 2  # voxels of the plan's grid around the predicted foreground that the entropy is averaged over
SLAB = 2**24  # scores of a whole volume that are looked at in one go


class Point(NamedTuple):
    """A click at (x, y, z) in LPS mm, inside ``structure`` (``positive``) or outside it."""

    x: float
    y: float
    z: float
    structure: str
    positive: bool = True


@dataclass(frozen=True)
class Prompts:
    """What is asked for: ``classes`` are names of structures (none: all), ``points`` are for models that take clicks."""

    classes: tuple[str, ...] = ()
    points: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """An answer on the asked volume's grid.

    ``mask`` is a uint8 label map (the label set's voxel values). ``entropy`` is the predictive entropy in nats, averaged
    over the predicted foreground and two voxels around it, over the whole volume where nothing was found. ``uncertainty``
    is the entropy voxel by voxel, float32. ``volumes_ml`` is each asked structure's volume in millilitres. ``disagreement`` is
    the mutual information between the answer and which of several members gave it (Houlsby et al., 2011), in nats, averaged
    like ``entropy``; None where one network answered once. What windows disagree in where they overlap is part of it.
    ``disagreement_map`` is the same voxel by voxel, float32.
    """

    mask: hd.Volume
    entropy: float
    uncertainty: hd.Volume | None
    volumes_ml: dict[str, float]
    disagreement: float | None = None
    disagreement_map: hd.Volume | None = None


class Predictor(Protocol):
    """Anything that segments one volume (three axes, LPS mm), or the channels of one, in order and on one grid."""

    def predict(self, image: hd.Volume | Sequence[hd.Volume], prompts: Prompts, *, uncertainty: bool = False) -> Prediction:
        """Segment ``image``; TrainingError names a prompt that cannot be met."""


class NetPredictor:
    """Trained networks with their plan, answering together by overlapping windows; on the GPU where there is one, end to end.

    ``nets`` are one network or the members of an ensemble (a run's best epochs). With ``dropout_passes`` each answers so often
    with its dropout at work (Gal and Ghahramani, ICML 2016), by a fixed seed. Several answers are averaged as probabilities,
    and what they disagree in is told (``Prediction.disagreement``): all in one pass over the volume.
    """

    def __init__(self, nets: nn.Module | Sequence[nn.Module], plan: Plan, *, dropout_passes: int = 0) -> None:
        self.plan, self._windows = plan, windows(plan)
        self._nets = [FrozenNet(net, plan) for net in ([nets] if isinstance(nets, nn.Module) else nets)]
        self._members: list[Callable[[torch.Tensor], torch.Tensor]] = list(self._nets)
        if dropout_passes:
            if not all(net.has_dropout for net in self._nets):
                remedy = "train a network with dropout (network_args), or leave dropout_passes out"
                raise TrainingError("the network has no dropout", about=plan.network, remedy=remedy)
            seeds = range(plan.seed, plan.seed + dropout_passes)
            self._members = [partial(net.sample, seed=seed) for net in self._nets for seed in seeds]

    def predict(self, image: hd.Volume | Sequence[hd.Volume], prompts: Prompts, *, uncertainty: bool = False) -> Prediction:
        """Segment ``image``, a volume or one a channel on one grid; see Prediction."""
        asked = self._asked(prompts)
        with torch.inference_mode():
            prepared = prepare(image, self.plan, device=device())
            said = self._refined(self._said(prepared.image[None]), prepared, prompts)
            found = _found(said, several=len(self._members) > 1)
            near = _near(found.classes > 0)
            classes = restore(found.classes, prepared)
            unsure, *apart = (restore(part, prepared) if uncertainty else None for part in found.maps)
            entropy, *disagreement = (float(part[near].double().mean()) for part in found.maps)
        values = {name: value for name, value in zip(self.plan.structures, self.plan.values, strict=True) if name in asked}
        mask = _mapped(classes, np.array([0, *(values.get(name, 0) for name in self.plan.structures)], np.uint8))
        return Prediction(mask, entropy, unsure, _volumes(mask, values), *disagreement, *apart)

    def _said(self, image: torch.Tensor) -> torch.Tensor:
        """(1, C, D, H, W) → (K, D, H, W) logits, of several members (K + 1, D, H, W) as ``_together``."""
        ask = self._together if len(self._members) > 1 else self._members[0]
        said: torch.Tensor = self._windows(image, ask)[0]
        if not bool(said.sum().isfinite()) and sum(net.widen() for net in self._nets):
            said = self._windows(image, ask)[0]
        return said

    def _asked(self, prompts: Prompts) -> tuple[str, ...]:
        """The structures that are asked for; TrainingError for a prompt that cannot be met."""
        return _asked(prompts, self.plan.structures)

    def _refined(self, said: torch.Tensor, prepared: Prepared, prompts: Prompts) -> torch.Tensor:
        """What ``_said`` gave, as a model that takes clicks would change it."""
        return said

    def _together(self, window: torch.Tensor) -> torch.Tensor:
        """(B, C, *patch) → (B, K + 1, *patch): the mean probabilities, and the mean of the members' entropies."""
        total = torch.zeros((), device=window.device)
        for member in self._members:
            p = member(window).softmax(1)
            total = total + torch.cat([p, torch.special.entr(p).sum(1, keepdim=True)], 1)
        return total / len(self._members)


@dataclass(frozen=True)
class _Found:
    """On the plan's grid, (D, H, W): uint8 ``classes``, and float32 ``maps``, the entropy and, of several members, what they
    disagree in."""

    classes: torch.Tensor
    maps: tuple[torch.Tensor, ...]


def _found(said: torch.Tensor, *, several: bool) -> _Found:
    """Of ``NetPredictor._said``, slab by slab along D: a large volume's numbers are never held twice."""
    slabs = []
    for part in said.split(max(1, SLAB * said.shape[1] // said.numel()), 1):
        p = part[:-1] if several else part.softmax(0)
        entropy = torch.special.entr(p).sum(0).clamp_min(0)
        maps = (entropy, (entropy - part[-1]).clamp_min(0)) if several else (entropy,)
        slabs.append((p.argmax(0).to(torch.uint8), *maps))
    classes, *joined = (torch.cat(parts) for parts in zip(*slabs, strict=True))
    return _Found(classes, tuple(joined))


class ThresholdPredictor:
    """One structure where the image is above a value: a stand-in for tests and trials that passes the predictor's tests."""

    def __init__(self, structure: str, value: int, *, above: float) -> None:
        self._structure, self._value, self._above = structure, value, above

    def predict(self, image: hd.Volume | Sequence[hd.Volume], prompts: Prompts, *, uncertainty: bool = False) -> Prediction:
        """Segment ``image``, of one channel; the threshold is certain, so the entropy is 0."""
        _asked(prompts, (self._structure,))
        channels = [image] if isinstance(image, hd.Volume) else list(image)
        if len(channels) != 1:
            raise TrainingError(f"{len(channels)} images for 1 channel", remedy="give one volume")
        (image,) = channels
        mask = image.with_array(np.where(image.array > self._above, self._value, 0).astype(np.uint8))
        unsure = image.with_array(np.zeros(image.spatial_shape, np.float32)) if uncertainty else None
        return Prediction(mask, 0.0, unsure, _volumes(mask, {self._structure: self._value}))


def _asked(prompts: Prompts, structures: Sequence[str]) -> tuple[str, ...]:
    if prompts.points:
        raise TrainingError("this model takes no points", remedy="leave prompts.points out")
    return asked_classes(prompts, structures)


def asked_classes(prompts: Prompts, structures: Sequence[str]) -> tuple[str, ...]:
    """The names that ``prompts`` ask for, all where it names none; TrainingError for one that is none of ``structures``."""
    unknown = [name for name in prompts.classes if name not in structures]
    if unknown:
        raise TrainingError(f"no class {', '.join(unknown)}", remedy=f"this model knows {', '.join(structures)}")
    return prompts.classes or tuple(structures)


def _mapped(classes: hd.Volume, values: np.ndarray) -> hd.Volume:
    return classes.with_array(values[classes.array])


def _near(foreground: torch.Tensor) -> torch.Tensor:
    """(D, H, W) bool: ``foreground`` and NEIGHBOURHOOD voxels around it; everything where there is none."""
    if not foreground.any():
        return torch.ones_like(foreground)
    near = foreground[None, None].float()
    for axis in range(3):  # one after the other: 15 comparisons a voxel instead of 125
        margin = [NEIGHBOURHOOD * (axis == other) for other in range(3)]
        near = functional.max_pool3d(near, [2 * side + 1 for side in margin], stride=1, padding=margin)
    return near[0, 0] > 0


def _volumes(mask: hd.Volume, values: dict[str, int]) -> dict[str, float]:
    counts = np.bincount(mask.array.ravel(), minlength=256)
    return {name: float(counts[value]) * mask.voxel_volume / 1000 for name, value in values.items()}
