from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longspan.engine.api import load
from longspan.methods.positions.ntk import NtkAware
from tests.methods.positions.small import (
    HEAD_DIM,
    WINDOW,
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


@pytest.mark.parametrize(("dynamic_factor", "ratio"), [(1.0, 3.0), (2.0, 2.0), (4.0, 1.5)])
@pytest.mark.parametrize("rotary_dims", [8, 16, 64])
def test_equals_transformers_dynamic_at_its_matching_factor(dynamic_factor, ratio, rotary_dims):
    config = LlamaConfig(
        hidden_size=rotary_dims,
        num_attention_heads=1,
        head_dim=rotary_dims,
        max_position_embeddings=WINDOW,
        rope_parameters={"rope_type": "dynamic", "factor": dynamic_factor, "rope_theta": 10_000.0},
    )
    wanted, scaling = ROPE_INIT_FUNCTIONS["dynamic"](config, torch.device("cpu"), seq_len=int(ratio * WINDOW))
    got = NtkAware(factor=dynamic_factor * ratio - (dynamic_factor - 1)).rope(
        one_rope(rotary_dims=rotary_dims)
    )
    assert torch.allclose(got.inv_freq, wanted, rtol=1e-5, atol=0)
    assert got.scaling == scaling == 1.0


def test_the_slowest_frequency_is_divided_by_the_factor_and_the_fastest_stays():
    plain, scaled = (
        one_rope(rotary_dims=64).inv_freq,
        NtkAware(factor=5).rope(one_rope(rotary_dims=64)).inv_freq,
    )
    ratio = plain / scaled
    assert ratio[0] == 1
    assert abs(float(ratio[-1]) - 5) < 1e-4
    assert bool((ratio.diff() > 0).all())


@pytest.mark.parametrize("chunk_tokens", [1024, 64, 13])
def test_reading_equals_pairwise_rotation(chunk_tokens):
    ids, model = some_ids(131), small_llama()
    base = 10_000.0 * 3 ** (HEAD_DIM / (HEAD_DIM - 2))
    frequencies = base ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    wanted = pairwise_logits(model, ids, distances=pair_distances(131), frequencies=frequencies)
    got = read_logits(load(model, "ntk(factor=3)"), ids, chunk_tokens=chunk_tokens)
    assert worst(got, wanted) < 1e-5
    assert worst(got, pairwise_logits(model, ids, distances=pair_distances(131))) > 0.05


def test_factor_one_changes_nothing():
    rope = one_rope()
    assert NtkAware(factor=1).rope(rope) is rope


@pytest.mark.parametrize("factor", [0.99, -1.0, float("nan")])
def test_bad_factors(factor):
    with pytest.raises(ValueError, match=r"got factor=.*; allowed is 1 \(no change\) or more"):
        NtkAware(factor=factor)


def test_models_without_rotary_positions_are_refused():
    with pytest.raises(ValueError, match="ntk changes rotary positions, but no layer of toy"):
        NtkAware(factor=2).check(one_model(one_layer()))
