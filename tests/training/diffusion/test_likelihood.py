"""The Monte-Carlo bound: its value, and that seeds alone decide it."""

from __future__ import annotations

import math

import pytest
import torch

from longspan.training.diffusion.likelihood import Bound, _draws, bound
from tests.models import VOCAB, random_ids
from tests.training.diffusion.tiny import tiny_denoiser


def test_a_model_that_knows_nothing_costs_log_of_its_vocabulary() -> None:
    denoiser = tiny_denoiser()
    with torch.no_grad():
        denoiser.head.weight.zero_()
    found = bound(denoiser, random_ids(120).view(3, 40), samples=10)
    assert torch.allclose(found.rows(), torch.full((3,), math.log(VOCAB), dtype=torch.float64))
    assert found.mean() == pytest.approx(math.log(VOCAB))
    assert found.mean(30) == pytest.approx(math.log(VOCAB))


def test_a_draw_counts_by_the_mean_over_its_masked_tokens() -> None:
    losses = torch.tensor([[[0, 1, 0, 3], [0, 0, 0, 8], [0, 2, 0, 0]]], dtype=torch.float64)
    found = Bound(losses=losses, masked=losses > 0)
    assert found.mean() == pytest.approx((2 + 8 + 2) / 3)
    assert found.mean(2) == pytest.approx((3 + 8) / 2)


def test_batches_do_not_change_it_and_seeds_do() -> None:
    denoiser = tiny_denoiser()
    ids = random_ids(120).view(3, 40)
    whole = bound(denoiser, ids, samples=4, seed=1)
    cut = bound(denoiser, ids, samples=4, seed=1, batch_tokens=80)
    assert torch.allclose(whole.losses, cut.losses)
    assert torch.equal(whole.masked, cut.masked)
    assert whole.mean() != bound(denoiser, ids, samples=4, seed=2).mean()


def test_numbers_of_masks_are_spread_over_the_text() -> None:
    masked = _draws(2, 101, 10, 0)
    assert [int(count - 1) // 10 for count in masked.sum(1)] == 2 * list(range(10))
    assert not masked[:, 0].any()
