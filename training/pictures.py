"""Slices to look at: an image in grey, the label's outline dashed, the prediction's solid, a colour a structure."""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from catalog.labelset import LabelSet
from datamodules.sample import Sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["as_data_uri", "slices", "worst_slice"]

SHOWN = 3
CHANNELS = 2
"""Rows of a picture at most, a channel each."""


def slices(
    sample: Sample, predicted: torch.Tensor, labels: LabelSet, spacing: Sequence[float], at: Sequence[int] | None = None
) -> "Figure":
    """Axial slices ``at`` (default: that with most label and those an eighth of the volume below and above) of a case.

    ``predicted`` is (D, H, W) classes; ``spacing`` is in mm (z, y, x).
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    mask, depth = sample.mask, len(sample.mask)
    if at is None:
        most, step = int(mask.flatten(1).count_nonzero(1).argmax()), max(1, depth // 8)
        first = min(max(most - step, 0), max(0, depth - 1 - 2 * step))
        at = range(first, depth, step)[:SHOWN]
    image = sample.normalised()[:CHANNELS].cpu()
    aspect = spacing[1] / spacing[2]
    height = 4 * aspect * mask.shape[1] / mask.shape[2]
    figure = Figure(figsize=(4 * len(at), height * len(image) + 0.9), layout="constrained")
    axes = figure.subplots(len(image), len(at), squeeze=False)
    for channel, row in zip(image, axes, strict=True):
        for place, index in zip(row, at, strict=True):
            place.imshow(channel[index].numpy(), cmap="gray", aspect=aspect)
            place.set(title=f"slice {index + 1} of {depth}", xticks=[], yticks=[])
            _outline(place, mask[index].cpu(), labels, "dashed")
            _outline(place, predicted[index].cpu(), labels, "solid")
    handles = [Line2D([], [], color=_color(labels, i), label=s.name) for i, s in enumerate(labels.structures)]
    styles = [Line2D([], [], color="gray", linestyle=style, label=name) for style, name in _STYLES]
    figure.legend(handles=[*styles, *handles], loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return figure


_STYLES = (("dashed", "label"), ("solid", "prediction"))


def worst_slice(predicted: torch.Tensor, mask: torch.Tensor) -> int:
    """The slice of (D, H, W) classes in which most voxels differ."""
    return int((predicted != mask).flatten(1).count_nonzero(1).argmax())


def as_data_uri(figure: "Figure") -> str:
    """The picture as a PNG within an address, for a page that needs no other file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _outline(axes: "Axes", classes: torch.Tensor, labels: LabelSet, style: str) -> None:
    for index in range(len(labels.structures)):
        drawn = classes == index + 1
        if drawn.any() and min(drawn.shape) > 1:
            axes.contour(drawn.numpy().astype(float), [0.5], colors=[_color(labels, index)], linestyles=style, linewidths=1.2)


def _color(labels: LabelSet, index: int) -> tuple[float, float, float]:
    red, green, blue = labels.structures[index].color
    return red / 255, green / 255, blue / 255
