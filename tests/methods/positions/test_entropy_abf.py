from __future__ import annotations

import math

import pytest
import torch

from longspan.engine.api import load
from longspan.methods.positions.entropy_abf import EntropyAbf
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
    worst,
)

TOKENS = 200


def by_hand(model, ids, *, theta: float, window: int, unscaled_layers: int) -> torch.Tensor:
    scales = [max(1.0, math.log(i) / math.log(window)) for i in range(1, len(ids) + 1)]
    plain = torch.ones(len(ids))
    num_layers = model.config.num_hidden_layers
    per_layer = [plain if index < unscaled_layers else torch.tensor(scales) for index in range(num_layers)]
    frequencies = theta ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    distances = pair_distances(len(ids))
    return pairwise_logits(model, ids, distances=distances, frequencies=frequencies, query_scales=per_layer)


@pytest.mark.parametrize("chunk_tokens", [1024, 64, 7])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_reading_equals_the_formula(chunk_tokens, kv_heads):
    ids, model = some_ids(TOKENS), small_llama(layers=3, kv_heads=kv_heads)
    got = read_logits(
        load(model, "entropy_abf(theta=50000, window_tokens=16)"), ids, chunk_tokens=chunk_tokens
    )
    assert worst(got, by_hand(model, ids, theta=50_000.0, window=16, unscaled_layers=2)) < 1e-5


def test_which_layers_are_scaled_matters():
    ids, model = some_ids(TOKENS), small_llama(layers=3)
    loaded = load(model)
    for unscaled in (0, 1, 2):
        span = loaded.with_methods(f"entropy_abf(theta=50000, window_tokens=16, unscaled_layers={unscaled})")
        got = read_logits(span, ids, chunk_tokens=50)
        assert worst(got, by_hand(model, ids, theta=50_000.0, window=16, unscaled_layers=unscaled)) < 1e-5
        other = by_hand(model, ids, theta=50_000.0, window=16, unscaled_layers=unscaled + 1)
        assert worst(got, other) > 1e-3


def test_tokens_after_reading_are_scaled_by_their_own_position():
    ids, model = some_ids(120), small_llama(layers=3)
    span = load(model, "entropy_abf(theta=50000, window_tokens=16)")
    wanted = by_hand(model, ids, theta=50_000.0, window=16, unscaled_layers=2)[100:]
    assert worst(decoded_logits(span, ids, num_read=100), wanted) < 1e-5


def test_scale_values():
    layer = one_layer(index=2, rope=one_rope(window_tokens=4096))
    scale = EntropyAbf().logit_scale(torch.tensor([[0, 4095, 4096, 16383]]), layer)
    assert scale.shape == (1, 4)
    assert scale[0, :2].tolist() == [1.0, 1.0]
    assert scale[0, 2] > 1
    assert float(scale[0, 3]) == pytest.approx(math.log(16384) / math.log(4096))
    assert EntropyAbf().logit_scale(torch.tensor([[9999]]), one_layer(index=1, rope=one_rope())) is None


def test_the_models_own_base_changes_no_frequency():
    rope = one_rope()
    assert EntropyAbf(theta=10_000.0).rope(rope) is rope
    assert EntropyAbf(theta=None).rope(rope) is rope
    raised = EntropyAbf().rope(rope)
    assert float(raised.inv_freq[-1]) == pytest.approx(500_000.0 ** (-14 / 16))
    assert raised.window_tokens == rope.window_tokens


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"theta": 1.0}, "got theta=1; give a base above the model's own"),
        ({"theta": float("inf")}, "got theta=inf"),
        ({"window_tokens": 1}, "got window_tokens=1; allowed is 2 or more"),
        ({"unscaled_layers": -1}, "got unscaled_layers=-1; allowed is 0 or more"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        EntropyAbf(**settings)


def test_bases_below_the_models_own_are_refused():
    with pytest.raises(
        ValueError, match=r"got theta=5000, but toy has 10000 in layer 0; give theta=10000 or more"
    ):
        EntropyAbf(theta=5000.0).check(one_model(one_layer(rope=one_rope())))
    with pytest.raises(ValueError, match="entropy_abf changes rotary positions, but no layer of toy"):
        EntropyAbf().check(one_model(one_layer()))
