from __future__ import annotations

import pytest
import torch

from longspan.engine.api import applied, load
from longspan.methods.positions.string import String
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


def distances_by_hand(num_tokens: int, shift: int, local: int) -> torch.Tensor:
    """As the paper draws it: the matrix of RoPE, with its first diagonals moved down over those from `shift` on."""
    diagonals = [*range(shift), *(local + n for n in range(max(0, num_tokens - shift)))]
    matrix = torch.zeros(num_tokens, num_tokens, dtype=torch.long)
    for i in range(num_tokens):
        for j in range(i + 1):
            matrix[i, j] = diagonals[i - j]
    return matrix


def test_the_papers_example():
    """Nine tokens, shift 3, window 0: 6, 7 and 8 are gone, and 0 to 5 stand from the fourth diagonal on."""
    matrix = distances_of_bands(String(shift_tokens=3, local_tokens=0), 9)
    assert matrix[8].tolist() == [5, 4, 3, 2, 1, 0, 2, 1, 0]
    assert matrix[3].tolist() == [0, 2, 1, 0, 0, 0, 0, 0, 0]
    restored = distances_of_bands(String(shift_tokens=3, local_tokens=2), 9)
    assert restored[8].tolist() == [7, 6, 5, 4, 3, 2, 2, 1, 0]


@pytest.mark.parametrize(("shift", "local"), [(64, 16), (10, 10), (7, 0), (1, 1), (1, 0), (128, 33)])
def test_bands_are_the_papers_matrix(shift, local):
    method = String(shift_tokens=shift, local_tokens=local)
    assert torch.equal(distances_of_bands(method, 200), distances_by_hand(200, shift, local))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("chunk_tokens", [1024, 64, 13])
def test_reading_equals_pairwise_rotation(kv_heads, chunk_tokens):
    ids, model = some_ids(211), small_llama(kv_heads=kv_heads)
    wanted = pairwise_logits(model, ids, distances=distances_by_hand(211, 70, 9))
    span = load(model, "string(shift_tokens=70, local_tokens=9)")
    assert worst(read_logits(span, ids, chunk_tokens=chunk_tokens), wanted) < 1e-5


def test_settings_matter():
    ids, model = some_ids(150), small_llama()
    got = read_logits(load(model, "string(shift_tokens=64, local_tokens=16)"), ids, chunk_tokens=1024)
    for shift, local in ((63, 16), (64, 15)):
        assert worst(got, pairwise_logits(model, ids, distances=distances_by_hand(150, shift, local))) > 1e-3


def test_the_shift_is_a_third_of_the_trained_window_by_default():
    method = String(local_tokens=16)
    assert torch.equal(distances_of_bands(method, 200), distances_by_hand(200, WINDOW // 3, 16))


def test_tokens_after_reading_follow_the_same_map():
    ids, model = some_ids(140), small_llama()
    span = load(model, "string(shift_tokens=50, local_tokens=9)")
    wanted = pairwise_logits(model, ids, distances=distances_by_hand(140, 50, 9))[120:]
    assert worst(decoded_logits(span, ids, num_read=120), wanted) < 1e-5


def test_texts_within_the_shift_are_exact():
    ids, model = some_ids(85), small_llama()
    with torch.no_grad():
        stock = model(ids[None]).logits[0]
    assert worst(read_logits(load(model, "string(local_tokens=16)"), ids, chunk_tokens=20), stock) < 1e-5


@pytest.mark.parametrize(("shift", "local"), [(85, 16), (128, 32), (256, 1)])
def test_the_reach_is_the_last_text_within_the_trained_distances(shift, local):
    reach = WINDOW + shift - local
    matrix = distances_of_bands(String(shift_tokens=shift, local_tokens=local), reach + 1)
    assert int(matrix[:reach].max()) == WINDOW - 1
    assert int(matrix[reach].max()) == WINDOW


def test_logits_stay_finite_past_the_reach():
    got = read_logits(load(small_llama(), "string(local_tokens=16)"), some_ids(5 * WINDOW), chunk_tokens=256)
    assert bool(torch.isfinite(got).all())


def test_left_padding_equals_the_single_run():
    short, long = some_ids(150), some_ids(180, seed=2)
    ids, mask, positions = left_padded(short, long)
    model = small_llama()
    wanted = pairwise_logits(model, short, distances=distances_by_hand(150, 50, 9))
    with applied(model, "string(shift_tokens=50, local_tokens=9)"), torch.no_grad():
        got = model(ids, attention_mask=mask, position_ids=positions).logits[0, 30:]
    assert worst(got, wanted) < 1e-5


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "MistralSliding"])
def test_every_family(family):
    same_by_forward_and_by_chunks(family, "string(shift_tokens=50, local_tokens=9)")


def test_bad_settings():
    with pytest.raises(ValueError, match="got shift_tokens=0; allowed is 1 or more, or none for a third"):
        String(shift_tokens=0)
    with pytest.raises(ValueError, match=r"got local_tokens=-1; allowed is 0 or more \(the authors: 128\)"):
        String(local_tokens=-1)


def test_shifts_out_of_range_are_refused():
    with pytest.raises(
        ValueError,
        match=r"shift_tokens=85 and local_tokens=128, but .* on 256, .*shift_tokens=85, local_tokens=21",
    ):
        load(small_llama(), "string()")
    with pytest.raises(ValueError, match="local_tokens <= shift_tokens <= 256"):
        String(shift_tokens=257).check(one_model(one_layer(rope=one_rope())))
    with pytest.raises(ValueError, match="string changes rotary positions, but no layer of toy"):
        String().check(one_model(one_layer()))
