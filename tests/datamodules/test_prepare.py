"""Preparing and restoring keeps every voxel where it was."""

import highdicom as hd
import numpy as np
import pytest
import torch

from datamodules.errors import DataError
from datamodules.plan import Plan
from datamodules.prepare import CANONICAL, by_plan, compact, intensity, prepare, prepare_mask, restore
from datamodules.sample import Sample, normalised


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
    for step, dtype in ((1.0, torch.int16), (0.25, torch.int16), (0.1, torch.int16), (0.0, torch.float32)):
        values = rng.integers(100, 700, (8, 9, 10)).astype(np.float32) * np.float32(step)  # none is the step itself
        image = torch.from_numpy(values if step else rng.normal(size=(8, 9, 10)).astype(np.float32))[None]
        kept, numbers = compact(image, intensity(image, chosen))
        assert kept.dtype == dtype
        assert torch.equal(kept.float() * numbers[0, 0], image[0][None])
        assert torch.equal(normalised(kept, numbers), normalised(image, intensity(image, chosen)))


@pytest.mark.parametrize("values", [[40000.0, -3], [0.5, 32768.0], [1e-3, 1]], ids=["too large", "too wide", "too fine"])
def test_what_int16_does_not_hold_stays_as_it_is(values: list[float]) -> None:
    whole, image = torch.tensor([7.0, 8]), torch.tensor(values)
    both = torch.stack([whole, image]).view(2, 1, 1, 2)
    assert compact(both[:1], torch.ones(1, 5))[0].dtype == torch.int16
    for kept, numbers, given in ((*compact(both[1:], torch.ones(1, 5)), both[1:]), (*compact(both, torch.ones(2, 5)), both)):
        assert torch.equal(kept, given)
        assert (numbers == 1).all()


def test_percentiles_are_exact_whatever_the_size_and_the_threads() -> None:
    rng, chosen = np.random.default_rng(3), plan((2.0, 2.0, 2.0))
    for shape in ((1, 1, 1), (1, 2, 3), (31, 33, 35), (70, 80, 90)):
        image = torch.from_numpy(rng.gamma(2, 300, (1, *shape)).astype(np.float32))
        found = intensity(image, chosen)[0]
        low, high = np.percentile(image.double().numpy(), (0.5, 99.5))
        clipped = image.double().clamp(low, high)
        wanted = torch.tensor([1, low, high, clipped.mean(), max(clipped.std(correction=0), 1e-6)], dtype=torch.float32)
        assert torch.allclose(found, wanted, rtol=1e-6)
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(2 if threads == 1 else 1)
            assert torch.equal(intensity(image, chosen)[0], found)
        finally:
            torch.set_num_threads(threads)


def test_channels_are_prepared_by_their_own_normalization() -> None:
    volume = sphere((2.0, 2.0, 2.0), (10, 11, 12), turned(0), 8).astype(np.float32)
    other = volume.with_array(volume.array * 500 - 700)
    chosen = plan((3.0, 2.0, 2.0), channels=["MR", "CT"], normalization=["percentile", "ct"])
    both = prepare([volume, other], chosen).image
    assert torch.equal(both[:1], prepare(volume, plan((3.0, 2.0, 2.0), normalization="percentile")).image)
    assert torch.equal(both[1:], prepare(other, plan((3.0, 2.0, 2.0), normalization="ct")).image)
    with pytest.raises(DataError, match=r"1 images for 2 channels \(MR, CT\)"):
        prepare(volume, chosen)


def test_one_slice_stays_one() -> None:
    mask = sphere((4.0, 1.0, 1.0), (1, 30, 32), turned(0), 10)
    chosen = plan((4.0, 2.0, 2.0))
    prepared = prepare(mask.astype(np.float32), chosen)
    assert prepared.image.shape == (1, 1, 15, 16)
    assert dice(restore(prepare_mask(mask, chosen), prepared).array == 1, mask.array == 3) > 0.9


@pytest.mark.parametrize("kind", [torch.int64, torch.bfloat16, torch.float16])
def test_restoring_takes_what_networks_give(kind: torch.dtype) -> None:
    mask = sphere((2.5, 1.7, 1.7), (21, 32, 35), turned(0), 18)
    chosen = plan((2.0, 1.3, 1.3))
    classes, prepared = prepare_mask(mask, chosen), prepare(mask.astype(np.float32), chosen)
    found = restore(classes.to(kind), prepared).array
    assert found.dtype == (np.uint8 if kind == torch.int64 else np.float32)
    assert dice(found > 0.5, mask.array == 3) > 0.95


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_prepares_and_restores_alike() -> None:
    volume = sphere((2.5, 1.7, 1.7), (31, 42, 45), turned(23), 25)
    image = volume.with_array(np.random.default_rng(0).normal(volume.array * 50.0, 20).astype(np.float32))
    for normalization in ("zscore", "percentile", "ct"):
        chosen = plan((3.1, 2.0, 2.0), normalization=normalization)
        here, there = prepare(image, chosen), prepare(image, chosen, device=torch.device("cuda"))
        assert there.image.is_cuda
        assert torch.allclose(here.image, there.image.cpu(), atol=1e-5)
    classes = prepare_mask(volume, chosen)
    for answer in (classes, here.image[0]):
        assert np.allclose(restore(answer.cuda(), there).array, restore(answer, here).array, atol=1e-5)


def test_ct_goes_by_the_cohorts_foreground() -> None:
    chosen = plan((2.0, 2.0, 2.0), normalization="ct", intensities=[[-100, 300, 50, 20]])
    image = torch.tensor([-1000.0, -100, 50, 70, 300, 900]).view(1, 1, 1, 6)
    found = normalised(image, intensity(image, chosen)).flatten()
    assert found.tolist() == [-7.5, -7.5, 0, 1, 12.5, 12.5]


def test_a_later_plans_cohort_counts_for_what_was_stored_before() -> None:
    before, after = (
        plan((2.0, 2.0, 2.0), normalization="ct", intensities=[values]) for values in ([-1, 1, 0, 1], [0, 9, 5, 2])
    )
    image = torch.arange(8, dtype=torch.float32).view(1, 2, 2, 2)
    stored, numbers = compact(image, intensity(image, before))
    blank = torch.zeros(0)
    kept = Sample("c", "", "", "", stored, numbers, blank, blank, blank, blank)
    assert torch.equal(by_plan(kept, after).normalised(), normalised(image, intensity(image, after)))
    assert before.preparation() == after.preparation()
    assert by_plan(kept, plan((2.0, 2.0, 2.0))) is kept
