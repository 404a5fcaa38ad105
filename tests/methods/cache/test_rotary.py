"""Rotation undone: scaled, partial, and with first positions that turn apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longspan.methods.cache._rotary import cos_sin, rotated, unrotated
from longspan.model_info import Rope

INV_FREQ = 1.0 / 10_000 ** (torch.arange(0, 8, 2) / 8)


def rope(**settings: Any) -> Rope:
    given = {"scaling": 1.0, "theta": 10_000.0, "window_tokens": 64, "rotary_dims": 8, **settings}
    return Rope(inv_freq=INV_FREQ, **given)


@pytest.mark.parametrize("head_dim", [8, 12])
@pytest.mark.parametrize(
    "settings", [{}, {"scaling": 1.3}, {"start_tokens": 3, "start_inv_freq": INV_FREQ * 2}]
)
def test_unrotated_undoes_rotated(settings: dict[str, Any], head_dim: int) -> None:
    x = torch.randn(2, 3, 5, head_dim, generator=torch.Generator().manual_seed(0))
    at = torch.tensor([[[0, 1, 2, 3, 4]], [[7, 9, 30, 31, 500]]])
    turned = rotated(x, at, rope(**settings))
    assert (turned - x).abs().max() > 0.1
    torch.testing.assert_close(unrotated(turned, at, rope(**settings)), x, atol=1e-5, rtol=1e-5)


def test_first_positions_turn_by_their_own_frequencies() -> None:
    cos, _ = cos_sin(torch.tensor([2, 3]), rope(start_tokens=3, start_inv_freq=INV_FREQ * 2))
    torch.testing.assert_close(cos[0, :4], (2 * INV_FREQ * 2).cos())
    torch.testing.assert_close(cos[1, :4], (3 * INV_FREQ).cos())


def test_without_an_embedding_nothing_turns() -> None:
    x = torch.ones(1, 1, 1, 8)
    assert rotated(x, torch.ones(1, 1, 1, dtype=torch.long), None) is x
    assert unrotated(x, torch.ones(1, 1, 1, dtype=torch.long), None) is x
