"""Both predictors keep to the same rules."""

from dataclasses import replace

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


PLAN = Plan(spacing=(4.0, 1.5, 1.5), structures=("nothing", "box"), values=(3, 7), patch=(8, 16, 16))


class Brightness(nn.Module):
    """Logits that say class 2 where the prepared image is bright, without being trained; ``seen`` takes what it was shown."""

    def __init__(self, seen: list[torch.Tensor] | None = None) -> None:
        super().__init__()
        self.seen = [] if seen is None else seen

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append(image)
        return torch.cat([6 - 4 * image, torch.full_like(image, -30), 4 * image - 6], 1)


class TestThreshold(PredictorTests):
    @pytest.fixture
    def predictor(self) -> Predictor:
        return ThresholdPredictor("box", 7, above=50)


class TestNet(PredictorTests):
    @pytest.fixture
    def predictor(self) -> Predictor:
        return NetPredictor(Brightness(), PLAN)

    def test_classes_become_the_label_sets_values(self, predictor: Predictor, image: hd.Volume) -> None:
        prediction = predictor.predict(image, Prompts())
        assert np.array_equal(prediction.mask.array == 7, image.array > 50)
        assert prediction.volumes_ml == {"nothing": 0, "box": pytest.approx(480 * 9 / 1000)}

    def test_a_sure_answer_has_less_entropy(self, predictor: Predictor, image: hd.Volume) -> None:
        blurred = image.with_array(gaussian_filter(image.array, 3))
        assert predictor.predict(image, Prompts()).entropy < predictor.predict(blurred, Prompts()).entropy

    def test_another_spacing_finds_the_same_box(self, image: hd.Volume) -> None:
        plan = replace(PLAN, spacing=(2.0, 2.0, 2.0))
        mask = NetPredictor(Brightness(), plan).predict(image, Prompts()).mask
        shift = np.argwhere(mask.array == 7).mean(0) - np.argwhere(image.array > 50).mean(0)
        assert np.abs(shift).max() < 0.5  # voxels

    def test_channels_come_in_order(self, image: hd.Volume) -> None:
        plan = replace(PLAN, channels=("bright", "dark"), normalization=("zscore", "zscore"))
        predictor, dark = NetPredictor(First(), plan), image.with_array(-image.array)
        assert np.array_equal(predictor.predict([image, dark], Prompts()).mask.array == 7, image.array > 50)
        with pytest.raises(DataError, match="1 images for 2 channels"):
            predictor.predict(image, Prompts())

    def test_small_volumes_lie_where_training_put_them(self, image: hd.Volume) -> None:
        """In the middle of a patch, their lowest value around them, and what is found there is cut out again."""
        plan = replace(PLAN, patch=(16, 24, 32))
        seen: list[torch.Tensor] = []
        predictor = NetPredictor(Brightness(seen), plan)
        mask = predictor.predict(image, Prompts()).mask
        assert np.array_equal(mask.array == 7, image.array > 50)
        (window,) = seen
        assert window.shape == (1, 1, 16, 24, 32)
        inner = (slice(2, 14), slice(2, 22), slice(4, 28))
        around = torch.ones(16, 24, 32, dtype=torch.bool)
        around[inner] = False
        assert (window[0, 0][around] == window.min()).all()
        assert (window[0, 0][inner].max() > window.min()).all()

    def test_a_two_dimensional_network_sees_slices(self, image: hd.Volume) -> None:
        seen: list[torch.Tensor] = []
        mask = NetPredictor(Brightness(seen), replace(PLAN, patch=(1, 16, 16))).predict(image, Prompts()).mask
        assert {tuple(window.shape[1:]) for window in seen} == {(1, 16, 16)}
        assert np.array_equal(mask.array == 7, image.array > 50)

    def test_a_network_out_of_float16s_range_is_asked_in_bf16(
        self, image: hd.Volume, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("training.frozen._dtype", lambda plan, on: torch.float16)
        found = NetPredictor(Loud(), PLAN).predict(image, Prompts())
        assert np.array_equal(found.mask.array == 7, image.array > 50)
        assert "float16" in caplog.text


class TestEnsemble(PredictorTests):
    @pytest.fixture
    def predictor(self) -> NetPredictor:
        return NetPredictor([Brightness(), nn.Sequential(Scale(0.5), Brightness())], PLAN)

    def test_members_that_agree_do_not_disagree(self, predictor: NetPredictor, image: hd.Volume) -> None:
        alone, together = (NetPredictor(nets, PLAN).predict(image, Prompts()) for nets in (Brightness(), [Brightness()] * 2))
        assert alone.disagreement is None
        assert together.disagreement == pytest.approx(0, abs=1e-4)
        assert together.entropy == pytest.approx(alone.entropy, rel=1e-3)
        assert np.array_equal(together.mask.array, alone.mask.array)
        unlike = predictor.predict(image, Prompts()).disagreement
        assert unlike is not None and unlike > 1e-3


class TestDropout(PredictorTests):
    @pytest.fixture
    def predictor(self) -> NetPredictor:
        torch.manual_seed(0)
        dropping = nn.Sequential(nn.Conv3d(1, 16, 1, bias=False), nn.Dropout3d(0.2), nn.Conv3d(16, 1, 1, bias=False))
        with torch.no_grad():
            dropping[0].weight.fill_(1)
            dropping[2].weight.fill_(1 / 16)
        return NetPredictor(nn.Sequential(dropping, Brightness()), PLAN, dropout_passes=4)

    def test_passes_disagree_and_leave_everything_as_it_was(self, image: hd.Volume) -> None:
        dropout, before = nn.Dropout3d(0.5), torch.get_rng_state()
        predictor = NetPredictor(nn.Sequential(dropout, Brightness()), PLAN, dropout_passes=4)
        found = predictor.predict(image, Prompts())
        assert found.disagreement is not None and found.disagreement > 1e-2
        assert not dropout.training
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_network_without_dropout_is_refused(self) -> None:
        with pytest.raises(TrainingError, match="no dropout"):
            NetPredictor(Brightness(), PLAN, dropout_passes=4)


class Scale(nn.Module):
    """An image of less contrast."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * self.by


class Loud(Brightness):
    """Passes numbers of a million through a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 1, bias=False)
        self.conv.weight.data.fill_(1e6)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(self.conv(image).float() / 1e6)


class First(Brightness):
    """Looks at the first of several channels."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image[:, :1])
