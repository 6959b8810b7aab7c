"""Dice and cross-entropy for labels that need not cover every structure, one batch however many processes share it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import distributed
from torch.nn import functional

__all__ = ["masked_loss", "processes", "supervised_loss", "total", "volume_loss"]

SMOOTH = 1.0  # voxels added above and below in the soft Dice: an empty structure that is predicted empty costs nothing
SLAB = 2**24  # scores of a whole volume that are looked at in one go


@dataclass(frozen=True)
class _Sums:
    """What the loss is made of, and what parts of a batch can add up: ``entropy`` () over the voxels, ``both``, ``sizes`` and
    ``asked`` (S,) of each structure: the soft intersection, the two volumes together, and the cases that it is annotated in."""

    entropy: torch.Tensor
    both: torch.Tensor
    sizes: torch.Tensor
    asked: torch.Tensor

    def loss(self, voxels: int) -> torch.Tensor:
        dice = 1 - (2 * self.both + SMOOTH) / (self.sizes + SMOOTH)
        asked = self.asked > 0
        return self.entropy / voxels + (dice * asked).sum() / asked.sum().clamp_min(1)


def masked_loss(logits: torch.Tensor, mask: torch.Tensor, annotated: torch.Tensor, *, across: bool = False) -> torch.Tensor:
    """Cross-entropy plus soft Dice over the batch.

    ``logits`` (B, 1 + S, D, H, W), ``mask`` (B, D, H, W) classes, ``annotated`` (B, S) bool. Where a case's label says nothing
    of a structure, its probability is added to the background's and its voxels count as background (the marginal loss of Shi
    et al., Medical Image Analysis 2021): background or that structure, both are right, and nothing is learned of which.

    ``across``: the batch is spread evenly over the processes of ``torch.distributed``. The Dice is then the whole batch's, and
    the mean of the processes' gradients (what DDP takes) is the gradient that one process would have.
    """
    sums = _sums(logits, mask, annotated)
    return (_shared(sums) if across else sums).loss(mask.numel())


def supervised_loss(
    outputs: Sequence[torch.Tensor], mask: torch.Tensor, annotated: torch.Tensor, *, across: bool = False
) -> torch.Tensor:
    """``masked_loss`` of each of a network's outputs, the finest first, at weights 1, ½, ¼ … that add up to 1.

    An output on a coarser grid is compared with the nearest voxels of ``mask``.
    """
    weights = [0.5**depth for depth in range(len(outputs))]
    losses = [masked_loss(output, _resized(mask, output.shape[2:]), annotated, across=across) for output in outputs]
    return torch.stack([w / sum(weights) * loss for w, loss in zip(weights, losses, strict=True)]).sum()


def volume_loss(logits: torch.Tensor, mask: torch.Tensor, annotated: torch.Tensor) -> torch.Tensor:
    """``masked_loss`` of one whole case, slab by slab along D: never a second copy of all its scores. For validation."""
    thick = max(1, SLAB * logits.shape[2] // logits.numel())
    parts = [_sums(part, slab, annotated) for part, slab in zip(logits.split(thick, 2), mask.split(thick, 1), strict=True)]
    entropy, both, sizes = (torch.stack([getattr(p, name) for p in parts]).sum(0) for name in ("entropy", "both", "sizes"))
    return _Sums(entropy, both, sizes, parts[0].asked).loss(mask.numel())


def total(own: torch.Tensor) -> torch.Tensor:
    """``own`` added up over the processes of ``torch.distributed``, without a gradient; a copy where there is one process."""
    everywhere = own.detach().clone()
    if processes() > 1:
        distributed.all_reduce(everywhere)
    return everywhere


def processes() -> int:
    """How many share each batch."""
    return int(distributed.get_world_size()) if distributed.is_available() and distributed.is_initialized() else 1


def _sums(logits: torch.Tensor, mask: torch.Tensor, annotated: torch.Tensor) -> _Sums:
    log_p = _merged(logits.float().log_softmax(1), annotated)
    known = torch.cat([annotated.new_ones(len(annotated), 1), annotated], 1)
    target = torch.where(known.gather(1, mask.flatten(1).long()).view_as(mask), mask, 0).long()
    classes = torch.arange(1, log_p.shape[1], device=mask.device).view(-1, 1, 1, 1)
    truth = target[:, None] == classes
    p = log_p[:, 1:].exp() * annotated[:, :, None, None, None]
    both, sizes = (p * truth).sum((0, 2, 3, 4)), p.sum((0, 2, 3, 4)) + truth.sum((0, 2, 3, 4))
    return _Sums(functional.nll_loss(log_p, target, reduction="sum"), both, sizes, annotated.sum(0).float())


def _merged(log_p: torch.Tensor, annotated: torch.Tensor) -> torch.Tensor:
    """Log probabilities with those of the structures not annotated added to the background's."""
    if log_p.device.type == "cpu" and annotated.all():  # a GPU would have to finish all its work before it can answer
        return log_p
    unknown = ~annotated[:, :, None, None, None]
    rest = log_p[:, 1:].masked_fill(~unknown, -torch.inf)
    background = torch.cat([log_p[:, :1], rest], 1).logsumexp(1, keepdim=True)
    return torch.cat([background, log_p[:, 1:].masked_fill(unknown, -30.0)], 1)


def _shared(sums: _Sums) -> _Sums:
    """The sums over all processes. Each process's own part takes the gradient, once for every process since DDP averages."""
    own = torch.stack([sums.both, sums.sizes, sums.asked])
    scaled = own * processes()
    both, sizes, asked = scaled + (total(own) - scaled).detach()
    return _Sums(sums.entropy, both, sizes, asked)


def _resized(mask: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    if mask.shape[1:] == shape:
        return mask
    return functional.interpolate(mask[:, None], size=list(shape), mode="nearest-exact")[:, 0]
