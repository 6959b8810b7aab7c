"""The project's own stock MONAI baseline does what the frozen one does."""

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from experiments.baselines import monai_stock

FROZEN = Path(__file__).parents[3] / "shared" / "baselines" / "monai_stock.py"


@pytest.fixture(scope="module")
def frozen() -> ModuleType:
    """The baseline that the project was given, where it lies beside the checkout."""
    if not FROZEN.exists():
        pytest.skip("the frozen baselines are not beside this checkout")
    spec = importlib.util.spec_from_file_location("frozen_monai_stock", FROZEN)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four small cases with two structures."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for case in range(4):
        label = np.zeros((18, 20, 17), np.uint8)
        label[4:9, 5:12, 6:11], label[10:15, 8:14, 3:9] = 1, 2
        image = 100 * label + rng.normal(0, 10, label.shape)
        for kind, array in (("images", image.astype(np.float32)), ("labels", label)):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / kind / f"case{case}.nii.gz")
    return tmp_path


def test_trains_on_every_whole_batch(folder: Path) -> None:
    first, second = monai_stock.train(folder, batch=2, patch=16, epochs=2)
    assert [first["patches"], second["patches"], len(second["losses"])] == [4, 4, 2]
    assert np.isfinite(first["losses"]).all()


@pytest.mark.slow
def test_trains_on_the_same_patches_as_the_frozen_one(
    frozen: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []

    class Recorded(frozen.DiceCELoss):  # type: ignore[name-defined, misc]
        def forward(self, *given: Any) -> torch.Tensor:
            loss: torch.Tensor = super().forward(*given)
            losses.append(float(loss.detach()))
            return loss

    monkeypatch.setattr(frozen, "DiceCELoss", Recorded)
    frozen.train(argparse.Namespace(folder=str(folder), batch=2, patch=16, epochs=2, cases=200))
    ours = [loss for epoch in monai_stock.train(folder, batch=2, patch=16, epochs=2) for loss in epoch["losses"]]
    assert ours == pytest.approx(losses, rel=1e-4)


@pytest.mark.slow
def test_infers_the_same_masks_as_the_frozen_one(frozen: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(volume: Any, size: Any, *rest: Any, **options: Any) -> Any:
        assert size == (128,) * 3
        return monai_stock.sliding_window_inference(volume, (32,) * 3, *rest, **options)

    monkeypatch.setattr(frozen, "sliding_window_inference", small)
    asked = {"size": (48, 32, 32), "classes": 3, "embed": 8, "seed": 1}
    frozen.infer(argparse.Namespace(**asked, runs=1, stitch="gpu", out=str(tmp_path / "masks.pt")))
    net, volume = monai_stock.setting((48, 32, 32), embed=8, seed=1)
    masks = monai_stock.infer(net.to(frozen.DEVICE), volume, classes=3, window=32)[0] > 0
    assert torch.equal(masks.cpu(), torch.load(tmp_path / "masks.pt"))
    assert 0 < masks.float().mean() < 1
