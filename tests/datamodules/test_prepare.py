"""Preparing and restoring keeps every voxel where it was."""

import highdicom as hd
import numpy as np
import pytest
import torch

from datamodules.plan import Plan
from datamodules.prepare import CANONICAL, compact, intensity, prepare, prepare_mask, restore
from datamodules.sample import normalised


def plan(spacing: tuple[float, float, float], **more: object) -> Plan:
    return Plan.from_dict({"spacing": spacing, "structures": ("organ",), "values": (3,), "patch": (16, 16, 16), **more})


def sphere(spacing: tuple[float, float, float], shape: tuple[int, int, int], direction: np.ndarray, radius: float) -> hd.Volume:
    """A ball of value 3, ``radius`` mm, off the centre of a grid whose axes run along the columns of ``direction``."""
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(spacing)
    affine[:3, 3] = (-31.5, 12.25, 7.125)
    geometry = hd.VolumeGeometry(affine, shape, coordinate_system="PATIENT")
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)
    centre = geometry.map_indices_to_reference(np.array(shape)[None] * 0.46)
    distance = np.linalg.norm(geometry.map_indices_to_reference(indices) - centre, axis=1).reshape(shape)
    return geometry.with_array(np.where(distance < radius, 3, 0).astype(np.uint8))


def turned(degrees: float) -> np.ndarray:
    """(slices, rows, columns) towards head, posterior, left, turned about two axes."""
    a = np.radians(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    return about_z @ about_x @ np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], float)


DIRECTIONS = {
    "axial": turned(0),
    "flipped": turned(0) * np.array([-1, 1, -1]),
    "sagittal": np.eye(3),
    "oblique": turned(23),
    "oblique and flipped": turned(-31)[:, [2, 0, 1]] * np.array([1, -1, 1]),
}


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_equal_spacing_is_exact(direction: np.ndarray) -> None:
    mask = sphere((2.0, 2.0, 2.0), (20, 24, 28), direction, 14)
    prepared = prepare(mask.astype(np.float32), plan((2.0, 2.0, 2.0)))
    restored = restore(prepare_mask(mask, plan((2.0, 2.0, 2.0))), prepared)
    assert np.array_equal(restored.array * 3, mask.array)
    assert np.array_equal(restored.affine, mask.affine)


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize("spacing", [(2.0, 1.3, 1.3), (3.1, 2.0, 2.0)])
def test_another_spacing_comes_back_to_the_same_place(direction: np.ndarray, spacing: tuple[float, float, float]) -> None:
    mask = sphere((2.5, 1.7, 1.7), (31, 42, 45), direction, 25)
    prepared = prepare(mask.astype(np.float32), plan(spacing))
    classes = prepare_mask(mask, plan(spacing))
    assert classes.shape == prepared.image.shape[1:]
    restored = restore(classes, prepared)
    assert restored.array.shape == mask.array.shape
    assert restored.array.dtype == np.uint8
    assert np.array_equal(restored.affine, mask.affine)
    assert dice(restored.array == 1, mask.array == 3) >= 0.96
    shift = np.argwhere(restored.array == 1).mean(0) - np.argwhere(mask.array == 3).mean(0)
    assert np.abs(shift).max() < 0.25  # voxels


def test_the_prepared_grid_is_in_canonical_orientation() -> None:
    ramp = sphere((2.0, 2.0, 2.0), (10, 12, 14), DIRECTIONS["flipped"], 5)
    heads_up = ramp.to_patient_orientation(CANONICAL)
    ramp = ramp.with_array(ramp.map_indices_to_reference(np.argwhere(np.ones(ramp.shape)))[:, 2].reshape(ramp.shape))
    image = prepare(ramp, plan((2.0, 2.0, 2.0))).image[0]
    assert image.shape == heads_up.spatial_shape
    assert (image.diff(dim=0) >= 0).all()
    assert image[-1].mean() > image[0].mean()


def test_linear_resampling_keeps_a_ramp() -> None:
    shape = (16, 20, 20)
    ramp = sphere((3.0, 2.0, 2.0), shape, turned(0), 5).with_array(np.indices(shape)[0].astype(np.float32))
    prepared = prepare(ramp, plan((1.5, 2.0, 2.0), normalization="ct"))
    restored = restore(prepared.image[0], prepared).array * 1000
    inner = slice(1, -1)
    assert np.allclose(restored[inner], ramp.array[inner], atol=1e-2)


@pytest.mark.parametrize("normalization", ["zscore", "percentile"])
def test_intensities_do_not_depend_on_the_scale(normalization: str) -> None:
    volume = sphere((2.0, 2.0, 2.0), (12, 12, 12), turned(0), 8).astype(np.float32)
    chosen = plan((2.0, 2.0, 2.0), normalization=normalization)
    once, again = prepare(volume, chosen).image, prepare(volume.with_array(volume.array * 1e4 + 77), chosen).image
    assert torch.allclose(once, again, atol=1e-3)


def test_a_flat_volume_is_no_error() -> None:
    flat = sphere((2.0, 2.0, 2.0), (8, 8, 8), turned(0), 0).astype(np.float32)
    for normalization in ("zscore", "percentile", "ct"):
        assert torch.isfinite(prepare(flat, plan((2.0, 2.0, 2.0), normalization=normalization)).image).all()


def test_whole_numbers_and_whole_steps_are_kept_exactly_in_half_the_bytes() -> None:
    rng, chosen = np.random.default_rng(0), plan((2.0, 2.0, 2.0))
    for step, dtype in ((1.0, torch.int16), (0.25, torch.int16), (0.0, torch.float32)):
        values = rng.integers(-300, 300, (8, 9, 10)) * step if step else rng.normal(size=(8, 9, 10))
        image = torch.from_numpy(values.astype(np.float32))[None]
        kept, numbers = compact(image, intensity(image, chosen))
        assert kept.dtype == dtype
        assert torch.equal(kept.float() * numbers[0, 0], image[0][None])
        assert torch.equal(normalised(kept, numbers), normalised(image, intensity(image, chosen)))


def test_ct_goes_by_the_cohorts_foreground() -> None:
    chosen = plan((2.0, 2.0, 2.0), normalization="ct", intensities=[[-100, 300, 50, 20]])
    image = torch.tensor([-1000.0, -100, 50, 70, 300, 900]).view(1, 1, 1, 6)
    found = normalised(image, intensity(image, chosen)).flatten()
    assert found.tolist() == [-7.5, -7.5, 0, 1, 12.5, 12.5]
