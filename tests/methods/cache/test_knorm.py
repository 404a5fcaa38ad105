"""Key norms: kept places against a loop over tokens, rotated or not; bytes; wrong settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from longspan.engine.api import load
from longspan.errors import SpecError
from longspan.methods.cache.knorm import KNorm
from longspan.spec import resolve
from tests.methods.cache.evicting import (
    best,
    bytes_of_slabs,
    generated,
    held_after,
    padded,
    positions_of,
    random_text,
    read_words,
)
from tests.models import random_ids, random_model


def brute_force(keys: Tensor, budget: int) -> list[list[int]]:
    """Places of the `budget` shortest keys of each head of keys `[K, S, D]`."""
    found = []
    for head in keys.double().tolist():
        norms = {place: math.sqrt(sum(x * x for x in key)) for place, key in enumerate(head)}
        found.append(best({place: -round(norm, 5) for place, norm in norms.items()}, budget))
    return found


@pytest.mark.parametrize(("num_tokens", "keep"), [(61, 20), (64, 0.5), (129, 17), (97, 96)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 1), (3, 3)])
def test_keeps_the_keys_of_lowest_norm(num_tokens: int, keep: float, heads: int, kv_heads: int) -> None:
    queries, keys = random_text(num_tokens, heads=heads, kv_heads=kv_heads)
    budget = round(keep * num_tokens) if keep <= 1 else int(keep)
    held = held_after(KNorm(keep=keep), queries, keys)[0]
    assert held == brute_force(keys[0], budget)
    assert {len(head) for head in held} == {budget}


def test_short_keys_stay_where_a_window_or_chance_would_drop_them() -> None:
    queries, keys = random_text(200)
    keys[0, 0, 30:40] *= 0.01
    keys[0, 1, 70:80] *= 0.01
    assert held_after(KNorm(keep=10), queries, keys)[0] == [list(range(30, 40)), list(range(70, 80))]


def test_rows_with_left_padding_keep_what_they_keep_alone() -> None:
    texts = [random_text(length, seed=length) for length in (90, 55, 30)]
    together = held_after(KNorm(keep=0.4), *padded(texts))
    assert together == [held_after(KNorm(keep=0.4), q, k)[0] for q, k in texts]


@pytest.mark.parametrize("chunk_tokens", [64, 300])
@pytest.mark.parametrize("before", ["dense", "self_extend(group_size=4, window_tokens=250)"])
def test_a_model_keeps_its_shortest_keys_rotated_or_not(chunk_tokens: int, before: str) -> None:
    model, ids = random_model(), random_ids(201)
    whole = load(model, before).read(ids)
    stored = [layer.slabs[0].keys[0].clone() for layer in whole.run.layers]
    whole.model.detach()
    context = load(model, before + " + knorm(keep=0.25)", chunk_tokens=chunk_tokens).read(ids)
    assert positions_of(context.run) == [brute_force(keys, 50) for keys in stored]
    assert context.kept_tokens == 50
    assert context.kv_bytes == bytes_of_slabs(context.run)


def test_a_scope_leaves_the_first_layers_whole() -> None:
    context = read_words("on(layers=1, knorm(keep=0.5))")
    assert [layer.kept_tokens for layer in context.run.layers] == [300, 150]


def test_it_reads_asks_and_generates() -> None:
    context = read_words("knorm(keep=40)", chunk_tokens=100)
    assert context.kept_tokens == 40
    assert len(context.ask("w10 w11 w12", max_new_tokens=6).token_ids) <= 6
    tokens, run = generated("knorm(keep=40)", [random_ids(120)], 8)
    assert tokens.shape == (1, 8) and run.kept_tokens == 40 + 7


@pytest.mark.parametrize("spread", ["heads", "all"])
def test_heads_may_share_a_budget(spread: Any) -> None:
    context = read_words(f"knorm(keep=0.25, spread={spread}, floor=0)")
    lengths = [slab.num_tokens for layer in context.run.layers for slab in layer.slabs]
    assert len(set(lengths)) > 1 and sum(lengths) == 4 * 75


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("keep=0", "allowed is a fraction above 0"),
        ("keep=1.5", "whole number of tokens"),
        ("floor=2", "got floor=2; allowed is 0 to 1"),
        ("spread=rows", "spread takes uniform or heads or all"),
    ],
)
def test_wrong_settings_are_refused(settings: str, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        resolve(f"knorm({settings})")


def test_norms_are_taken_in_float32() -> None:
    queries, keys = random_text(64)
    low = keys.to(torch.bfloat16)
    assert held_after(KNorm(keep=20), queries.to(torch.bfloat16), low)[0] == brute_force(low[0].float(), 20)
