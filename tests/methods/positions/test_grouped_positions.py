from __future__ import annotations

import pytest
import torch

from longspan.engine.api import load
from longspan.errors import SpecError
from longspan.methods.positions.grouped_positions import GroupedPositions
from tests.methods.positions.maps import distances_of_bands, same_by_forward_and_by_chunks
from tests.methods.positions.small import (
    one_layer,
    one_model,
    pair_distances,
    pairwise_logits,
    read_logits,
    small_llama,
    some_ids,
    worst,
)


def test_groups_by_hand():
    method = GroupedPositions(group_size=3)
    assert method.places(torch.arange(8), 512).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert distances_of_bands(method, 5).tolist() == [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
    ]


def test_equals_distances_of_groups_pair_by_pair():
    ids, model = some_ids(97), small_llama()
    at = torch.arange(97) // 4
    wanted = pairwise_logits(model, ids, distances=at[:, None] - at[None])
    got = read_logits(load(model, "grouped_positions(group_size=4)"), ids, chunk_tokens=31)
    assert worst(got, wanted) < 1e-5
    assert worst(got, pairwise_logits(model, ids, distances=pair_distances(97))) > 0.05


def test_forward_and_chunks_agree():
    same_by_forward_and_by_chunks("Llama", "grouped_positions(group_size=4)")


@pytest.mark.parametrize("size", [0, -2])
def test_bad_groups(size):
    with pytest.raises(ValueError, match=rf"got group_size={size}; allowed is 1 \(no grouping\) or more"):
        GroupedPositions(group_size=size)
    with pytest.raises(SpecError, match="grouped_positions needs group_size"):
        load(small_llama(), "grouped_positions()")


def test_models_without_positions_are_refused():
    with pytest.raises(ValueError, match="grouped_positions changes rotary positions, but no layer of toy"):
        GroupedPositions(group_size=2).check(one_model(one_layer()))
