from __future__ import annotations

import pytest
import torch

from longspan.engine.api import load
from longspan.errors import SpecError
from longspan.methods.positions.pi import PositionInterpolation
from tests.methods.positions.small import (
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


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_equals_transformers_linear_scaling(kv_heads):
    ids = some_ids(301)
    stock = stock_rope({"rope_type": "linear", "factor": 2.5}, kv_heads=kv_heads)
    with torch.no_grad():
        wanted = stock(ids[None]).logits[0]
    span = load(small_llama(kv_heads=kv_heads), "pi(factor=2.5)")
    assert worst(read_logits(span, ids, chunk_tokens=97), wanted) < 1e-5


def test_equals_distances_divided_by_the_factor():
    ids = some_ids(97)
    model = small_llama()
    wanted = pairwise_logits(model, ids, distances=pair_distances(97) / 4)
    unscaled = pairwise_logits(model, ids, distances=pair_distances(97))
    got = read_logits(load(model, "pi(factor=4)"), ids, chunk_tokens=31)
    assert worst(got, wanted) < 1e-5
    assert worst(got, unscaled) > 0.05


def test_factor_one_changes_nothing():
    rope = one_rope()
    assert PositionInterpolation(factor=1).rope(rope) is rope


def test_partial_rotary_keeps_its_dims():
    scaled = PositionInterpolation(factor=2).rope(one_rope(rotary_dims=8))
    assert torch.equal(scaled.inv_freq, one_rope(rotary_dims=8).inv_freq / 2)
    assert scaled.rotary_dims == 8 and scaled.window_tokens == 256


@pytest.mark.parametrize("factor", [0.5, 0.0, -2.0, float("inf"), float("nan")])
def test_bad_factors(factor):
    with pytest.raises(ValueError, match=r"got factor=.*; allowed is 1 \(no change\) or more"):
        PositionInterpolation(factor=factor)


def test_the_factor_must_be_given():
    with pytest.raises(SpecError, match="pi needs factor"):
        load(small_llama(), "pi()")


def test_models_without_rotary_positions_are_refused():
    with pytest.raises(ValueError, match="pi changes rotary positions, but no layer of toy"):
        PositionInterpolation(factor=2).check(one_model(one_layer(), one_layer(index=1)))
    PositionInterpolation(factor=2).check(one_model(one_layer(rope=one_rope()), one_layer(index=1)))


def test_models_that_scale_themselves_are_refused():
    with pytest.raises(ValueError, match="already scales its own"):
        load(stock_rope({"rope_type": "linear", "factor": 2.0}), "pi(factor=2)")
