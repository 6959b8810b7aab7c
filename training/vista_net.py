"""VISTA3D's network asked about a plan's structures, by class and by clicks.

VISTA3D: A Unified Segmentation Foundation Model For 3D Medical Imaging, He et al., CVPR 2025.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.apps.vista3d.sampler import SPECIAL_INDEX
from monai.networks.nets.vista3d import vista3d132
from torch import nn

from datamodules.plan import Plan
from training.errors import TrainingError
from training.vista_classes import class_indices

__all__ = ["NOT_A_POINT", "Features", "Vista3D"]

EMBED = 48  # of the published weights
DIVISOR = 16  # the encoder halves its grid four times
NOT_A_POINT = -1  # fills up a row of clicks
WINDOW = (-963.8247715525971, 1053.678477684517)  # Hounsfield units that become 0…1: the bundle's configs/inference.json
HU = 1000.0  # what 1 stands for in a plan's ``ct`` without intensities
UNUSED = ("mask_downsample", "class_embeddings")  # of the point head: published, never computed with


@dataclass(frozen=True)
class Features:
    """What the encoder made of (B, C, D, H, W) patches, for any number of prompts: (B, embed, …) for clicks and for classes,
    in the network's own orientation; None where they were not asked for."""

    clicks: torch.Tensor | None
    classes: torch.Tensor | None


class Vista3D(nn.Module):
    """MONAI's ``vista3d132`` with its parameters under the published names, seen as one more network of ours.

    Called with (B, C, D, H, W) prepared images it prompts by every structure's class and answers (B, 1 + S, D, H, W) logits;
    the background's are 0, so that argmax gives a structure only where its probability exceeds 0.5, and that of the largest.

    The weights were trained on arrays whose axes run to the right, front and head, CT between two fixed Hounsfield values as
    0…1; an image of the plan (head, posterior, left; normalised) is brought to that and the logits back.
    ``network_args`` of the plan: ``embed`` (48: the published width), ``classes`` (see ``class_indices``), ``freeze``
    ("encoder": its parameters stay), ``weights_sha256`` (see ``load_weights``). Raises TrainingError for others.
    """

    indices: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        _check(plan)
        try:
            built = vista3d132(plan.network_args.get("embed", EMBED), len(plan.channels))
        except (TypeError, ValueError) as problem:
            raise _unfit(f"embed does not fit: {problem}", f"leave it out for {EMBED}, or give a multiple of 8") from None
        self.image_encoder, self.class_head, self.point_head = built.image_encoder, built.class_head, built.point_head
        self.register_buffer("indices", torch.tensor(class_indices(plan))[:, None], persistent=False)
        scale, shift = zip(*(_intensity(plan, channel) for channel in range(len(plan.channels))), strict=True)
        self.register_buffer("scale", torch.tensor(scale).view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("shift", torch.tensor(shift).view(-1, 1, 1, 1), persistent=False)
        for name in UNUSED:
            getattr(self.point_head, name).requires_grad_(False)
        if plan.network_args.get("freeze"):
            self.image_encoder.encoder.requires_grad_(False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) → (B, 1 + S, D, H, W) logits by class prompts."""
        logits = self.by_class(self.encode(image, clicks=False), range(len(self.indices)))
        return torch.cat([torch.zeros_like(logits[:, :1]), logits], 1)

    def encode(self, image: torch.Tensor, *, clicks: bool = True, classes: bool = True) -> Features:
        """Run the encoder once, with the decoder of each kind of prompt that will follow."""
        inputs = _to_ras(image * self.scale + self.shift)
        for_clicks, for_classes = self.image_encoder(inputs, with_point=clicks, with_label=classes)
        return Features(for_clicks if clicks else None, for_classes if classes else None)

    def by_class(self, features: Features, structures: Sequence[int]) -> torch.Tensor:
        """(B, n, D, H, W) logits of the ``structures`` (0 is the plan's first)."""
        logits, _ = self.class_head(features.classes, self.indices[list(structures)])
        return _from_ras(logits.transpose(0, 1))

    def by_clicks(
        self, features: Features, structures: Sequence[int], points: torch.Tensor, inside: torch.Tensor
    ) -> torch.Tensor:
        """(n, 1, D, H, W) logits, an object a row: ``points`` (n, N, 3) are voxels (z, y, x) of the one encoded patch, and
        ``inside`` (n, N) is 1 in the object, 0 outside it and NOT_A_POINT where a row has fewer clicks."""
        assert features.clicks is not None and len(features.clicks) == 1
        height, width = features.clicks.shape[-2], features.clicks.shape[-3]  # (R, A, S): our x, y, z
        z, y, x = points.float().unbind(-1)
        ras = torch.stack([width - 1 - x, height - 1 - y, z], -1)
        prompts = self.indices[list(structures)]
        special = torch.isin(prompts, prompts.new_tensor(SPECIAL_INDEX)) & (inside != NOT_A_POINT)
        return _from_ras(self.point_head(features.clicks, ras, inside + 2 * special, class_vector=prompts))


def _to_ras(image: torch.Tensor) -> torch.Tensor:
    """(…, head, posterior, left) → (…, right, anterior, head)."""
    return image.transpose(-3, -1).flip((-3, -2))


def _from_ras(image: torch.Tensor) -> torch.Tensor:
    return image.flip((-3, -2)).transpose(-3, -1)


def _intensity(plan: Plan, channel: int) -> tuple[float, float]:
    """(scale, shift) from the plan's normalised values to those that the weights know; CT alone has ones to go back to."""
    if plan.normalization[channel] != "ct":
        return 1.0, 0.0
    mean, divisor = plan.intensities[channel][2:] if plan.intensities else (0.0, HU)
    extent = WINDOW[1] - WINDOW[0]
    return divisor / extent, (mean - WINDOW[0]) / extent


def _check(plan: Plan) -> None:
    """TrainingError for a plan that VISTA3D cannot follow."""
    if unknown := sorted(set(plan.network_args) - {"embed", "classes", "freeze", "weights_sha256"}):
        raise _unfit(f"VISTA3D has no {', '.join(unknown)}", "it takes embed, classes, freeze and weights_sha256")
    if plan.network_args.get("freeze", "") not in ("", "encoder"):
        raise _unfit(f"freeze is {plan.network_args['freeze']!r}", "only the encoder can be frozen")
    if any(size % DIVISOR for size in plan.patch) or plan.patch == (DIVISOR,) * 3:
        remedy = f"give multiples of {DIVISOR}, one of them at least {2 * DIVISOR}"
        raise _unfit(f"VISTA3D takes no patch of {' × '.join(map(str, plan.patch))} voxels", remedy)


def _unfit(problem: str, remedy: str) -> TrainingError:
    return TrainingError(problem, about="plan", remedy=remedy)
