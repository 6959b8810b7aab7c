"""Patch and batch follow from memory."""

from pathlib import Path

import pytest
import torch

from datamodules.plan import Plan
from training.errors import TrainingError
from training.loss import supervised_loss
from training.network import network, outputs
from training.sizing import device_memory, sized, step_bytes, suited

CPU, GPU = torch.device("cpu"), torch.device("cuda")
MIB = 2**20
BASE = {"spacing": (1.0, 1.0, 1.0), "structures": ("a", "b"), "values": (1, 2), "precision": "bf16", "network_args": {}}


def plan(name: str = "DynUNet", patch: tuple[int, int, int] = (64, 96, 64), **changes: object) -> Plan:
    return Plan.from_dict({**BASE, "network": name, "patch": patch, **changes})


@pytest.mark.parametrize("name", ["DynUNet", "UNet"])
def test_more_memory_is_never_less_and_never_exceeded(name: str) -> None:
    seen = []
    for memory in (400 * MIB, 1200 * MIB, 5000 * MIB, 40000 * MIB):
        made = sized(plan(name, deep_supervision=name == "DynUNet"), memory, on=GPU)
        assert step_bytes(made, GPU) <= memory
        network(made)  # its patch fits it
        seen.append(made.batch * made.patch[0] * made.patch[1] * made.patch[2])
    assert seen == sorted(seen)
    assert len(set(seen)) > 1
    assert made.batch == 8 and made.patch == (64, 96, 64)


def test_the_longest_side_gives_way_first_and_a_cpu_keeps_its_batch() -> None:
    whole = plan(patch=(64, 128, 64))
    made = sized(whole, step_bytes(whole, CPU) - 1, on=CPU)
    assert made.patch[0] == made.patch[2] == 64 and made.patch[1] < 128
    assert sized(whole, 10**12, on=CPU).batch == 2


def test_what_is_given_stays() -> None:
    own = plan(batch=3)
    assert sized(own, MIB, on=GPU, given={"patch", "batch"}) == own
    assert sized(own, 10**12, on=GPU, given={"batch"}).batch == 3
    assert sized(own, 10**12, on=GPU, given={"patch"}).batch == 8


def test_a_patch_comes_to_what_the_network_asks_for() -> None:
    assert sized(plan("UNet", (36, 20, 4)), 10**12, on=CPU).patch == (32, 16, 8)


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(TrainingError, match="GiB"):
        sized(plan(), MIB, on=GPU)


def test_a_network_that_cannot_run_on_its_patch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from torch import nn\nclass Wide(nn.Conv3d):\n    def __init__(self, spatial_dims, in_channels, out_channels):"
    (tmp_path / "wide_network.py").write_text(f"{code}\n        super().__init__(in_channels, out_channels, 99)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TrainingError, match=r"cannot take a patch of \(64, 96, 64\)"):
        step_bytes(plan("wide_network:Wide"), CPU)


def test_the_count_is_near_what_a_step_really_saves() -> None:
    made = plan(patch=(16, 16, 16), precision="32", network_args={"filters": [8, 8, 16]})
    net = network(made)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        heads = outputs(net, torch.randn(2, 1, 16, 16, 16), made)
        supervised_loss(heads, torch.zeros(2, 16, 16, 16, dtype=torch.uint8), torch.ones(2, 2, dtype=torch.bool))
    assert sum(kept.values()) < step_bytes(made, CPU) < 4 * sum(kept.values())


def test_a_gpu_gets_the_larger_network_unless_one_is_given() -> None:
    small = plan("UNet")
    assert suited(small, CPU, {"steps"}) == small
    assert suited(small, CPU).network == "UNet" and suited(small, CPU).steps > small.steps
    assert suited(small, GPU).network == "DynUNet" and suited(small, GPU).deep_supervision
    assert suited(small, GPU, {"network"}) == small
    assert suited(small, GPU, {"steps"}).steps == small.steps
    assert suited(plan("UNet", (1, 64, 64), task="classification"), CPU).network == "DenseNet121"
    assert suited(plan("UNet", (16, 64, 64), task="classification"), CPU).network == "resnet10"


def test_this_machine_has_memory() -> None:
    assert device_memory() > 2**20
