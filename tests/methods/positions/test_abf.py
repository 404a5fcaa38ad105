from __future__ import annotations

import pytest
import torch

from longspan.engine.api import load
from longspan.methods.positions.abf import AdjustedBase
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


@pytest.mark.parametrize("chunk_tokens", [1024, 64, 13])
def test_reading_equals_pairwise_rotation(chunk_tokens):
    ids, model = some_ids(131), small_llama()
    frequencies = 500_000.0 ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    wanted = pairwise_logits(model, ids, distances=pair_distances(131), frequencies=frequencies)
    got = read_logits(load(model, "abf()"), ids, chunk_tokens=chunk_tokens)
    assert worst(got, wanted) < 1e-5
    assert worst(got, pairwise_logits(model, ids, distances=pair_distances(131))) > 0.05


def test_tokens_after_reading_have_the_same_base():
    ids, model = some_ids(110), small_llama()
    frequencies = 40_000.0 ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    wanted = pairwise_logits(model, ids, distances=pair_distances(110), frequencies=frequencies)[100:]
    assert worst(decoded_logits(load(model, "abf(theta=40000)"), ids, num_read=100), wanted) < 1e-5


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_equals_transformers_with_that_base(kv_heads):
    ids = some_ids(301)
    stock = stock_rope({"rope_type": "default", "rope_theta": 500_000.0}, kv_heads=kv_heads)
    with torch.no_grad():
        wanted = stock(ids[None]).logits[0]
    span = load(small_llama(kv_heads=kv_heads), "abf()")
    assert worst(read_logits(span, ids, chunk_tokens=77), wanted) < 1e-5


@pytest.mark.parametrize("rotary_dims", [8, 16, 128])
def test_the_slowest_frequency_slows_by_the_bases_ratio(rotary_dims):
    plain = one_rope(rotary_dims=rotary_dims)
    raised = AdjustedBase(theta=160_000.0).rope(plain)
    ratio = plain.inv_freq / raised.inv_freq
    assert ratio[0] == 1 and bool((ratio.diff() > 0).all())
    assert float(ratio[-1]) == pytest.approx(16 ** ((rotary_dims - 2) / rotary_dims), rel=1e-4)
    assert (raised.scaling, raised.window_tokens) == (1.0, plain.window_tokens)


def test_the_models_own_base_changes_nothing():
    rope = one_rope()
    assert AdjustedBase(theta=None).rope(rope) is rope
    assert AdjustedBase(theta=10_000.0).rope(rope) is rope
    assert AdjustedBase().theta == 500_000.0


@pytest.mark.parametrize("theta", [1.0, -5.0, float("inf"), float("nan")])
def test_bad_bases(theta):
    with pytest.raises(ValueError, match=r"got theta=.*; give a base above the model's own"):
        AdjustedBase(theta=theta)


def test_models_that_it_cannot_serve_are_refused():
    with pytest.raises(ValueError, match=r"got theta=5000, but toy has 10000 in layer 0; give theta=10000"):
        AdjustedBase(theta=5000.0).check(one_model(one_layer(rope=one_rope())))
    with pytest.raises(ValueError, match="abf changes rotary positions, but no layer of toy"):
        AdjustedBase().check(one_model(one_layer()))
    with pytest.raises(ValueError, match="already scales its own"):
        load(stock_rope({"rope_type": "linear", "factor": 2.0}), "abf()")
