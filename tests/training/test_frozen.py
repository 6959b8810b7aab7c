"""A frozen network answers as the network does, whatever the device makes of it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from datamodules.plan import Plan
from training.frozen import FrozenNet
from training.network import network

PLAN = Plan(
    spacing=(1.0, 1.0, 1.0),
    structures=("a",),
    values=(1,),
    patch=(8, 8, 8),
    batch=3,
    precision="32",
    network_args={"channels": [4, 8], "strides": [2], "dropout": 0.3},
)


def test_answers_in_evaluation_mode_and_float32() -> None:
    net, image = network(PLAN).train(), torch.randn(2, 1, 8, 8, 8)
    for plan in (PLAN, replace(PLAN, precision="bf16")):
        answer = FrozenNet(net, plan)(image)
        assert answer.dtype == torch.float32
        with torch.no_grad():
            assert torch.allclose(answer, net.eval()(image), atol=0.1 if plan.precision == "bf16" else 1e-6)


def test_dropout_draws_the_same_network_for_every_window() -> None:
    frozen, image = FrozenNet(network(PLAN), PLAN), torch.randn(1, 1, 8, 8, 8)
    assert frozen.has_dropout
    assert torch.equal(frozen.sample(image, 5), frozen.sample(image, 5))
    assert not torch.equal(frozen.sample(image, 5), frozen.sample(image, 6))
    assert torch.equal(frozen(image), frozen(image))


def test_a_compiled_network_sees_full_batches_of_patches_alone() -> None:
    seen: list[tuple[int, ...]] = []

    class Seen(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(image.shape))
            return net(image)

    net = network(PLAN).eval()
    frozen = FrozenNet(net, PLAN)
    frozen._compiled = Seen()
    for shape in ((3, 1, 8, 8, 8), (1, 1, 8, 8, 8), (2, 1, 8, 8, 16)):
        image = torch.randn(shape)
        assert torch.allclose(frozen(image), net(image), atol=1e-5)
    assert seen == [(3, 1, 8, 8, 8)] * 2


def test_a_network_that_cannot_be_compiled_answers_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> object:
        raise ValueError("no compiler here")

    net, image = network(PLAN).eval(), torch.randn(1, 1, 8, 8, 8)
    frozen = FrozenNet(net, PLAN)
    frozen._compiled = torch.compile(net, backend=broken)
    assert torch.allclose(frozen(image), net(image), atol=1e-5)
    assert frozen._compiled is None
    assert "cannot be compiled" in caplog.text
