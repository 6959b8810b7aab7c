"""From a volume as it was stored to what a network sees, and back: the one preprocessing of training and serving.

Canonical orientation is ``HPL``: the array's axes run towards head, posterior and left, as an axial series' (slices, rows,
columns) do. Reorienting only permutes and flips axes, so an oblique series stays oblique. Resampling keeps the outer faces of
the volume: the new grid has the whole number of voxels nearest to the plan's spacing, and voxel *centres* are mapped by
``(i + ½) · old/new - ½`` (PyTorch's ``align_corners=False`` and ``nearest-exact``), so nothing shifts.

A dataset stores what was resampled, and five numbers a channel by which ``sample.normalised`` makes of it what the network
sees; ``prepare`` does both at once. Everything runs on the given device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import highdicom as hd
import numpy as np
import torch
from torch.nn import functional

from datamodules.errors import DataError
from datamodules.plan import Normalization, Plan
from datamodules.sample import Sample, normalised

__all__ = ["CANONICAL", "Prepared", "by_plan", "compact", "intensity", "prepare", "prepare_mask", "resampled", "restore"]

CANONICAL = "HPL"
HOUNSFIELD = (-1000.0, 1000.0)
"""What ``ct`` keeps where the plan has no intensities."""

QUANTILES = (0.005, 0.995)
LOOKED_AT = 2**16
"""Voxels that the step between values is looked for in."""


@dataclass(frozen=True)
class Prepared:
    """``image`` is (C, D, H, W) float32, normalised, in the canonical orientation; the geometries are what restore needs."""

    image: torch.Tensor
    canonical: hd.VolumeGeometry
    original: hd.VolumeGeometry


def prepare(volumes: hd.Volume | Sequence[hd.Volume], plan: Plan, *, device: torch.device | None = None) -> Prepared:
    """Bring an image (three axes, LPS mm, rescaled values), or the channels of one on one grid, into the plan's orientation,
    spacing and intensities, on ``device`` (default: the CPU). DataError where there are not as many as the plan's channels."""
    channels = [volumes] if isinstance(volumes, hd.Volume) else list(volumes)
    image, canonical = resampled(channels, plan, device=device)
    return Prepared(normalised(image, intensity(image, plan)), canonical, channels[0].get_geometry())


def resampled(
    volumes: Sequence[hd.Volume], plan: Plan, *, device: torch.device | None = None
) -> tuple[torch.Tensor, hd.VolumeGeometry]:
    """The channels in canonical orientation at the plan's spacing, (C, D, H, W) float32 in their own units; and the grid before
    resampling, in canonical orientation."""
    if len(volumes) != len(plan.channels):
        problem = f"{len(volumes)} images for {len(plan.channels)} channels ({', '.join(plan.channels)})"
        raise DataError(problem, about="image", remedy="give a volume a channel, in the plan's order")
    turned = [volume.to_patient_orientation(CANONICAL) for volume in volumes]
    grid = turned[0].get_geometry()
    size = _grid(grid, plan)
    arrays = (np.ascontiguousarray(volume.array, dtype=np.float32) for volume in turned)
    return torch.stack([_linear(torch.from_numpy(array).to(device or "cpu"), size) for array in arrays]), grid


def intensity(image: torch.Tensor, plan: Plan) -> torch.Tensor:
    """(C, 5) ``Sample.intensity`` of ``resampled`` channels (scale 1), by ``plan.normalization``, on the image's device.

    ``zscore``: clipped to the 0.5th and 99.5th percentile of this volume, mean 0, standard deviation 1. ``percentile``: those
    percentiles become -1 and 1. ``ct``: clipped to the cohort's percentiles, then the cohort's mean and standard deviation
    (the scheme of nnU-Net, Isensee et al., Nature Methods 2021); without them -1000…1000 HU become -1…1.
    """
    found = [
        _numbers(channel, kind, plan, index)
        for index, (channel, kind) in enumerate(zip(image, plan.normalization, strict=True))
    ]
    return torch.tensor([[1.0, *numbers] for numbers in found], dtype=torch.float32, device=image.device)


def by_plan(sample: Sample, plan: Plan) -> Sample:
    """A stored case with what ``plan`` says of the channels that go by the cohort: the plan may be later than the case."""
    if "ct" not in plan.normalization:
        return sample
    numbers = sample.intensity.clone()
    for index, kind in enumerate(plan.normalization):
        if kind == "ct":
            numbers[index, 1:] = torch.tensor(_cohort(plan, index))
    return replace(sample, intensity=numbers)


