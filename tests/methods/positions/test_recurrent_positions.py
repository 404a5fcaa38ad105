from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from longspan.engine.api import load
from longspan.methods.positions.recurrent_positions import RecurrentPositions
from tests.methods.positions.maps import same_by_forward_and_by_chunks
from tests.methods.positions.small import (
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


def test_places_by_hand():
    at = torch.arange(8)
    assert RecurrentPositions(window_tokens=3).places(at, 512).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert RecurrentPositions().places(at, 5).tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


@pytest.mark.parametrize(
    ("spec", "window"), [("recurrent_positions(window_tokens=20)", 20), ("recurrent_positions()", 256)]
)
def test_equals_distances_in_the_window_pair_by_pair(spec, window):
    """By default the trained window, of 256 tokens."""
    ids, model = some_ids(300), small_llama()
    at = torch.arange(300) % window
    wanted = pairwise_logits(model, ids, distances=at[:, None] - at[None])
    got = read_logits(load(model, spec), ids, chunk_tokens=97)
    assert worst(got, wanted) < 1e-5
    assert worst(got, pairwise_logits(model, ids, distances=pair_distances(300))) > 0.05


def test_forward_and_chunks_agree():
    same_by_forward_and_by_chunks("Llama", "recurrent_positions(window_tokens=30)")


def test_bad_windows():
    with pytest.raises(ValueError, match="got window_tokens=0; allowed is 1 or more"):
        RecurrentPositions(window_tokens=0)
    table = replace(one_model(), window_tokens=512, learned_positions=True)
    RecurrentPositions(window_tokens=512).check(table)
    with pytest.raises(ValueError, match="got window_tokens=513, but toy has a table of 512 positions; give"):
        RecurrentPositions(window_tokens=513).check(table)


def test_models_without_positions_are_refused():
    with pytest.raises(ValueError, match="recurrent_positions changes rotary positions, but no layer of toy"):
        RecurrentPositions().check(one_model(one_layer()))
    RecurrentPositions().check(one_model(one_layer(rope=one_rope())))
