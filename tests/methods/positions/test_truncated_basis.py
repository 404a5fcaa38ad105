from __future__ import annotations

import math

import pytest
import torch

from longspan.engine.api import load
from longspan.methods.positions.truncated_basis import TruncatedBasis
from tests.methods.positions.small import (
    HEAD_DIM,
    WINDOW,
    decoded_logits,
    default_frequencies,
    one_layer,
    one_model,
    one_rope,
    pair_distances,
    pairwise_logits,
    read_logits,
    small_llama,
    some_ids,
    worst,
)


def truncated_by_hand(window: int, zero_below: float = 8.0, rho_below: float = 16.0) -> torch.Tensor:
    """The paper's three cases, one frequency at a time."""
    b = 2 * math.pi / window
    a, rho = b / zero_below, b / rho_below
    found = []
    for theta in default_frequencies().tolist():
        if theta >= b:
            found.append(theta)
        elif a < theta < b:
            found.append(rho)
        else:
            found.append(0.0)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize(
    ("window", "zero_below", "rho_below"), [(256, 8.0, 16.0), (64, 2.0, 4.0), (16, 100.0, 50.0)]
)
def test_frequencies_by_hand(window, zero_below, rho_below):
    method = TruncatedBasis(window_tokens=window, zero_below=zero_below, rho_below=rho_below)
    wanted = truncated_by_hand(window, zero_below, rho_below)
    assert torch.allclose(method.rope(one_rope()).inv_freq.double(), wanted, rtol=1e-6, atol=0)


def test_all_three_cases_occur_with_the_authors_settings():
    got = TruncatedBasis().rope(one_rope()).inv_freq
    assert got.tolist() == pytest.approx(
        [1.0, 0.1**0.5, 0.1, 0.1**1.5, *[2 * math.pi / WINDOW / 16] * 2, 0.0, 0.0], rel=1e-5
    )


@pytest.mark.parametrize("chunk_tokens", [1024, 64, 13])
def test_reading_equals_pairwise_rotation(chunk_tokens):
    ids, model = some_ids(131), small_llama()
    distances = pair_distances(131)
    wanted = pairwise_logits(model, ids, distances=distances, frequencies=truncated_by_hand(128))
    got = read_logits(load(model, "truncated_basis(window_tokens=128)"), ids, chunk_tokens=chunk_tokens)
    assert worst(got, wanted) < 1e-5
    assert worst(got, pairwise_logits(model, ids, distances=distances)) > 0.01


def test_tokens_after_reading_have_the_same_frequencies():
    ids, model = some_ids(110), small_llama()
    wanted = pairwise_logits(model, ids, distances=pair_distances(110), frequencies=truncated_by_hand(WINDOW))
    got = decoded_logits(load(model, "truncated_basis()"), ids, num_read=100)
    assert worst(got, wanted[100:]) < 1e-5


def test_where_every_frequency_turns_often_enough_nothing_changes():
    rope = one_rope()
    slowest_turn = 2 * math.pi / float(rope.inv_freq[-1])
    assert TruncatedBasis(window_tokens=math.ceil(slowest_turn)).rope(rope) is rope
    assert TruncatedBasis(window_tokens=math.floor(slowest_turn)).rope(rope) is not rope


def test_partial_rotary_keeps_its_dims():
    cut = TruncatedBasis().rope(one_rope(rotary_dims=HEAD_DIM // 2))
    assert cut.inv_freq.shape == (4,) and cut.rotary_dims == HEAD_DIM // 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_tokens": 0}, "got window_tokens=0; allowed is 1 or more, or none"),
        (
            {"zero_below": 0.5},
            "got zero_below=0.5; it divides the cutoff frequency, and allowed is 1 or more",
        ),
        ({"rho_below": float("inf")}, "got rho_below=inf; it divides the cutoff frequency"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        TruncatedBasis(**settings)


def test_models_without_rotary_positions_are_refused():
    with pytest.raises(ValueError, match="truncated_basis changes rotary positions, but no layer of toy"):
        TruncatedBasis().check(one_model(one_layer()))
