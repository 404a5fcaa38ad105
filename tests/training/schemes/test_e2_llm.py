"""E2-LLM: scale and offset of a row belong together, first tokens stay, interpolated positions stay in the trained range."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longspan.errors import SpecError
from longspan.model_info import Rope
from longspan.training.registry import resolve_scheme

WINDOW, TARGET, DRAWS = 64, 256, 2000
ROPE = Rope(
    inv_freq=1e4 ** -(torch.arange(0, 16, 2) / 16),
    scaling=1.0,
    theta=1e4,
    window_tokens=WINDOW,
    rotary_dims=16,
)


def drawn(spec: str = "e2_llm") -> tuple[np.ndarray, np.ndarray]:
    """Positions `[rows, T]` and scales `[rows]`, each row with generators in the same state, as the trainer has them."""
    scheme = resolve_scheme(spec)
    places, scales = [], []
    for row in range(DRAWS):
        places.append(scheme.positions(WINDOW, TARGET, np.random.default_rng((1, row))))
        rope = scheme.rope(ROPE, TARGET, np.random.default_rng((1, row)))
        ratios = ROPE.inv_freq / rope.inv_freq
        assert torch.allclose(ratios, ratios[0].expand_as(ratios))
        scales.append(round(float(ratios[0])))
    return np.stack(places), np.array(scales)


def test_scales_are_even_and_offsets_follow_them() -> None:
    positions, scales = drawn()
    assert resolve_scheme("e2_llm").row_tokens(WINDOW, TARGET) == WINDOW
    assert np.bincount(scales, minlength=5)[0] == 0
    assert (np.abs(np.bincount(scales)[1:] - DRAWS / 4) < 5 * np.sqrt(DRAWS / 4)).all()
    assert (positions[:, :4] == np.arange(4)).all()
    assert (np.diff(positions, axis=1) >= 1).all()
    assert (np.diff(positions[:, 4:], axis=1) == 1).all()
    offsets = positions[:, 4] - 4
    for scale in range(1, 5):
        found = offsets[scales == scale]
        assert found.min() >= 0
        assert found.max() <= (scale - 1) * WINDOW
        assert abs(found.mean() - (scale - 1) * WINDOW / 2) < 8
    assert positions.max() < TARGET
    assert (positions[:, -1] / scales < WINDOW).all()


def test_no_first_tokens_and_more_scales() -> None:
    positions, scales = drawn("e2_llm(max_scale=8, fixed_tokens=0)")
    assert scales.max() == 8
    assert (np.diff(positions, axis=1) == 1).all()
    assert positions[:, 0].max() > 0
    assert positions.max() < TARGET


def test_it_is_run_with_linear_interpolation() -> None:
    assert resolve_scheme("e2_llm").spec(ROPE, TARGET) == "pi(factor=4.0)"
    assert resolve_scheme("e2_llm").spec(ROPE, 224) == "pi(factor=3.5)"


def test_refusals() -> None:
    with pytest.raises(
        ValueError, match=r"reaches 128 tokens, and the target is 256; give max_scale=4 or more"
    ):
        resolve_scheme("e2_llm(max_scale=2)").row_tokens(WINDOW, TARGET)
    with pytest.raises(SpecError, match="got max_scale=1; allowed is 2 or more"):
        resolve_scheme("e2_llm(max_scale=1)")
    with pytest.raises(SpecError, match="got fixed_tokens=-1"):
        resolve_scheme("e2_llm(fixed_tokens=-1)")
