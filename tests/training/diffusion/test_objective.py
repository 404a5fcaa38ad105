"""LLaDA's objective: its value, which tokens are masked, and how often."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from longspan.training.diffusion import objective
from longspan.training.diffusion.objective import corrupt, draw_rates, masked_losses

MASK = 9


def test_the_loss_is_cross_entropy_of_masked_tokens_over_t_and_allowed_tokens() -> None:
    """One row, by hand: two of the four tokens that may be masked are, at t = 0.5, and the model gives them 1/4 and 1/2."""
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    allowed = torch.tensor([[False, True, True, True, True, False]])
    seeds = (
        corrupt(ids, allowed, torch.tensor([0.5]), mask_id=MASK, generator=_generator(s)) for s in range(99)
    )
    made = next(found for found in seeds if len(found.places) == 2)
    logits = torch.zeros(2, 10)
    logits[0, made.targets[0]] = math.log(3.0)  # 3 / (3 + 9)
    logits[1, made.targets[1]] = math.log(9.0)  # 9 / (9 + 9)
    losses = masked_losses(logits, nn.Identity(), made.targets)
    by_hand = (math.log(4) + math.log(2)) / 0.5 / 4
    assert float((losses * made.weights).sum()) == pytest.approx(by_hand)


def test_masks_stand_where_they_may_and_nothing_else_changes() -> None:
    ids = torch.randint(10, 50, (64, 40), generator=_generator(0))
    ids[5, 7] = MASK
    allowed = torch.rand(ids.shape, generator=_generator(1)) < 0.5
    rates = torch.ones(64)
    made = corrupt(ids, allowed, rates, mask_id=MASK, generator=_generator(2))
    expected = allowed & (ids != MASK)
    expected[:, 0] = False
    found = torch.zeros_like(expected).view(-1)
    found[made.places] = True
    assert torch.equal(found.view(ids.shape), expected)
    assert torch.equal(made.given, ids.masked_fill(expected, MASK))
    assert torch.equal(made.targets, ids.flatten()[made.places])
    sums = torch.zeros(64).index_add_(0, made.places // 40, made.weights)
    assert torch.allclose(sums, torch.ones(64))


def test_each_token_is_masked_with_its_rows_probability() -> None:
    ids = torch.full((2, 20_001), 3)
    made = corrupt(
        ids,
        torch.ones_like(ids, dtype=torch.bool),
        torch.tensor([0.1, 0.7]),
        mask_id=MASK,
        generator=_generator(0),
    )
    share = (made.given == MASK).float().mean(1)
    assert torch.allclose(share, torch.tensor([0.1, 0.7]), atol=0.01)


def test_rates_are_spread_over_0_to_1() -> None:
    rates = draw_rates(100, _generator(0), least=1e-3)
    assert ((rates * 100).ceil().sort().values == torch.arange(1, 101)).all()
    assert not torch.equal(rates, rates.sort().values)
    assert float(draw_rates(10_000, _generator(1), least=0.02).min()) == pytest.approx(0.02)


def test_losses_in_pieces_equal_losses_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head = nn.Linear(8, 20)
    hidden = torch.randn(13, 8, requires_grad=True)
    targets = torch.randint(0, 20, (13,))
    whole = masked_losses(hidden, head, targets)
    whole.sum().backward()
    gradient, hidden.grad = hidden.grad, None
    monkeypatch.setattr(objective, "LOSS_TOKENS", 5)
    parts = masked_losses(hidden, head, targets)
    parts.sum().backward()
    assert torch.allclose(parts, whole)
    assert gradient is not None and hidden.grad is not None
    assert torch.allclose(hidden.grad, gradient)


def test_a_step_without_a_mask_has_no_loss() -> None:
    hidden = torch.zeros(0, 8, requires_grad=True)
    losses = masked_losses(hidden, nn.Linear(8, 4), torch.zeros(0, dtype=torch.int64))
    losses.sum().backward()
    assert losses.shape == (0,)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
