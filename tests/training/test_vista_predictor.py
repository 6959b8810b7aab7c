"""VISTA3D as a predictor: what all of them do, and clicks."""

from collections.abc import Iterator

import highdicom as hd
import numpy as np
import pytest
import torch

from datamodules.plan import Plan
from training.errors import TrainingError
from training.predictor import Point, Predictor, Prompts
from training.testing import PredictorTests
from training.vista_net import Vista3D
from training.vista_predictor import Vista3DPredictor, merged

PLAN = Plan.from_dict(
    {
        "task": "vista3d",
        "network": "VISTA3D",
        "network_args": {"embed": 8},
        "spacing": (4.0, 1.5, 1.5),
        "structures": ("liver", "wart"),
        "values": (3, 7),
        "patch": (16, 32, 32),
    }
)


@pytest.fixture(scope="module")
def image() -> hd.Volume:
    """Smaller than a window along two axes, larger along one."""
    array = np.random.default_rng(0).normal(size=(12, 28, 40)).astype(np.float32)
    array[3:8, 4:12, 6:18] += 3
    affine = np.array([[0, 0, 1.5, -20], [0, 1.5, 0, -15], [4.0, 0, 0, 7], [0, 0, 0, 1]])
    return hd.Volume(array, affine, coordinate_system="PATIENT")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(1)
    return Vista3DPredictor(Vista3D(PLAN), PLAN)


class TestVista3D(PredictorTests):
    takes_points = True


def clicks(image: hd.Volume, structure: str, positive: bool) -> Iterator[tuple[tuple[int, int, int], Point]]:
    """One click after another over the image: its voxel, and as a prompt."""
    for z, y, x in np.ndindex(2, 2, 4):
        voxel = (5 * z + 3, 13 * y + 6, 10 * x + 4)
        position = image.map_indices_to_reference(np.array([voxel]))[0]
        yield voxel, Point(*(float(part) for part in position), structure, positive)


@pytest.mark.parametrize(("structure", "value"), [("liver", 3), ("wart", 7)])
def test_a_click_changes_the_mask_near_it(predictor: Predictor, image: hd.Volume, structure: str, value: int) -> None:
    before = predictor.predict(image, Prompts()).mask.array
    gained = 0
    for voxel, click in clicks(image, structure, True):
        after = predictor.predict(image, Prompts(points=(click,))).mask.array
        changed = np.argwhere(after != before)
        if not len(changed):
            continue
        gained += 1
        assert (after[tuple(changed.T)] == value).all()  # it only adds to what was clicked
        assert (np.abs(changed[:, 2] - voxel[2]) <= 32).all()  # within the window around it
        assert np.abs(changed - voxel).max(1).min() <= 2 or before[voxel] == value  # from it on
    assert gained > 0


def test_a_click_outside_only_takes_away(predictor: Predictor, image: hd.Volume) -> None:
    before = predictor.predict(image, Prompts()).mask.array
    lost = 0
    for _, click in clicks(image, "wart", False):
        after = predictor.predict(image, Prompts(points=(click,))).mask.array
        lost += int((after != before).any())
        assert (before[after != before] == 7).all()
    assert lost > 0


def test_a_turned_image_is_clicked_at_the_same_place(predictor: Predictor, image: hd.Volume) -> None:
    turned = image.permute_spatial_axes([2, 0, 1]).flip_spatial([0, 2])
    plain = predictor.predict(image, Prompts()).mask.array
    for _, click in clicks(image, "wart", True):
        expected = predictor.predict(image, Prompts(points=(click,))).mask
        if (expected.array != plain).any():
            found = predictor.predict(turned, Prompts(points=(click,))).mask
            assert np.mean(found.array == expected.match_geometry(turned).array) > 0.999
            return
    pytest.fail("no click changed anything")


def test_clicks_that_cannot_be_met_are_named(predictor: Predictor, image: hd.Volume) -> None:
    with pytest.raises(TrainingError, match="outside of the image"):
        predictor.predict(image, Prompts(points=(Point(500.0, 0.0, 9.0, "wart"),)))
    with pytest.raises(TrainingError, match="wart, which is not asked for"):
        predictor.predict(image, Prompts(classes=("liver",), points=(Point(0.0, 0.0, 9.0, "wart"),)))


def test_several_networks_are_clicked_together(image: hd.Volume) -> None:
    torch.manual_seed(1)
    both = Vista3DPredictor([Vista3D(PLAN), Vista3D(PLAN)], PLAN)
    plain = both.predict(image, Prompts())
    clicked = [both.predict(image, Prompts(points=(click,))) for _, click in list(clicks(image, "wart", True))[::3]]
    assert plain.disagreement is not None and plain.disagreement > 0
    assert any((found.mask.array != plain.mask.array).any() for found in clicked)


def blocks(*places: tuple[int, int]) -> torch.Tensor:
    """1 from ``start`` to ``end`` along the last axis, else -1."""
    scores = torch.full((3, 3, 20), -1.0)
    for start, end in places:
        scores[..., start:end] = 1
    return scores


def test_only_the_part_that_was_clicked_is_taken() -> None:
    scores, answer = blocks((0, 4)), 2 * blocks((8, 11), (15, 18))
    added, won = merged(scores, answer, [((1, 1, 9), True)])
    assert torch.equal(won, blocks((8, 11)) > 0)
    assert torch.equal(added > 0, blocks((0, 4), (8, 11)) > 0)
    unasked, _ = merged(scores, answer, [((1, 1, 9), False)])
    assert torch.equal(unasked, scores)  # what it adds is not what a click outside asks for
    taken, _ = merged(blocks((0, 4), (8, 11)), -2 * torch.ones(3, 3, 20), [((1, 1, 5), False)])
    assert torch.equal(taken > 0, blocks((8, 11)) > 0)  # within two voxels of the click
    grown, _ = merged(blocks((0, 4)), 2 * blocks((2, 9)), [((1, 1, 3), True)])
    assert torch.equal(grown > 0, blocks((0, 9)) > 0)  # through the mask
