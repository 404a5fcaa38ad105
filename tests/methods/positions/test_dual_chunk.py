from __future__ import annotations

import math

import pytest
import torch

from longspan.engine.api import applied, load
from longspan.methods.positions.dual_chunk import DualChunk
from tests.methods.positions.maps import distances_of_bands, same_by_forward_and_by_chunks
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
from tests.models import FAMILIES


def distances_by_hand(num_tokens: int, chunk: int, local: int, window: int) -> torch.Tensor:
    """As the paper lists them: positions of keys, and of queries for each of three kinds of chunks."""
    inside = [i % chunk for i in range(num_tokens)]
    beyond = [chunk + n for n in range(local)] + [window - 1] * (chunk - local)
    matrix = torch.zeros(num_tokens, num_tokens, dtype=torch.long)
    for i in range(num_tokens):
        for j in range(i + 1):
            chunks_back = i // chunk - j // chunk
            query = {0: inside[i], 1: beyond[inside[i]]}.get(chunks_back, window - 1)
            matrix[i, j] = query - inside[j]
    return matrix


def scales_by_hand(num_tokens: int, window: int) -> list[torch.Tensor]:
    scale = torch.tensor([(0.1 * math.log(max(1.0, (i + 1) / window)) + 1) ** 2 for i in range(num_tokens)])
    return [scale, scale]


SIZES = [(48, 16, 64), (48, 9, 64), (20, 5, 32), (7, 3, 10), (1, 1, 2), (192, 64, 256), (32, 32, 64)]


@pytest.mark.parametrize(("chunk", "local", "window"), SIZES)
def test_bands_are_the_papers_three_maps(chunk, local, window):
    method = DualChunk(chunk_tokens=chunk, local_tokens=local, window_tokens=window)
    matrix = distances_of_bands(method, 300)
    assert torch.equal(matrix, distances_by_hand(300, chunk, local, window))


@pytest.mark.parametrize(("chunk", "local", "window"), SIZES)
def test_distances_never_leave_the_window(chunk, local, window):
    method = DualChunk(chunk_tokens=chunk, local_tokens=local, window_tokens=window)
    matrix = distances_of_bands(method, 600)
    true = pair_distances(600)
    assert int(matrix.max()) == window - 1
    assert bool((matrix[true > 0] > 0).all()), "no two tokens fall together"


@pytest.mark.parametrize(("chunk", "local", "window"), SIZES)
def test_the_last_tokens_keep_their_distances_across_borders(chunk, local, window):
    matrix = distances_of_bands(DualChunk(chunk_tokens=chunk, local_tokens=local, window_tokens=window), 300)
    true = pair_distances(300)
    near = (true >= 0) & (true <= local)
    assert torch.equal(matrix[near], true[near])


def test_sizes_come_from_the_trained_window():
    layer = one_layer(rope=one_rope())
    assert DualChunk().sizes(layer) == (192, 64, WINDOW)
    assert DualChunk(window_tokens=100).sizes(layer) == (75, 25, 100)
    assert DualChunk(chunk_tokens=100).sizes(layer) == (100, 156, WINDOW)
    assert DualChunk(local_tokens=8).sizes(layer) == (192, 8, WINDOW)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("chunk_tokens", [1024, 64, 13])
def test_reading_equals_pairwise_rotation(kv_heads, chunk_tokens):
    ids, model = some_ids(211), small_llama(kv_heads=kv_heads)
    wanted = pairwise_logits(
        model, ids, distances=distances_by_hand(211, 33, 9, 60), query_scales=scales_by_hand(211, 60)
    )
    span = load(model, "dual_chunk(chunk_tokens=33, local_tokens=9, window_tokens=60)")
    assert worst(read_logits(span, ids, chunk_tokens=chunk_tokens), wanted) < 1e-5


def test_settings_matter():
    ids, model = some_ids(211), small_llama()

    def read(settings: str) -> torch.Tensor:
        return read_logits(load(model, f"dual_chunk({settings})"), ids, chunk_tokens=1024)

    got = read("chunk_tokens=32, local_tokens=9, window_tokens=60")
    for other in (
        "chunk_tokens=31, local_tokens=9, window_tokens=60",
        "chunk_tokens=32, local_tokens=8, window_tokens=60",
        "chunk_tokens=32, local_tokens=9, window_tokens=61",
        "chunk_tokens=32, local_tokens=9, window_tokens=60, scale_logits=false",
    ):
        assert worst(got, read(other)) > 1e-4, other


def test_tokens_after_reading_follow_the_same_maps():
    ids, model = some_ids(140), small_llama()
    span = load(model, "dual_chunk(chunk_tokens=32, local_tokens=9, window_tokens=60)")
    wanted = pairwise_logits(
        model, ids, distances=distances_by_hand(140, 32, 9, 60), query_scales=scales_by_hand(140, 60)
    )[120:]
    assert worst(decoded_logits(span, ids, num_read=120), wanted) < 1e-5


def test_texts_within_the_trained_window_are_exact():
    ids, model = some_ids(WINDOW), small_llama()
    with torch.no_grad():
        stock = model(ids[None]).logits[0]
    span = load(model, "dual_chunk()")
    assert worst(read_logits(span, ids, chunk_tokens=100), stock) < 1e-5


def test_logits_stay_finite_far_past_the_window():
    got = read_logits(load(small_llama(), "dual_chunk()"), some_ids(5 * WINDOW), chunk_tokens=256)
    assert bool(torch.isfinite(got).all())


def test_left_padding_equals_the_single_run():
    short, long = some_ids(150), some_ids(180, seed=2)
    ids, mask, positions = left_padded(short, long)
    model = small_llama()
    wanted = pairwise_logits(
        model, short, distances=distances_by_hand(150, 32, 9, 60), query_scales=scales_by_hand(150, 60)
    )
    spec = "dual_chunk(chunk_tokens=32, local_tokens=9, window_tokens=60)"
    with applied(model, spec), torch.no_grad():
        got = model(ids, attention_mask=mask, position_ids=positions).logits[0, 30:]
    assert worst(got, wanted) < 1e-5


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "MistralSliding"])
def test_every_family(family):
    same_by_forward_and_by_chunks(family, "dual_chunk(chunk_tokens=32, local_tokens=9, window_tokens=60)")


def test_bad_settings():
    for name in ("chunk_tokens", "local_tokens", "window_tokens"):
        with pytest.raises(ValueError, match=f"got {name}=0; allowed is 1 or more, or none"):
            DualChunk(**{name: 0})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("chunk_tokens=256", r"chunk_tokens=256 and local_tokens=0 in a window of 256 .*chunk_tokens=192"),
        ("chunk_tokens=200, local_tokens=57", "chunk_tokens=200 and local_tokens=57 in a window of 256"),
        ("window_tokens=1", "chunk_tokens=1 and local_tokens=0 in a window of 1 tokens"),
    ],
)
def test_chunks_that_do_not_fit_the_window_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        load(small_llama(), f"dual_chunk({settings})")


def test_models_without_rotary_positions_are_refused():
    with pytest.raises(ValueError, match="dual_chunk changes rotary positions, but no layer of toy"):
        DualChunk().check(one_model(one_layer()))
