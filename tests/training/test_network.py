"""Each network a plan can name: it fits the plan, or the plan is refused with a reason."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from monai.networks.nets import DynUNet
from torch import nn

from datamodules.plan import Plan
from training.errors import TrainingError
from training.network import autocast, logits, network, outputs, precision
from training.topology import stages

BASE = {"spacing": (1.0, 1.0, 1.0), "structures": ("a", "b"), "values": (1, 2), "channels": ("t1", "t2"), "precision": "32"}


def plan(name: str, patch: tuple[int, int, int] = (16, 24, 16), **changes: object) -> Plan:
    return Plan.from_dict({**BASE, "network": name, "patch": patch, "normalization": "zscore", "network_args": {}, **changes})


SMALL = {
    "UNet": {},
    "DynUNet": {"filters": [8, 8, 16, 16]},
    "SegResNet": {"init_filters": 8},
    "SegResNetDS": {"init_filters": 8},
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("patch", [(16, 24, 16), (1, 16, 24)])
def test_a_network_gives_a_score_a_class_and_voxel(name: str, patch: tuple[int, int, int]) -> None:
    made = plan(name, patch, network_args=SMALL[name])
    image = torch.randn(2, 2, *patch)
    assert logits(network(made).eval(), image, made).shape == (2, 3, *patch)


def test_swin_unetr_gives_a_score_a_class_and_voxel() -> None:
    pytest.importorskip("einops")
    made = plan("SwinUNETR", (32, 32, 64), network_args={"feature_size": 12})
    assert logits(network(made).eval(), torch.randn(1, 2, *made.patch), made).shape == (1, 3, *made.patch)


@pytest.mark.parametrize(("name", "shapes"), [("DynUNet", [(16, 24, 16)] * 2), ("SegResNetDS", [(16, 24, 16), (8, 12, 8)])])
@pytest.mark.parametrize("flat", [False, True])
def test_deep_supervision_adds_coarser_heads_in_training(name: str, shapes: list[tuple[int, int, int]], flat: bool) -> None:
    patch = (1, 24, 16) if flat else (16, 24, 16)
    made = plan(name, patch, network_args=SMALL[name], deep_supervision=True)
    net, image = network(made), torch.randn(2, 2, *patch)
    heads = [tuple(head.shape) for head in outputs(net.train(), image, made)]
    assert heads == [(2, 3, 1 if flat else shape[0], *shape[1:]) for shape in shapes]
    assert len(outputs(net.eval(), image, made)) == 1


def test_stages_halve_the_fine_axes_first() -> None:
    thick = stages((16, 128, 128), (5.0, 1.0, 1.0))
    assert thick.strides[:4] == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert thick.kernels[:3] == ((1, 3, 3), (1, 3, 3), (3, 3, 3))
    even = stages((40, 56, 40), (1.0, 1.0, 1.0))  # what nnU-Net plans for the hippocampus
    assert even.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert even.kernels == ((3, 3, 3),) * 4


def test_the_arguments_given_go_before_those_derived() -> None:
    made = network(plan("DynUNet", network_args={"filters": [4, 8, 12], "deep_supervision": False}, deep_supervision=True))
    assert isinstance(made, DynUNet)
    assert made.filters == [4, 8, 12] and not made.deep_supervision


@pytest.mark.parametrize(
    ("name", "patch", "args", "said"),
    [
        ("UNet", (16, 20, 16), {}, "multiple of 8 × 8 × 8"),
        ("UNet", (1, 20, 16), {}, "multiple of 1 × 8 × 8"),
        ("SegResNet", (16, 21, 16), {}, "multiple of 2 × 2 × 2"),
        ("SegResNet", (16, 20, 16), {"blocks_down": [1, 1, 1, 1], "blocks_up": [1, 1, 1]}, "multiple of 8 × 8 × 8"),
        ("SwinUNETR", (32, 48, 32), {}, "multiple of 32 × 32 × 32"),
        ("SwinUNETR", (32, 32, 32), {"feature_size": 16}, "multiple of 12"),
        ("SwinUNETR", (1, 32, 32), {}, "three dimensions"),
        ("DynUNet", (9, 9, 9), {}, "multiple of 4"),
        ("DenseNet121", (16, 32, 32), {}, "32 voxels"),
        ("NoNet", (16, 16, 16), {}, "MONAI has no network 'NoNet'"),
        ("UNet", (16, 16, 16), {"colour": "red"}, "network_args do not fit UNet: .*colour"),
        ("no_such_package:Net", (16, 16, 16), {}, "cannot be imported: No module named 'no_such_package'"),
        ("pathlib:Net", (16, 16, 16), {}, "cannot be imported: module 'pathlib' has no attribute 'Net'"),
        ("pathlib:Path", (16, 16, 16), {}, "no torch.nn.Module"),
    ],
)
def test_what_cannot_train_is_refused_with_a_reason(
    name: str, patch: tuple[int, int, int], args: dict[str, object], said: str
) -> None:
    task = "classification" if name == "DenseNet121" else "segmentation"
    with pytest.raises(TrainingError) as refused:
        network(plan(name, patch, network_args=args, task=task))
    assert re.search(said, str(refused.value))


def test_a_users_network_comes_by_its_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
from torch import nn

class Mine(nn.Conv3d):
    def __init__(self, spatial_dims, in_channels, out_channels, width):
        super().__init__(in_channels, out_channels, width, padding="same")
"""
    (tmp_path / "my_networks.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = plan("my_networks:Mine", network_args={"width": 3})
    net = network(made)
    assert isinstance(net, nn.Conv3d)
    assert logits(net, torch.randn(1, 2, *made.patch), made).shape == (1, 3, *made.patch)
    with pytest.raises(TrainingError, match="width"):
        network(plan("my_networks:Mine"))
    del sys.modules["my_networks"]


@pytest.mark.parametrize("name", ["DenseNet121", "EfficientNetBN", "SEResNet50", "resnet10"])
@pytest.mark.parametrize("patch", [(32, 32, 32), (1, 32, 32)])
def test_a_classifier_gives_a_score_a_structure(name: str, patch: tuple[int, int, int]) -> None:
    net = network(plan(name, patch, task="classification")).eval()
    with torch.inference_mode():
        assert net(torch.randn(1, 2, *patch[-3 if patch[0] > 1 else -2 :])).shape == (1, 2)


def test_precision_follows_the_plan_and_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, auto = torch.device("cpu"), plan("UNet", precision="auto", patch=(32, 32, 32))
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert precision(auto, cpu) == "32-true"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert precision(auto, cpu) == "bf16-mixed"
    for unsound in (replace(auto, patch=(16, 32, 32)), replace(auto, network="mine.nets:Net")):
        assert precision(unsound, cpu) == "32-true"
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert precision(auto, cpu) == "32-true"
    assert (precision(plan("UNet"), cpu), precision(plan("UNet", precision="bf16"), cpu)) == ("32-true", "bf16-mixed")


def test_bf16_on_a_cpu_computes_near_float32_and_channels_last() -> None:
    made, exact = plan("SegResNet", network_args={"init_filters": 8}, precision="bf16"), plan("SegResNet")
    net, image = network(made).eval(), torch.randn(1, 2, 16, 24, 16)
    kernels = [p for p in net.parameters() if p.ndim == 5 and 1 not in p.shape]
    assert kernels and all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in kernels)
    answers = []
    for each in (made, exact):
        with torch.inference_mode(), autocast(each, torch.device("cpu")):
            answers.append(logits(net, image, each))
    assert answers[0].dtype == torch.bfloat16 and answers[1].dtype == torch.float32
    assert (answers[0].float() - answers[1]).abs().mean() < 0.05 * answers[1].abs().mean()
