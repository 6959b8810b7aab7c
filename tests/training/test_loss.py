"""What the loss learns from, and what it leaves alone."""

import torch

from training.loss import masked_loss

MASK = torch.zeros(2, 4, 6, 6, dtype=torch.uint8)
MASK[:, 1:3, 1:3, 1:3] = 1
MASK[:, 1:3, 4:6, 4:6] = 2
ALL, NOT_SECOND = (torch.tensor([[True, second]] * 2) for second in (True, False))


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