def compact(image: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``image`` (C, D, H, W) float32 as int16 with a scale a channel, where that gives every voxel exactly; else as it is.

    ``numbers`` is its ``intensity``, returned with the scales in it.
    """
    scaled, whole = numbers.clone(), []
    for index, channel in enumerate(image):
        scale = _step(channel)
        if scale is None:
            return image, numbers
        whole.append((channel / scale).round().to(torch.int16))
        scaled[index, 0] = scale
    return torch.stack(whole), scaled


def prepare_mask(mask: hd.Volume, plan: Plan) -> torch.Tensor:
    """A label map (voxel values of the label set) as classes, (D, H, W) uint8 on the grid of ``prepare``.

    A value that is none of the plan's becomes background.
    """
    canonical = mask.to_patient_orientation(CANONICAL)
    classes = np.zeros(256, np.uint8)
    classes[list(plan.values)] = np.arange(1, len(plan.values) + 1)
    labels = torch.from_numpy(classes[np.asarray(canonical.array, dtype=np.uint8)])
    return _nearest(labels, _grid(canonical.get_geometry(), plan))


def restore(result: torch.Tensor, prepared: Prepared) -> hd.Volume:
    """Bring what a network said of ``prepared`` back to the original grid: same shape, same affine.

    ``result`` is (D, H, W) of a floating type (linear; an entropy map) or classes of an integer type (up to 255). Of these
    each one's share of a voxel is resampled, linearly, and the largest wins: borders are smoother than those of nearest voxels.
    """
    size = prepared.canonical.spatial_shape
    array = _linear(result.float(), size) if result.is_floating_point() else _smooth(result.to(torch.uint8), size)
    restored = prepared.canonical.with_array(array.cpu().numpy()).match_geometry(prepared.original)
    return prepared.original.with_array(np.ascontiguousarray(restored.array))  # not the affine of two permutations


def _numbers(channel: torch.Tensor, kind: Normalization, plan: Plan, index: int) -> tuple[float, float, float, float]:
    """(low, high, shift, divisor)."""
    if kind == "ct":
        return _cohort(plan, index)
    low, high = _percentiles(channel)
    if kind == "percentile":
        return low, high, (low + high) / 2, max((high - low) / 2, 1e-6)
    return low, high, *_moments(channel, low, high)


def _cohort(plan: Plan, index: int) -> tuple[float, float, float, float]:
    """(low, high, shift, divisor) of a channel that goes by the cohort."""
    if not plan.intensities:
        return *HOUNSFIELD, 0.0, HOUNSFIELD[1]
    low, high, mean, deviation = plan.intensities[index]
    return low, high, mean, max(deviation, 1e-6)


def _percentiles(channel: torch.Tensor) -> tuple[float, float]:
    """The 0.5th and 99.5th, linear between the values beside them."""
    last = channel.numel() - 1
    lower, upper = (share * last for share in QUANTILES)
    ranks = [min(int(place) + more, last) for place in (lower, upper) for more in (0, 1)]
    a, b, c, d = _ranked(channel.flatten(), ranks)
    return a + (b - a) * (lower % 1), c + (d - c) * (upper % 1)


def _ranked(values: torch.Tensor, ranks: list[int]) -> list[float]:
    """The values at ``ranks`` (from 0) of all in order, exactly: NumPy takes a sixth of torch's time, but for a CPU alone."""
    if values.is_cpu:
        parted = np.partition(values.numpy(), ranks)
        return [float(parted[rank]) for rank in ranks]
    return [float(values.kthvalue(rank + 1).values) for rank in ranks]


def _moments(channel: torch.Tensor, low: float, high: float) -> tuple[float, float]:
    """Mean and standard deviation of the clipped voxels. In float32 the sums would depend on the number of threads; a slice at
    a time is all that is held in float64."""
    mean = float(torch.stack([part.clamp(low, high).double().sum() for part in channel]).sum()) / channel.numel()
    squares = torch.stack([(part.clamp(low, high).double() - mean).square().sum() for part in channel])
    return mean, max(float(squares.sum() / channel.numel()) ** 0.5, 1e-6)


def _step(channel: torch.Tensor) -> float | None:
    """What all values are exactly whole multiples of, within int16: 1, or the gap between them; None where nothing is."""
    some = channel.flatten()[:: max(1, channel.numel() // LOOKED_AT)].unique()
    far, gap = float(some.abs().max()), float(some.diff().min()) if len(some) > 1 else 0.0
    gaps = (gap, far / max(1, round(far / gap))) if gap else (far,)  # the far value tells a step more finely than a difference
    for step in (1.0, *(float(np.float32(gap)) for gap in gaps)):
        if step and _stepped(some, step) and _stepped(channel, step):
            return step
    return None


def _stepped(values: torch.Tensor, step: float) -> bool:
    steps = (values / step).round()
    return bool(((steps.abs() <= 32767) & (steps * step == values)).all())


def _grid(geometry: hd.VolumeGeometry, plan: Plan) -> tuple[int, int, int]:
    """The whole number of voxels nearest to the plan's spacing, an axis."""
    sizes = zip(geometry.spatial_shape, geometry.spacing, plan.spacing, strict=True)
    first, second, third = (max(1, round(n * old / new)) for n, old, new in sizes)
    return first, second, third


def _linear(image: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    if tuple(image.shape) == tuple(size):
        return image
    return functional.interpolate(image[None, None], size=list(size), mode="trilinear", align_corners=False)[0, 0]


def _nearest(labels: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    if tuple(labels.shape) == tuple(size):
        return labels
    return functional.interpolate(labels[None, None], size=list(size), mode="nearest-exact")[0, 0]


def _smooth(classes: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """One class at a time: a large volume's shares are never held all."""
    if tuple(classes.shape) == tuple(size):
        return classes
    best = torch.zeros(tuple(size), device=classes.device)
    smooth = torch.zeros(tuple(size), dtype=classes.dtype, device=classes.device)
    for value in classes.unique().tolist():
        share = _linear((classes == value).float(), size)
        smooth[share > best] = value
        best = torch.maximum(best, share)
    return smooth
