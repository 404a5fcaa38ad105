from __future__ import annotations

import logging
import math

import pytest
import torch

from longspan.engine.api import load
from longspan.methods.positions.yarn import Yarn
from tests.methods.positions.small import (
    HEAD_DIM,
    WINDOW,
    default_frequencies,
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


def ramp_by_hand(factor: float, fast: float, slow: float) -> torch.Tensor:
    """YaRN's frequencies, the ends of the ramp rounded to whole dims as in the authors' code."""

    def dim_of(turns: float) -> float:
        return HEAD_DIM * math.log(WINDOW / (turns * 2 * math.pi)) / (2 * math.log(10_000.0))

    low, high = max(math.floor(dim_of(fast)), 0), min(math.ceil(dim_of(slow)), HEAD_DIM - 1)
    blended = []
    for i, frequency in enumerate(default_frequencies().tolist()):
        keep = 1 - min(max((i - low) / (high - low), 0), 1)
        blended.append(frequency * keep + frequency / factor * (1 - keep))
    return torch.tensor(blended, dtype=torch.float64)


@pytest.mark.parametrize(("factor", "fast", "slow"), [(2.0, 32.0, 1.0), (16.0, 32.0, 1.0), (4.0, 8.0, 2.0)])
def test_frequencies_and_scaling_by_hand(factor, fast, slow):
    got = Yarn(factor=factor, beta_fast=fast, beta_slow=slow).rope(one_rope())
    assert torch.allclose(got.inv_freq.double(), ramp_by_hand(factor, fast, slow), rtol=1e-5, atol=0)
    assert got.scaling == pytest.approx(0.1 * math.log(factor) + 1)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_equals_transformers_yarn(kv_heads):
    ids = some_ids(301)
    stock = stock_rope(
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": WINDOW}, kv_heads=kv_heads
    )
    with torch.no_grad():
        wanted = stock(ids[None]).logits[0]
    got = read_logits(load(small_llama(kv_heads=kv_heads), "yarn(factor=4)"), ids, chunk_tokens=77)
    assert worst(got, wanted) < 1e-5


@pytest.mark.parametrize("chunk_tokens", [1024, 17])
def test_reading_equals_pairwise_rotation(chunk_tokens):
    ids, model = some_ids(121), small_llama()
    distances = pair_distances(121)
    frequencies = ramp_by_hand(8.0, 32.0, 1.0)
    wanted = pairwise_logits(
        model, ids, distances=distances, frequencies=frequencies, cos_scaling=0.1 * math.log(8) + 1
    )
    got = read_logits(load(model, "yarn(factor=8)"), ids, chunk_tokens=chunk_tokens)
    assert worst(got, wanted) < 1e-5
    assert worst(got, pairwise_logits(model, ids, distances=distances, frequencies=frequencies)) > 0.01
    assert worst(got, pairwise_logits(model, ids, distances=distances / 8)) > 0.05


def test_factor_one_changes_nothing():
    rope = one_rope()
    assert Yarn(factor=1).rope(rope) is rope


def test_nothing_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        Yarn(factor=3).rope(one_rope())
    assert caplog.records == []


def test_bad_settings():
    with pytest.raises(ValueError, match=r"got factor=0.5; allowed is 1 \(no change\) or more"):
        Yarn(factor=0.5)
    for fast, slow in ((1.0, 1.0), (1.0, 32.0), (32.0, 0.0)):
        with pytest.raises(ValueError, match=r"allowed is 0 < beta_slow < beta_fast"):
            Yarn(factor=2, beta_fast=fast, beta_slow=slow)


def test_models_without_rotary_positions_are_refused():
    with pytest.raises(ValueError, match="yarn changes rotary positions, but no layer of toy"):
        Yarn(factor=2).check(one_model(one_layer()))
