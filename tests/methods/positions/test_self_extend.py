from __future__ import annotations

import pytest
import torch

from longspan.engine.api import applied, load
from longspan.methods.positions.self_extend import SelfExtend
from tests.methods.positions.small import (
    WINDOW,
    decoded_logits,
    left_padded,
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


def distances_by_hand(num_tokens: int, group: int, window: int) -> torch.Tensor:
    """The paper's pseudo-code: two matrices of relative positions, merged at the neighbour window."""
    matrix = torch.zeros(num_tokens, num_tokens, dtype=torch.long)
    for i in range(num_tokens):
        for j in range(i + 1):
            grouped = i // group + window - window // group - j // group
            matrix[i, j] = i - j if i - j < window else grouped
    return matrix


def distances_of_bands(method: SelfExtend, num_tokens: int) -> torch.Tensor:
    at = torch.arange(num_tokens)
    matrix, times = torch.zeros(num_tokens, num_tokens, dtype=torch.long), torch.zeros(num_tokens, num_tokens)
    for band in method.bands(one_layer(rope=one_rope())):
        inside = (at[None] >= band.low(at)[:, None]) & (at[None] < band.high(at)[:, None])
        matrix = torch.where(inside, band.query(at)[:, None] - band.key(at)[None], matrix)
        times += inside
    causal = pair_distances(num_tokens) >= 0
    assert bool((times[causal] == 1).all()), "every visible pair belongs to exactly one band"
    return matrix.where(causal, 0)


@pytest.mark.parametrize(("group", "window"), [(4, 64), (3, 10), (7, 1), (2, 5), (1, 8), (64, 33)])
def test_bands_are_the_papers_matrix(group, window):
    method = SelfExtend(group_size=group, window_tokens=window)
    assert torch.equal(distances_of_bands(method, 129), distances_by_hand(129, group, window))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("chunk_tokens", [1024, 64, 13])
def test_reading_equals_pairwise_rotation(kv_heads, chunk_tokens):
    ids, model = some_ids(211), small_llama(kv_heads=kv_heads)
    wanted = pairwise_logits(model, ids, distances=distances_by_hand(211, 5, 33))
    span = load(model, "self_extend(group_size=5, window_tokens=33)")
    assert worst(read_logits(span, ids, chunk_tokens=chunk_tokens), wanted) < 1e-5


@pytest.mark.parametrize(
    ("group", "window", "cap"),
    [(4, 64, 70), (3, 10, 11), (7, 1, 2), (2, 5, 40), (1, 8, 9), (64, 33, 34), (4, 16, 500)],
)
def test_a_cap_holds_farther_pairs_at_it(group, window, cap):
    method = SelfExtend(group_size=group, window_tokens=window, max_distance_tokens=cap)
    assert torch.equal(distances_of_bands(method, 300), distances_by_hand(300, group, window).clamp(max=cap))


@pytest.mark.parametrize("chunk_tokens", [1024, 13])
def test_reading_under_a_cap_equals_pairwise_rotation(chunk_tokens):
    ids, model = some_ids(211), small_llama()
    distances = distances_by_hand(211, 3, 20)
    span = load(model, "self_extend(group_size=3, window_tokens=20, max_distance_tokens=50)")
    got = read_logits(span, ids, chunk_tokens=chunk_tokens)
    assert worst(got, pairwise_logits(model, ids, distances=distances.clamp(max=50))) < 1e-5
    assert worst(got, pairwise_logits(model, ids, distances=distances)) > 1e-3


def test_beside_a_window_of_all_heads_the_first_tokens_stay_at_the_cap():
    ids, model = some_ids(400), small_llama()
    visible = (pair_distances(400) < 60) | (torch.arange(400) < 3)
    distances = distances_by_hand(400, 3, 20).clamp(max=50)
    window = "duo_attention(retrieval_fraction=0, sink_tokens=3, recent_tokens=60)"
    span = load(
        model,
        f"self_extend(group_size=3, window_tokens=20, max_distance_tokens=50) + {window}",
        chunk_tokens=50,
    )
    wanted = pairwise_logits(model, ids, distances=distances, visible=visible)
    assert worst(read_logits(span, ids, chunk_tokens=50), wanted) < 1e-5
    assert span.read(ids).kept_tokens == 63


def test_settings_matter():
    ids, model = some_ids(150), small_llama()
    got = read_logits(load(model, "self_extend(group_size=4, window_tokens=32)"), ids, chunk_tokens=1024)
    for group, window in ((1, 32), (3, 32), (4, 31)):
        assert worst(got, pairwise_logits(model, ids, distances=distances_by_hand(150, group, window))) > 1e-3


def test_tokens_after_reading_follow_the_same_map():
    ids, model = some_ids(140), small_llama()
    span = load(model, "self_extend(group_size=4, window_tokens=32)")
    wanted = pairwise_logits(model, ids, distances=distances_by_hand(140, 4, 32))[120:]
    assert worst(decoded_logits(span, ids, num_read=120), wanted) < 1e-5


@pytest.mark.parametrize(("group", "window"), [(4, 64), (2, 32), (8, 128)])
def test_the_reach_is_the_last_text_within_the_trained_distances(group, window):
    reach = (WINDOW - window) * group + window
    farthest = reach - 1
    grouped = farthest // group + window - window // group
    assert grouped == WINDOW - 1
    assert (farthest + 1) // group + window - window // group == WINDOW


def test_logits_stay_finite_past_the_reach():
    ids = some_ids(5 * WINDOW)
    got = read_logits(
        load(small_llama(), "self_extend(group_size=2, window_tokens=64)"), ids, chunk_tokens=256
    )
    assert bool(torch.isfinite(got).all())


def test_left_padding_equals_the_single_run():
    short, long = some_ids(150), some_ids(180, seed=2)
    ids, mask, positions = left_padded(short, long)
    model = small_llama()
    wanted = pairwise_logits(model, short, distances=distances_by_hand(150, 4, 32))
    with applied(model, "self_extend(group_size=4, window_tokens=32)"), torch.no_grad():
        got = model(ids, attention_mask=mask, position_ids=positions).logits[0, 30:]
    assert worst(got, wanted) < 1e-5


def test_bad_settings():
    with pytest.raises(ValueError, match=r"got group_size=0; allowed is 1 \(no grouping\) or more"):
        SelfExtend(group_size=0)
    with pytest.raises(ValueError, match="got window_tokens=0; allowed is 1 or more"):
        SelfExtend(window_tokens=0)
    with pytest.raises(ValueError, match="got max_distance_tokens=64; allowed is more than window_tokens=64"):
        SelfExtend(window_tokens=64, max_distance_tokens=64)


def test_windows_without_room_for_groups_are_refused():
    with pytest.raises(
        ValueError, match=r"got window_tokens=1024, but .* was trained on 256; the reach is .*=64"
    ):
        load(small_llama(), "self_extend()")
    with pytest.raises(ValueError, match="self_extend changes rotary positions, but no layer of toy"):
        SelfExtend().check(one_model(one_layer()))
