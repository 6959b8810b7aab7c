"""Where patches lie, what is cut out there, and what becomes of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from datamodules import augment as augmenting
from datamodules.augment import augment
from datamodules.patches import Place, cut, draw
from datamodules.plan import Plan
from datamodules.sample import Sample

PLAN = Plan((1.0, 1.0, 1.0), ("liver", "spleen"), (1, 2), (12, 16, 16))
PLAIN = (1.0, -1000.0, 1000.0, 0.0, 1.0)


def sample(image: np.ndarray, mask: np.ndarray, intensity: tuple[float, ...] = PLAIN) -> Sample:
    centres = np.concatenate([np.c_[np.full((mask == k).sum(), k), np.argwhere(mask == k)] for k in (1, 2)]).astype(np.int32)
    known = torch.ones(2, dtype=torch.bool)
    rows = (torch.from_numpy(image[None]), torch.tensor([intensity]), torch.from_numpy(mask), known, known)
    return Sample("case", "", "", "", *rows, torch.from_numpy(centres))


def smooth(shape: tuple[int, int, int]) -> np.ndarray:
    drawn = np.random.default_rng(0).normal(0, 1000, shape)
    return ndimage.gaussian_filter(drawn, 3).astype(np.float32)


def turned(plan: Plan = PLAN, seed: int = 0) -> np.ndarray:
    """A matrix as ``draw`` draws it."""
    image = np.zeros((64, 64, 64), np.int16)
    whole = sample(image, image.astype(np.uint8))
    places = (draw(np.random.default_rng((seed, k)), whole, plan) for k in range(100))
    return next(place.matrix for place in places if place.matrix is not None)


@pytest.mark.parametrize("seed", range(3))
def test_a_turned_patch_is_what_scipy_makes_of_the_volume(seed: int) -> None:
    image, matrix, middle = smooth((48, 50, 52)), turned(seed=seed), np.array([23.0, 26.5, 24.2])
    mask = (image > 20).astype(np.uint8)
    found, classes = cut(sample(image, mask), Place(middle, matrix), PLAN.patch)
    offset = middle - 0.5 - matrix @ (np.array(PLAN.patch) - 1) / 2  # scipy counts from the first voxel's centre
    expected = ndimage.affine_transform(image, matrix, offset, PLAN.patch, order=1)
    assert np.allclose(found[0], expected, atol=0.01)
    expected = ndimage.affine_transform(mask, matrix, offset, PLAN.patch, order=0)
    assert (classes.numpy() != expected).mean() < 1e-3  # but for ties


def test_a_patch_that_is_not_moved_is_a_box() -> None:
    image = smooth((30, 30, 30)).astype(np.int16)
    mask = (image > 20).astype(np.uint8)
    found, classes = cut(sample(image, mask), Place(np.array([10.0, 12.0, 13.0])), PLAN.patch)
    box = np.s_[4:16, 4:20, 5:21]
    assert np.array_equal(found[0], image[box]) and np.array_equal(classes, mask[box])
    same, again = cut(sample(image, mask), Place(np.array([10.0, 12.0, 13.0]), np.eye(3)), PLAN.patch)
    assert torch.allclose(same, found, atol=1e-2) and torch.equal(again, classes)


def test_outside_the_volume_is_the_lowest_value_and_background() -> None:
    image, mask = np.full((8, 16, 40), 500, np.int16), np.ones((8, 16, 40), np.uint8)
    case = sample(image, mask, (1.0, -100.0, 1000.0, 100.0, 50.0))
    place = draw(np.random.default_rng(0), case, replace(PLAN, augment=False))
    assert place.middle[0] == 4 and 8 <= place.middle[2] <= 32  # in the middle of what is too thin
    for matrix in (None, turned()):
        found, classes = cut(case, Place(place.middle, matrix), PLAN.patch)
        assert found.min() == pytest.approx(-4) and found.max() == pytest.approx(8)
        assert classes[found[0] > 7.9].all() and not classes[found[0] < -3.9].any()  # between lies a voxel's width


def test_a_turned_patch_shows_no_border_where_the_volume_goes_on() -> None:
    image, mask = np.full((64, 64, 64), 7, np.int16), np.ones((64, 64, 64), np.uint8)
    for seed in range(20):
        found, classes = cut(sample(image, mask), Place(np.full(3, 32.0), turned(seed=seed)), PLAN.patch)
        assert torch.allclose(found, torch.tensor(7.0), atol=1e-3) and classes.all()


def test_small_structures_count_as_large_ones() -> None:
    mask = np.zeros((40, 60, 60), np.uint8)
    mask[:, :20, :] = 1
    mask[30, 50, 50] = 2
    case, plan = sample(mask.astype(np.int16), mask), replace(PLAN, augment=False)
    drawn = [cut(case, draw(np.random.default_rng(k), case, plan), PLAN.patch)[1] for k in range(300)]
    assert np.mean([bool((classes == 2).any()) for classes in drawn]) > 0.3
    assert np.mean([bool((classes == 1).any()) for classes in drawn]) > 0.3
    assert 0.05 < np.mean([not classes.any() for classes in drawn]) < 0.4


def test_left_stays_left() -> None:
    ramps = np.stack(np.meshgrid(*[np.arange(48)] * 3, indexing="ij")).astype(np.int16)
    mask = np.zeros((48, 48, 48), np.uint8)
    for k in range(50):
        matrix = turned(seed=k)
        for axis, ramp in enumerate(ramps):
            found, _ = cut(sample(ramp, mask), Place(np.full(3, 24.0), matrix), (12, 12, 12))
            middle = [6, 6, 6]
            middle[axis] = slice(None)
            assert (found[0][tuple(middle)].diff() > 0.3).all()


def test_a_turn_is_one_in_millimetres() -> None:
    plan = replace(PLAN, spacing=(3.0, 1.0, 0.5))
    spacing = np.diag(plan.spacing)
    turn = spacing @ turned(plan) @ np.linalg.inv(spacing)
    assert np.allclose(turn @ turn.T, np.eye(3) * (turn @ turn.T)[0, 0])
    assert abs(turn[0, 1]) > 1e-3


def test_a_flat_patch_stays_in_its_slice() -> None:
    plan = replace(PLAN, patch=(1, 32, 32))
    mask = np.pad(np.ones((5, 60, 60), np.uint8), ((0, 0), (2, 2), (2, 2)))  # not where the volume ends
    case = sample(np.arange(5, dtype=np.int16)[:, None, None] * 100 + np.zeros((5, 64, 64), np.int16), mask)
    slices = set()
    for k in range(40):
        found, classes = cut(case, draw(np.random.default_rng(k), case, plan), plan.patch)
        assert found.shape == (1, 1, 32, 32) and classes.shape == (1, 32, 32)
        inside = found[classes[None] == 1]
        assert (inside - inside.median()).abs().max() < 0.01
        slices.add(round(float(inside.median())))
    assert slices == {0, 100, 200, 300, 400}


def test_intensities_change_by_the_key_alone() -> None:
    image = torch.from_numpy(smooth((12, 16, 16)))[None].repeat(2, 1, 1, 1) / 100
    before, kept = torch.get_rng_state(), image.clone()
    first, again = (augment(np.random.default_rng(3), image) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(image, kept) and torch.equal(before, torch.get_rng_state())
    many = torch.stack([augment(np.random.default_rng(k), image) for k in range(60)])
    assert many.isfinite().all() and (many.flatten(1).std(1) > 0.2).all()
    changed = (many != image).flatten(2).any(2)
    assert 0.6 < changed.float().mean() < 1 and (changed[:, 0] != changed[:, 1]).any()  # a channel on its own


def test_each_change_does_what_it_says() -> None:
    image = torch.randn(12, 16, 16, generator=torch.Generator().manual_seed(0))
    for softer in (augmenting._blurred(image, 1.0), augmenting._coarse(image, 0.5)):
        assert softer.shape == image.shape and softer.std() < 0.9 * image.std()
    bent = augmenting._bent(image, 1.5)
    assert torch.allclose(bent.mean(), image.mean(), atol=1e-4) and torch.allclose(bent.std(), image.std(), atol=1e-4)
    assert torch.equal(bent.flatten().argsort()[:100], image.flatten().argsort()[:100]) and not torch.allclose(bent, image)
    assert augmenting._bent(torch.full((4, 4, 4), 3.0), 0.7).eq(3).all()
    plane = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert augmenting._blurred(plane, 1.0).shape == augmenting._coarse(plane, 0.5).shape == (1, 16, 16)
