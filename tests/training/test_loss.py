"""What the loss learns from, and what it leaves alone."""

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from training.loss import masked_loss, supervised_loss, volume_loss

MASK = torch.zeros(2, 4, 6, 6, dtype=torch.uint8)
MASK[:, 1:3, 1:3, 1:3] = 1
MASK[:, 1:3, 4:6, 4:6] = 2
ALL, NOT_SECOND = (torch.tensor([[True, second]] * 2) for second in (True, False))
UNEVEN = MASK.clone()  # the second case has one structure only, and says nothing of the other
UNEVEN[1][MASK[1] == 1] = 0
MIXED = torch.tensor([[True, True], [False, True]])


def gradient(mask: torch.Tensor, annotated: torch.Tensor, seed: int = 0) -> torch.Tensor:
    logits = torch.randn(2, 3, *mask.shape[1:], generator=torch.Generator().manual_seed(seed)).requires_grad_()
    masked_loss(logits, mask, annotated).backward()
    assert logits.grad is not None
    return logits.grad


def test_a_structure_not_annotated_may_be_drawn_anyhow() -> None:
    elsewhere = torch.where(MASK == 2, 0, MASK)
    elsewhere[:, 0, 0, :] = 2
    assert torch.equal(gradient(MASK, NOT_SECOND), gradient(elsewhere, NOT_SECOND))
    assert not torch.allclose(gradient(MASK, ALL), gradient(elsewhere, ALL))


def test_a_structure_not_annotated_may_be_predicted_for_background() -> None:
    background, second = torch.full((2, 3, 4, 6, 6), -9.0), torch.full((2, 3, 4, 6, 6), -9.0)
    background[:, 0] = second[:, 2] = 9.0
    nothing = torch.zeros_like(MASK)
    assert torch.allclose(masked_loss(background, nothing, NOT_SECOND), masked_loss(second, nothing, NOT_SECOND), atol=1e-4)
    assert masked_loss(second, nothing, ALL) > masked_loss(background, nothing, ALL) + 1


def test_one_case_without_a_structure_does_not_hide_it_in_another() -> None:
    mixed = torch.tensor([[True, True], [True, False]])
    elsewhere = MASK.clone()
    elsewhere[1][MASK[1] == 2] = 0
    assert torch.equal(gradient(MASK, mixed), gradient(elsewhere, mixed))
    assert not torch.allclose(gradient(MASK, mixed)[0, 2], torch.zeros(4, 6, 6), atol=1e-6)


def test_nothing_annotated_teaches_nothing() -> None:
    assert gradient(MASK, torch.zeros(2, 2, dtype=torch.bool)).abs().max() < 1e-6


def test_an_empty_label_is_an_answer() -> None:
    empty, right = torch.zeros_like(MASK), torch.full((2, 3, 4, 6, 6), -12.0)
    right[:, 0] = 12.0
    assert masked_loss(right, empty, ALL) < 1e-3
    assert masked_loss(right.flip(1), empty, ALL) > 1


def test_a_right_answer_costs_nothing() -> None:
    right = 24 * torch.nn.functional.one_hot(MASK.long(), 3).movedim(-1, 1).float()
    assert masked_loss(right, MASK, ALL) < 1e-3


def test_heads_weigh_half_as_much_as_the_finer_one() -> None:
    fine = torch.randn(2, 3, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    coarse = torch.randn(2, 3, 2, 3, 3, generator=torch.Generator().manual_seed(2))
    nearest = MASK[:, 1::2, 1::2, 1::2]
    expected = (4 * masked_loss(fine, MASK, ALL) + 2 * masked_loss(fine, MASK, ALL) + masked_loss(coarse, nearest, ALL)) / 7
    assert torch.allclose(supervised_loss([fine, fine, coarse], MASK, ALL), expected)
    assert torch.equal(supervised_loss([fine], MASK, ALL), masked_loss(fine, MASK, ALL))


def test_a_volume_in_slabs_loses_as_much_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(1, 3, 4, 6, 6, generator=torch.Generator().manual_seed(3))
    whole = masked_loss(logits, MASK[:1], NOT_SECOND[:1])
    monkeypatch.setattr("training.loss.SLAB", 150)
    assert torch.allclose(volume_loss(logits, MASK[:1], NOT_SECOND[:1]), whole)


def share(rank: int, processes: int, store: str, found: Path) -> None:
    """A process's gradient of its half of a batch, averaged as DDP does."""
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
    weight = torch.ones(3, requires_grad=True)
    logits, annotated = scores(), MIXED
    mine = slice(rank, None, processes)
    loss = masked_loss(logits[mine] * weight.view(1, 3, 1, 1, 1), UNEVEN[mine], annotated[mine], across=True)
    loss.backward()
    together = torch.stack([loss.detach(), *weight.grad.unbind()]) / processes  # type: ignore[union-attr]
    distributed.all_reduce(together)
    if rank == 0:
        torch.save(together, found)
    distributed.destroy_process_group()


def scores() -> torch.Tensor:
    return torch.randn(2, 3, 4, 6, 6, generator=torch.Generator().manual_seed(4))


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    multiprocessing.spawn(share, (2, str(tmp_path / "store"), tmp_path / "found.pt"), nprocs=2)
    weight = torch.ones(3, requires_grad=True)
    loss = masked_loss(scores() * weight.view(1, 3, 1, 1, 1), UNEVEN, MIXED)
    loss.backward()
    alone = torch.stack([loss.detach(), *weight.grad.unbind()])  # type: ignore[union-attr]
    assert torch.allclose(torch.load(tmp_path / "found.pt"), alone, atol=1e-6)
    halves = torch.stack([masked_loss(scores()[[n]], UNEVEN[[n]], MIXED[[n]]) for n in range(2)])
    assert not torch.allclose(halves.mean(), loss, atol=1e-3)  # what the processes' own losses would have come to
