"""One row of a dataset in memory: a prepared case, as training and evaluation see it."""

from dataclasses import dataclass, replace
from typing import Self

import torch

__all__ = ["Sample"]


@dataclass(frozen=True)
class Sample:
    """A case on the plan's grid, canonical orientation (z, y, x).

    ``image`` is (C, D, H, W), int16 where that holds the values exactly, else float32; ``intensity`` is (C, 5) float32, of
    each channel (scale, low, high, shift, divisor): what the network sees is ``(clamp(image · scale, low, high) - shift) /
    divisor``. ``mask`` is (D, H, W) uint8 classes. ``annotated`` and ``present`` are (structures,) bool: whether the label says
    anything of a structure, and whether it is there. ``centres`` is (n, 4) int32: (class, z, y, x) of voxels of each
    structure, drawn when the dataset was built, for patches to lie around. Tensors may lie on any device, ``centres`` always
    on the CPU.
    """

    case: str
    study_uid: str
    patient_id: str
    label_id: str
    image: torch.Tensor
    intensity: torch.Tensor
    mask: torch.Tensor
    annotated: torch.Tensor
    present: torch.Tensor
    centres: torch.Tensor

    def normalised(self) -> torch.Tensor:
        """What the network sees of it: (C, D, H, W) float32."""
        return normalised(self.image, self.intensity)

    @property
    def nbytes(self) -> int:
        """Of its tensors."""
        return sum(t.nbytes for t in (self.image, self.intensity, self.mask, self.annotated, self.present, self.centres))

    def to(self, device: torch.device) -> Self:
        """The same on ``device``."""
        names = ("image", "intensity", "mask", "annotated", "present")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


def normalised(image: torch.Tensor, intensity: torch.Tensor) -> torch.Tensor:
    """(…, C, D, H, W) stored values and (…, C, 5) ``Sample.intensity`` → float32, normalised."""
    scale, low, high, shift, divisor = (part[..., None, None, None] for part in intensity.unbind(-1))
    return ((image.float() * scale).clamp(low, high) - shift) / divisor
