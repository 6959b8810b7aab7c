"""Training patches: where one lies in a volume, and how it is cut out, turned and scaled, on the volume's device."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.transform import Rotation
from torch.nn import functional

from datamodules.plan import Plan
from datamodules.sample import Sample, normalised

__all__ = ["Place", "cut", "draw", "flat"]

FOREGROUND = 0.7  # of the patches lie around a voxel of a structure
MOVED = 0.7  # of the patches are turned and scaled
TURN = 0.3  # radians at most, about each axis
LARGEST = 1.25  # times the patch's extent, or divided by it
FLAT = 3  # a patch this many times longer than it is thick is turned and scaled in its plane only, as nnU-Net does

Size = tuple[int, int, int]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """Where a patch lies. ``middle`` is its centre: voxels (z, y, x) from the volume's outer corner. ``matrix`` (3, 3) takes an
    offset from the patch's centre to one in the volume, both in voxels; None: neither turned nor scaled, on whole voxels."""

    middle: Array
    matrix: Array | None = None


def flat(size: tuple[int, ...]) -> bool:
    """Whether a patch is so thin along its first axis that only its plane is to be changed."""
    return max(size) > FLAT * size[0]


def draw(rng: np.random.Generator, sample: Sample, plan: Plan) -> Place:
    """A place for one of ``plan``'s patches in ``sample``, inside the volume as far as that is large enough.

    The structure that a foreground patch lies around is drawn first, then a voxel of it: small structures count as large ones.
    """
    size, shape = np.array(plan.patch), np.array(sample.mask.shape)
    room = np.maximum(shape - size, 0)
    corner = rng.integers(0, room + 1)
    centres = sample.centres.cpu().numpy()
    if rng.random() < FOREGROUND and len(centres):
        chosen = rng.choice(centres[centres[:, 0] == rng.choice(np.unique(centres[:, 0]))])[1:]
        corner = np.clip(chosen - rng.integers(size // 4, 3 * size // 4 + 1), 0, room)
    corner = np.where(shape < size, -((size - shape) // 2), corner)
    matrix = _matrix(rng, plan) if plan.augment and rng.random() < MOVED else None
    return Place(corner + size / 2, matrix)


def cut(sample: Sample, place: Place, size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    """What of ``sample`` lies there: (C, D, H, W) float32, normalised, and (D, H, W) uint8 classes.

    Only a box around the patch is read, which holds all that a turned patch needs, so that its corners are real data too.
    Outside the volume is a channel's lowest value, and background.
    """
    half = (np.array(size) - 1) / 2  # from the centre to the outermost voxels' centres
    reach = half if place.matrix is None else np.abs(place.matrix) @ half
    spare = 1 if place.matrix is None else 2  # between voxels two are needed
    start = np.floor(place.middle - reach - 0.5).astype(int)
    stop = np.floor(place.middle + reach - 0.5).astype(int) + spare
    low, high = np.maximum(start, 0), np.minimum(stop, sample.mask.shape)
    box = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    floor = _floor(sample.intensity)
    image, mask = normalised(sample.image[(slice(None), *box)], sample.intensity) - floor, sample.mask[box]
    if place.matrix is None:
        sides = [int(side) for gap in zip((low - start)[::-1], (stop - high)[::-1], strict=True) for side in gap]
        if any(sides):
            image, mask = functional.pad(image, sides), functional.pad(mask, sides)
        return image + floor, mask
    grid = _grid(place.matrix, place.middle - low, high - low, size).to(image.device, non_blocking=True)
    image = functional.grid_sample(image[None], grid, align_corners=False)[0]
    mask = functional.grid_sample(mask[None, None].float(), grid, mode="nearest", align_corners=False)[0, 0]
    return image + floor, mask.to(torch.uint8)


def _matrix(rng: np.random.Generator, plan: Plan) -> Array:
    """A turn in mm, which in voxels of unequal sides is a shear as well, and a scale."""
    angles, scale = rng.uniform(-TURN, TURN, 3), np.exp(rng.uniform(-1, 1) * np.log(LARGEST))
    plane = flat(plan.patch)
    if plane:
        angles[1:] = 0
    spacing = np.array(plan.spacing)
    turn = Rotation.from_euler("xyz", angles).as_matrix()  # its x is our first axis
    matrix: Array = turn * spacing / spacing[:, None] * scale
    if plane:
        matrix[0] = (1, 0, 0)
    return matrix


def _floor(intensity: torch.Tensor) -> torch.Tensor:
    """(C, 1, 1, 1): the lowest value that a channel has when normalised."""
    return ((intensity[:, 1] - intensity[:, 3]) / intensity[:, 4])[:, None, None, None]


def _grid(matrix: Array, middle: Array, shape: Array, size: Size) -> torch.Tensor:
    """(1, D, H, W, 3), as ``grid_sample`` wants it: for each voxel of the patch where in a box of ``shape`` it comes from, -1…1
    from face to face, order x, y, z; ``middle`` is the patch's centre in the box.

    Not ``affine_grid``: that is a matrix product, which a GPU may do in TF32, too coarse for places.
    """
    scale = 2 / shape
    steps = [np.outer(np.arange(n) - (n - 1) / 2, matrix[:, axis] * scale) for axis, n in enumerate(size)]
    steps[0] += middle * scale - 1
    z, y, x = (torch.from_numpy(np.ascontiguousarray(step[:, ::-1], dtype=np.float32)) for step in steps)
    return (z[:, None, None] + (y[:, None] + x))[None]
