"""What answers a volume with a label map: the trained network, or a threshold that needs no training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import highdicom as hd
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from datamodules.plan import Plan
from datamodules.prepare import Prepared, prepare, restore
from training.errors import TrainingError
from training.network import autocast, device, logits
from training.windows import windows

__all__ = ["NetPredictor", "Point", "Prediction", "Predictor", "Prompts", "ThresholdPredictor", "asked_classes"]

NEIGHBOURHOOD = 2  # voxels of the plan's grid around the predicted foreground that the entropy is averaged over


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
    like ``entropy``; None where one network answered once.
    """

    mask: hd.Volume
    entropy: float
    uncertainty: hd.Volume | None
    volumes_ml: dict[str, float]
    disagreement: float | None = None


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
        self.plan, self._passes = plan, dropout_passes
        self._device = device()
        self._nets = [net.to(self._device).eval() for net in ([nets] if isinstance(nets, nn.Module) else nets)]
        if dropout_passes and not _let_dropout(self._nets):
            remedy = "train a network with dropout (network_args), or leave dropout_passes out"
            raise TrainingError("the network has no dropout", about=plan.network, remedy=remedy)
        self._windows = windows(plan)

    def predict(self, image: hd.Volume | Sequence[hd.Volume], prompts: Prompts, *, uncertainty: bool = False) -> Prediction:
        """Segment ``image``, a volume or one a channel on one grid; see Prediction."""
        asked = self._asked(prompts)
        prepared = prepare(image, self.plan, device=self._device)
        several = len(self._nets) * max(1, self._passes) > 1
        with torch.inference_mode(), torch.random.fork_rng(), autocast(self.plan, self._device):
            torch.manual_seed(self.plan.seed)
            said = self._windows(prepared.image[None], self._together if several else self._one)[0].float()
            p, members = (said[:-1], said[-1]) if several else (said.softmax(0), None)
            p = self._refined(p, prepared, prompts)
            entropy = (-p * p.clamp_min(1e-12).log()).sum(0).clamp_min(0)
            classes = p.argmax(0).to(torch.uint8)
            near = _near(classes > 0)
            unsure = restore(entropy, prepared) if uncertainty else None
            mask = restore(classes, prepared)
        values = np.array([0, *(v if n in asked else 0 for n, v in self._pairs())], np.uint8)
        mask = _mapped(mask, values)
        volumes = _volumes(mask, {name: value for name, value in self._pairs() if name in asked})
        disagreement = None if members is None else float((entropy - members).clamp_min(0)[near].mean())
        return Prediction(mask, float(entropy[near].mean()), unsure, volumes, disagreement)

    def _asked(self, prompts: Prompts) -> tuple[str, ...]:
        """The structures that are asked for; TrainingError for a prompt that cannot be met."""
        return _asked(prompts, self.plan.structures)

    def _refined(self, p: torch.Tensor, prepared: Prepared, prompts: Prompts) -> torch.Tensor:
        """(K, D, H, W) probabilities, as a model that takes clicks would change them."""
        return p

    def _one(self, window: torch.Tensor) -> torch.Tensor:
        return logits(self._nets[0], window, self.plan)

    def _together(self, window: torch.Tensor) -> torch.Tensor:
        """(B, C, *patch) → (B, K + 1, *patch): the mean probabilities, and the mean of the members' entropies."""
        mean, entropy, number = 0.0, 0.0, 0
        for net in self._nets:
            for _ in range(max(1, self._passes)):
                log_p = logits(net, window, self.plan).float().log_softmax(1)
                mean, entropy, number = mean + log_p.exp(), entropy - (log_p.exp() * log_p).sum(1, keepdim=True), number + 1
        return torch.cat([torch.as_tensor(mean), torch.as_tensor(entropy)], 1) / number

    def _pairs(self) -> list[tuple[str, int]]:
        return list(zip(self.plan.structures, self.plan.values, strict=True))


def _let_dropout(nets: Sequence[nn.Module]) -> bool:
    """Put the networks' dropout to work; whether there is any."""
    found = [part for net in nets for part in net.modules() if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0]
    for part in found:
        part.train()
    return bool(found)


class ThresholdPredictor:
    """One structure where the image is above a value: a stand-in for tests and trials that passes the predictor's tests."""

    def __init__(self, structure: str, value: int, *, above: float) -> None:
        self._structure, self._value, self._above = structure, value, above

    def predict(self, image: hd.Volume | Sequence[hd.Volume], prompts: Prompts, *, uncertainty: bool = False) -> Prediction:
        """Segment ``image``, or the first channel of several; the threshold is certain, so the entropy is 0."""
        image = image if isinstance(image, hd.Volume) else image[0]
        _asked(prompts, (self._structure,))
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
    width = 2 * NEIGHBOURHOOD + 1
    return functional.max_pool3d(foreground[None, None].float(), width, stride=1, padding=NEIGHBOURHOOD)[0, 0] > 0


def _volumes(mask: hd.Volume, values: dict[str, int]) -> dict[str, float]:
    counts = np.bincount(mask.array.ravel(), minlength=256)
    return {name: float(counts[value]) * mask.voxel_volume / 1000 for name, value in values.items()}
