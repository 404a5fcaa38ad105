from __future__ import annotations

import math

import pytest
import torch

from longspan.engine.api import load
from longspan.methods.positions.temp_scale import TempScale
from tests.methods.positions.small import (
    WINDOW,
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

SPECS = {
    "logn": "temp_scale(window_tokens=16)",
    "yarn": "temp_scale(form=yarn, window_tokens=16)",
    "constant": "temp_scale(form=constant, temperature=0.6, window_tokens=16)",
}


def scale_by_hand(form: str, i: int, window: int = 16) -> float:
    """The factor of the i-th token's logits, i from 1."""
    if i <= window:
        return 1.0
    if form == "logn":
        return math.log(i) / math.log(window)
    if form == "yarn":
        return (0.1 * math.log(i / window) + 1) ** 2
    return 1 / 0.6


def logits_by_hand(model, ids, form: str) -> torch.Tensor:
    scales = torch.tensor([scale_by_hand(form, i) for i in range(1, len(ids) + 1)])
    layers = [scales] * model.config.num_hidden_layers
    return pairwise_logits(model, ids, distances=pair_distances(len(ids)), query_scales=layers)


@pytest.mark.parametrize("chunk_tokens", [1024, 64, 7])
@pytest.mark.parametrize("form", SPECS)
def test_reading_equals_the_formula(form, chunk_tokens):
    ids, model = some_ids(150), small_llama()
    got = read_logits(load(model, SPECS[form]), ids, chunk_tokens=chunk_tokens)
    assert worst(got, logits_by_hand(model, ids, form)) < 1e-5
    assert worst(got, pairwise_logits(model, ids, distances=pair_distances(150))) > 0.01


@pytest.mark.parametrize("form", SPECS)
def test_tokens_after_reading_are_scaled_by_their_own_position(form):
    ids, model = some_ids(110), small_llama()
    got = decoded_logits(load(model, SPECS[form]), ids, num_read=100)
    assert worst(got, logits_by_hand(model, ids, form)[100:]) < 1e-5


@pytest.mark.parametrize("spec", ["temp_scale()", "temp_scale(form=constant, temperature=0.5)"])
def test_within_the_trained_window_nothing_changes_at_all(spec):
    ids, model = some_ids(WINDOW + 20), small_llama()
    loaded = load(model)
    plain = read_logits(loaded, ids, chunk_tokens=100)
    got = read_logits(loaded.with_methods(spec), ids, chunk_tokens=100)
    assert torch.equal(got[:WINDOW], plain[:WINDOW])
    assert bool((got[WINDOW:] != plain[WINDOW:]).any(-1).all())


def test_scale_values():
    layer = one_layer(rope=one_rope(window_tokens=4096))
    at = torch.tensor([[0, 4095, 4096, 16383]])
    scale = TempScale().logit_scale(at, layer)
    assert scale.shape == (1, 4) and scale[0, :2].tolist() == [1.0, 1.0] and scale[0, 2] > 1
    assert float(scale[0, 3]) == pytest.approx(math.log(16384) / math.log(4096))
    yarn = TempScale(form="yarn").logit_scale(at, layer)
    assert float(yarn[0, 3]) == pytest.approx((0.1 * math.log(4) + 1) ** 2)
    constant = TempScale(form="constant", temperature=0.8).logit_scale(at, layer)
    assert constant[0].tolist() == pytest.approx([1.0, 1.0, 1.25, 1.25])


def test_models_that_scale_their_own_frequencies_are_served():
    parameters = {"rope_type": "linear", "factor": 2.0}
    ids = some_ids(100)
    scales = torch.tensor([scale_by_hand("logn", i) for i in range(1, 101)])
    wanted = pairwise_logits(
        small_llama(), ids, distances=pair_distances(100) / 2, query_scales=[scales, scales]
    )
    got = read_logits(load(stock_rope(parameters), SPECS["logn"]), ids, chunk_tokens=30)
    assert worst(got, wanted) < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_tokens": 1}, "got window_tokens=1; allowed is 2 or more, or none"),
        ({"form": "constant"}, "got form=constant and temperature=None; a temperature belongs to"),
        ({"temperature": 0.9}, "got form=logn and temperature=0.9; a temperature belongs to form=constant"),
        ({"form": "constant", "temperature": 0.0}, "got temperature=0; allowed is 0.001 or more"),
        ({"form": "constant", "temperature": math.nan}, "got temperature=nan; allowed is 0.001 or more"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        TempScale(**settings)


def test_models_without_rotary_positions_are_refused():
    with pytest.raises(ValueError, match="temp_scale changes rotary positions, but no layer of toy"):
        TempScale().check(one_model(one_layer()))
