from __future__ import annotations

import pytest
import torch

from longspan.engine.api import load
from longspan.errors import SpecError
from longspan.methods.positions.rope_contraction import RopeContraction
from tests.methods.positions.small import (
    HEAD_DIM,
    decoded_logits,
    one_layer,
    one_model,
    one_rope,
    pair_distances,
    pairwise_logits,
    read_logits,
    small_llama,
    some_ids,
    stock_rope,
    worst,
)


def contracted_by_hand(factor: float) -> torch.Tensor:
    return (10_000.0 / factor) ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)


@pytest.mark.parametrize("chunk_tokens", [1024, 64, 13])
@pytest.mark.parametrize("factor", [1.5, 8.0])
def test_reading_equals_pairwise_rotation(chunk_tokens, factor):
    ids, model = some_ids(131), small_llama()
    distances = pair_distances(131)
    wanted = pairwise_logits(model, ids, distances=distances, frequencies=contracted_by_hand(factor))
    span = load(model, f"rope_contraction(factor={factor:g})")
    got = read_logits(span, ids, chunk_tokens=chunk_tokens)
    assert worst(got, wanted) < 1e-5
    assert worst(got, pairwise_logits(model, ids, distances=distances)) > 0.01


def test_tokens_after_reading_have_the_same_frequencies():
    ids, model = some_ids(110), small_llama()
    wanted = pairwise_logits(model, ids, distances=pair_distances(110), frequencies=contracted_by_hand(2.0))
    got = decoded_logits(load(model, "rope_contraction(factor=2)"), ids, num_read=100)
    assert worst(got, wanted[100:]) < 1e-5


def test_equals_transformers_with_the_lower_base():
    ids = some_ids(200)
    with torch.no_grad():
        wanted = stock_rope({"rope_type": "default", "rope_theta": 2_500.0})(ids[None]).logits[0]
    got = read_logits(load(small_llama(), "rope_contraction(factor=4)"), ids, chunk_tokens=77)
    assert worst(got, wanted) < 1e-5


def test_every_frequency_but_the_fastest_turns_faster():
    plain = one_rope(rotary_dims=64)
    ratio = RopeContraction(factor=4).rope(plain).inv_freq / plain.inv_freq
    assert ratio[0] == 1 and bool((ratio.diff() > 0).all())
    assert float(ratio[-1]) == pytest.approx(4 ** (62 / 64), rel=1e-4)


def test_factor_one_changes_nothing():
    rope = one_rope()
    assert RopeContraction(factor=1).rope(rope) is rope


@pytest.mark.parametrize("factor", [0.5, -1.0, float("nan")])
def test_bad_factors(factor):
    with pytest.raises(ValueError, match=r"got factor=.*; allowed is 1 \(no change\) or more"):
        RopeContraction(factor=factor)


def test_the_factor_must_be_given():
    with pytest.raises(SpecError, match="rope_contraction needs factor"):
        load(small_llama(), "rope_contraction()")


def test_models_that_it_cannot_serve_are_refused():
    with pytest.raises(ValueError, match=r"got factor=10000, but toy has a base of 10000 in layer 0"):
        RopeContraction(factor=10_000.0).check(one_model(one_layer(rope=one_rope())))
    with pytest.raises(ValueError, match="rope_contraction changes rotary positions, but no layer of toy"):
        RopeContraction(factor=2).check(one_model(one_layer()))
