from __future__ import annotations

import pytest
import torch

from longspan.engine.api import load
from longspan.methods.positions.power_basis import PowerBasis
from tests.methods.positions.small import (
    HEAD_DIM,
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


def powered_by_hand(power: float) -> torch.Tensor:
    found = [
        theta * (1 - 2 * i / HEAD_DIM) ** power for i, theta in enumerate(default_frequencies().tolist())
    ]
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("power", [0.1, 0.5, 1.0, 3.0])
def test_frequencies_by_hand(power):
    got = PowerBasis(power=power).rope(one_rope()).inv_freq
    assert torch.allclose(got.double(), powered_by_hand(power), rtol=1e-5, atol=0)


@pytest.mark.parametrize("rotary_dims", [16, 64, 128])
def test_the_fastest_stays_the_middle_halves_and_the_slowest_comes_last(rotary_dims):
    plain = one_rope(rotary_dims=rotary_dims)
    ratio = PowerBasis(power=1.0).rope(plain).inv_freq / plain.inv_freq
    assert ratio[0] == 1
    assert float(ratio[rotary_dims // 4]) == pytest.approx(0.5)
    assert float(ratio[-1]) == pytest.approx(2 / rotary_dims)


@pytest.mark.parametrize("chunk_tokens", [1024, 64, 13])
def test_reading_equals_pairwise_rotation(chunk_tokens):
    ids, model = some_ids(131), small_llama()
    distances = pair_distances(131)
    wanted = pairwise_logits(model, ids, distances=distances, frequencies=powered_by_hand(0.5))
    got = read_logits(load(model, "power_basis()"), ids, chunk_tokens=chunk_tokens)
    assert worst(got, wanted) < 1e-5
    assert worst(got, pairwise_logits(model, ids, distances=distances)) > 0.05


def test_tokens_after_reading_have_the_same_frequencies():
    ids, model = some_ids(110), small_llama()
    wanted = pairwise_logits(model, ids, distances=pair_distances(110), frequencies=powered_by_hand(2.0))
    got = decoded_logits(load(model, "power_basis(power=2)"), ids, num_read=100)
    assert worst(got, wanted[100:]) < 1e-5


def test_power_zero_changes_nothing():
    rope = one_rope()
    assert PowerBasis(power=0.0).rope(rope) is rope


@pytest.mark.parametrize("power", [-0.1, 11.0, float("nan")])
def test_bad_powers(power):
    with pytest.raises(ValueError, match=r"got power=.*; allowed is 0 \(no change\) to 10"):
        PowerBasis(power=power)


def test_models_without_rotary_positions_are_refused():
    with pytest.raises(ValueError, match="power_basis changes rotary positions, but no layer of toy"):
        PowerBasis().check(one_model(one_layer()))
