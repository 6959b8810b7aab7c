"""Both predictors keep to the same rules."""

import highdicom as hd
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from datamodules.errors import DataError
from datamodules.plan import Plan
from training.errors import TrainingError
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

    def test_channels_come_in_order(self, image: hd.Volume) -> None:
        plan = Plan(
            spacing=(4.0, 1.5, 1.5),
            structures=("nothing", "box"),
            values=(3, 7),
            patch=(8, 16, 16),
            channels=("bright", "dark"),
            normalization=("zscore", "zscore"),
        )
        predictor, dark = NetPredictor(First(), plan), image.with_array(-image.array)
        assert np.array_equal(predictor.predict([image, dark], Prompts()).mask.array == 7, image.array > 50)
        with pytest.raises(DataError, match="1 images for 2 channels"):
            predictor.predict(image, Prompts())

    def test_members_that_agree_do_not_disagree(self, predictor: NetPredictor, image: hd.Volume) -> None:
        alone, twins = predictor.predict(image, Prompts()), NetPredictor([Brightness(), Brightness()], predictor.plan)
        together = twins.predict(image, Prompts())
        assert alone.disagreement is None
        assert together.disagreement == pytest.approx(0, abs=1e-4)
        assert np.array_equal(together.mask.array, alone.mask.array)

    def test_dropout_tells_the_same_twice(self, predictor: NetPredictor, image: hd.Volume) -> None:
        dropping = NetPredictor(nn.Sequential(nn.Dropout3d(0.5), Brightness()), predictor.plan, dropout_passes=4)
        once, again = (dropping.predict(image, Prompts()) for _ in range(2))
        assert once.disagreement is not None and once.disagreement > 1e-3
        assert once.disagreement == again.disagreement
        with pytest.raises(TrainingError, match="no dropout"):
            NetPredictor(Brightness(), predictor.plan, dropout_passes=4)


class First(Brightness):
    """Looks at the first of several channels."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image[:, :1])
