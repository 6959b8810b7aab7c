"""Both predictors keep to the same rules."""

import highdicom as hd
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from datamodules.plan import Plan
from training.predictor import NetPredictor, Predictor, Prompts, ThresholdPredictor
from training.testing import PredictorTests


@pytest.fixture
def image() -> hd.Volume:
    """A bright box off the centre of an anisotropic volume."""
    array = np.zeros((12, 20, 24), np.float32)
    array[3:8, 4:12, 6:18] = 100
    affine = np.array([[0, 0, 1.5, -20], [0, 1.5, 0, -15], [4.0, 0, 0, 7], [0, 0, 0, 1]])
    return hd.Volume(array, affine, coordinate_system="PATIENT")


class Brightness(nn.Module):
    """Logits that say class 2 where the prepared image is bright, without being trained."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([6 - 4 * image, torch.full_like(image, -30), 4 * image - 6], 1)


class TestThreshold(PredictorTests):
    @pytest.fixture
    def predictor(self) -> Predictor:
        return ThresholdPredictor("box", 7, above=50)


class TestNet(PredictorTests):
    @pytest.fixture
    def predictor(self) -> Predictor:
        plan = Plan(spacing=(4.0, 1.5, 1.5), structures=("nothing", "box"), values=(3, 7), patch=(8, 16, 16))
        return NetPredictor(Brightness(), plan)

    def test_classes_become_the_label_sets_values(self, predictor: Predictor, image: hd.Volume) -> None:
        prediction = predictor.predict(image, Prompts())
        assert np.array_equal(prediction.mask.array == 7, image.array > 50)
        assert prediction.volumes_ml == {"nothing": 0, "box": pytest.approx(480 * 9 / 1000)}

    def test_a_sure_answer_has_less_entropy(self, predictor: Predictor, image: hd.Volume) -> None:
        blurred = image.with_array(gaussian_filter(image.array, 3))
        assert predictor.predict(image, Prompts()).entropy < predictor.predict(blurred, Prompts()).entropy

    def test_another_spacing_finds_the_same_box(self, image: hd.Volume) -> None:
        plan = Plan(spacing=(2.0, 2.0, 2.0), structures=("nothing", "box"), values=(3, 7), patch=(8, 16, 16))
        mask = NetPredictor(Brightness(), plan).predict(image, Prompts()).mask
        shift = np.argwhere(mask.array == 7).mean(0) - np.argwhere(image.array > 50).mean(0)
        assert np.abs(shift).max() < 0.5  # voxels
