"""What answers a volume with a label map: the trained network, or a threshold that needs no training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import highdicom as hd
import numpy as np
import torch
from monai.inferers.inferer import SlidingWindowInfererAdapt
from torch import nn
from torch.nn import functional

from datamodules.plan import Plan
from datamodules.prepare import prepare, restore
from training.errors import TrainingError
from training.network import autocast, device

__all__ = ["NetPredictor", "Prediction", "Predictor", "Prompts", "ThresholdPredictor"]

NEIGHBOURHOOD = 2  # voxels of the plan's grid around the predicted foreground that the entropy is averaged over


@dataclass(frozen=True)
class Prompts:
    """What is asked for: ``classes`` are names of structures (none: all), ``points`` are for models that take clicks."""

    classes: tuple[str, ...] = ()
    points: tuple[tuple[float, float, float, str], ...] = ()


@dataclass(frozen=True)
class Prediction:
    """An answer on the asked volume's grid.

    ``mask`` is a uint8 label map (the label set's voxel values). ``entropy`` is the predictive entropy in nats, averaged
    over the predicted foreground and two voxels around it, over the whole volume where nothing was found. ``uncertainty``
    is the entropy voxel by voxel, float32. ``volumes_ml`` is each asked structure's volume in millilitres.
    """

    mask: hd.Volume
    entropy: float
    uncertainty: hd.Volume | None
    volumes_ml: dict[str, float]


class Predictor(Protocol):
    """Anything that segments one volume (three axes, LPS mm)."""

    def predict(self, image: hd.Volume, prompts: Prompts, *, uncertainty: bool = False) -> Prediction:
        """Segment ``image``; TrainingError names a prompt that cannot be met."""


class NetPredictor:
    """A trained network with its plan, by overlapping windows; on the GPU where there is one."""

    def __init__(self, net: nn.Module, plan: Plan) -> None:
        self.plan = plan
        self._device = device()
        self._net = net.to(self._device).eval()
        self._windows = SlidingWindowInfererAdapt(
            roi_size=plan.patch, sw_batch_size=plan.batch, overlap=plan.overlap, mode="gaussian", padding_mode="replicate"
        )

    def predict(self, image: hd.Volume, prompts: Prompts, *, uncertainty: bool = False) -> Prediction:
        """Segment ``image``; see Prediction."""
        asked = _asked(prompts, self.plan.structures)
        prepared = prepare(image, self.plan)
        with torch.inference_mode(), autocast(self.plan, self._device):
            logits = self._windows(prepared.image[None].to(self._device), self._net)[0].float().cpu()
        entropy = -(logits.softmax(0) * logits.log_softmax(0)).sum(0)
        values = np.array([0, *(v if n in asked else 0 for n, v in self._pairs())], np.uint8)
        mask = _mapped(restore(logits, prepared), values)
        score = _mean_entropy(entropy, logits.argmax(0) > 0)
        volumes = _volumes(mask, {name: value for name, value in self._pairs() if name in asked})
        return Prediction(mask, score, restore(entropy, prepared) if uncertainty else None, volumes)

    def _pairs(self) -> list[tuple[str, int]]:
        return list(zip(self.plan.structures, self.plan.values, strict=True))


class ThresholdPredictor:
    """One structure where the image is above a value: a stand-in for tests and trials that passes the predictor's tests."""

    def __init__(self, structure: str, value: int, *, above: float) -> None:
        self._structure, self._value, self._above = structure, value, above

    def predict(self, image: hd.Volume, prompts: Prompts, *, uncertainty: bool = False) -> Prediction:
        """Segment ``image``; the threshold is certain, so the entropy is 0."""
        _asked(prompts, (self._structure,))
        mask = image.with_array(np.where(image.array > self._above, self._value, 0).astype(np.uint8))
        unsure = image.with_array(np.zeros(image.spatial_shape, np.float32)) if uncertainty else None
        return Prediction(mask, 0.0, unsure, _volumes(mask, {self._structure: self._value}))


def _asked(prompts: Prompts, structures: Sequence[str]) -> tuple[str, ...]:
    if prompts.points:
        raise TrainingError("this model takes no points", remedy="leave prompts.points out")
    unknown = [name for name in prompts.classes if name not in structures]
    if unknown:
        raise TrainingError(f"no class {', '.join(unknown)}", remedy=f"this model knows {', '.join(structures)}")
    return prompts.classes or tuple(structures)


def _mapped(classes: hd.Volume, values: np.ndarray) -> hd.Volume:
    return classes.with_array(values[classes.array])


def _mean_entropy(entropy: torch.Tensor, foreground: torch.Tensor) -> float:
    if not foreground.any():
        return float(entropy.mean())
    width = 2 * NEIGHBOURHOOD + 1
    near = functional.max_pool3d(foreground[None, None].float(), width, stride=1, padding=NEIGHBOURHOOD)[0, 0] > 0
    return float(entropy[near].mean())


def _volumes(mask: hd.Volume, values: dict[str, int]) -> dict[str, float]:
    counts = np.bincount(mask.array.ravel(), minlength=256)
    return {name: float(counts[value]) * mask.voxel_volume / 1000 for name, value in values.items()}
