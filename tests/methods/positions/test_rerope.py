from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from longspan.engine.api import applied, load
from longspan.methods.positions.rerope import ReRope
from tests.methods.positions.maps import distances_of_bands, same_by_forward_and_by_chunks
from tests.methods.positions.small import (
    WINDOW,
    decoded_logits,
    left_padded,
    one_layer,
    one_model,
    one_rope,
    pairwise_logits,
    read_logits,
    small_llama,
    some_ids,
    worst,
)
from tests.models import FAMILIES


def distances_by_hand(num_tokens: int, window: int, factor: int | None = None) -> torch.Tensor:
    """Pair by pair; Leaky ReRoPE's query and key positions as the author divides them, then rounded down."""
    matrix = torch.zeros(num_tokens, num_tokens, dtype=torch.long)
    for i in range(num_tokens):
        for j in range(i + 1):
            if i - j < window:
                matrix[i, j] = i - j
            elif factor is None:
                matrix[i, j] = window
            else:
                matrix[i, j] = math.floor(Fraction(i + window * factor - window, factor)) - j // factor
    return matrix


def scales_by_hand(num_tokens: int) -> list[torch.Tensor]:
    scale = torch.tensor([max(1.0, math.log(i + 1) / math.log(WINDOW)) for i in range(num_tokens)])
    return [scale, scale]


@pytest.mark.parametrize(("window", "factor"), [(64, None), (1, None), (33, 4), (10, 3), (1, 7), (128, 1)])
def test_bands_are_the_authors_matrix(window, factor):
    method = ReRope(window_tokens=window, leak_factor=factor)
    assert torch.equal(distances_of_bands(method, 129), distances_by_hand(129, window, factor))


@pytest.mark.parametrize(("window", "factor"), [(33, 4), (10, 3), (64, 16)])
def test_whole_distances_stay_within_one_of_the_authors(window, factor):
    matrix = distances_of_bands(ReRope(window_tokens=window, leak_factor=factor), 300)
    for i in range(300):
        for j in range(i - window + 1):
            exact = window + Fraction(i - j - window, factor)
            assert abs(int(matrix[i, j]) - exact) < 1 and matrix[i, j] >= window


def test_rerope_is_leaky_rerope_of_any_large_factor():
    far = distances_of_bands(ReRope(window_tokens=20, leak_factor=10_000), 200)
    assert torch.equal(far, distances_of_bands(ReRope(window_tokens=20), 200))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("chunk_tokens", [1024, 64, 13])
@pytest.mark.parametrize("factor", [None, 5])
def test_reading_equals_pairwise_rotation(kv_heads, chunk_tokens, factor):
    ids, model = some_ids(300), small_llama(kv_heads=kv_heads)  # past the window: logits are scaled, too
    wanted = pairwise_logits(
        model, ids, distances=distances_by_hand(300, 33, factor), query_scales=scales_by_hand(300)
    )
    leak = "none" if factor is None else factor
    span = load(model, f"rerope(window_tokens=33, leak_factor={leak})")
    assert worst(read_logits(span, ids, chunk_tokens=chunk_tokens), wanted) < 1e-5


def test_settings_matter():
    ids, model = some_ids(300), small_llama()

    def read(settings: str) -> torch.Tensor:
        return read_logits(load(model, f"rerope({settings})"), ids, chunk_tokens=1024)

    got = read("window_tokens=32")
    assert worst(got, read("window_tokens=31")) > 1e-3
    assert worst(got, read("window_tokens=32, leak_factor=4")) > 1e-3
    plain = read("window_tokens=32, scale_logits=false")
    assert worst(got[:WINDOW], plain[:WINDOW]) == 0.0
    assert worst(got[WINDOW:], plain[WINDOW:]) > 1e-4


def test_the_window_is_a_quarter_of_the_trained_one_by_default():
    assert torch.equal(distances_of_bands(ReRope(), 200), distances_by_hand(200, WINDOW // 4))


def test_tokens_after_reading_follow_the_same_map():
    ids, model = some_ids(280), small_llama()
    span = load(model, "rerope(window_tokens=32)")
    wanted = pairwise_logits(
        model, ids, distances=distances_by_hand(280, 32), query_scales=scales_by_hand(280)
    )[250:]
    assert worst(decoded_logits(span, ids, num_read=250), wanted) < 1e-5


def test_texts_within_the_window_are_exact():
    ids, model = some_ids(65), small_llama()
    with torch.no_grad():
        stock = model(ids[None]).logits[0]
    span = load(model, "rerope()")
    assert worst(read_logits(span, ids, chunk_tokens=20), stock) < 1e-5


@pytest.mark.parametrize(("window", "factor"), [(64, 4), (32, 2), (128, 8)])
def test_the_reach_of_leaky_rerope_is_the_last_text_within_the_trained_distances(window, factor):
    reach = (WINDOW - window) * factor + window
    matrix = distances_of_bands(ReRope(window_tokens=window, leak_factor=factor), reach + 1)
    assert int(matrix[:reach].max()) == WINDOW - 1
    assert int(matrix[reach].max()) == WINDOW


def test_logits_stay_finite_far_past_the_window():
    got = read_logits(load(small_llama(), "rerope(window_tokens=64)"), some_ids(5 * WINDOW), chunk_tokens=256)
    assert bool(torch.isfinite(got).all())


def test_left_padding_equals_the_single_run():
    short, long = some_ids(270), some_ids(300, seed=2)
    ids, mask, positions = left_padded(short, long)
    model = small_llama()
    wanted = pairwise_logits(
        model, short, distances=distances_by_hand(270, 32), query_scales=scales_by_hand(270)
    )
    with applied(model, "rerope(window_tokens=32)"), torch.no_grad():
        got = model(ids, attention_mask=mask, position_ids=positions).logits[0, 30:]
    assert worst(got, wanted) < 1e-5


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "MistralSliding"])
@pytest.mark.parametrize("spec", ["rerope(window_tokens=32)", "rerope(window_tokens=32, leak_factor=4)"])
def test_every_family(family, spec):
    same_by_forward_and_by_chunks(family, spec)


def test_bad_settings():
    with pytest.raises(ValueError, match="got window_tokens=0; allowed is 1 or more, or none for a quarter"):
        ReRope(window_tokens=0)
    with pytest.raises(ValueError, match=r"got leak_factor=0; allowed is 1 \(no change\) or more, or none"):
        ReRope(leak_factor=0)


def test_windows_as_long_as_the_trained_one_are_refused():
    with pytest.raises(ValueError, match=r"got window_tokens=256, but .* was trained on 256, .*=64"):
        load(small_llama(), "rerope(window_tokens=256)")
    with pytest.raises(ValueError, match="rerope changes rotary positions, but no layer of toy"):
        ReRope().check(one_model(one_layer()))
    ReRope(window_tokens=255).check(one_model(one_layer(rope=one_rope())))
