"""KeyDiff: kept places against a loop over tokens, chunk by chunk; padding is no part of the mean; bytes; wrong settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from longspan.engine.api import load
from longspan.errors import SpecError
from longspan.methods.cache.keydiff import KeyDiff
from longspan.spec import resolve
from tests.methods.cache.evicting import (
    SLACK_TOKENS,
    best,
    bytes_of_slabs,
    generated,
    held_after,
    padded,
    positions_of,
    random_text,
    read_words,
    steps_of,
)
from tests.models import random_ids, random_model


def unit(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector]


def least_alike(keys: list[list[float]], held: list[int], budget: int) -> list[int]:
    """The `budget` places whose keys are least like the mean of all held, one by one."""
    directions = {place: unit(keys[place]) for place in held}
    mean = unit([sum(parts) / len(held) for parts in zip(*directions.values(), strict=True)])
    alike = {place: sum(a * b for a, b in zip(d, mean, strict=True)) for place, d in directions.items()}
    return best({place: -round(x, 6) for place, x in alike.items()}, budget)


def brute_force(
    method: KeyDiff, keys: Tensor, *, chunk: int | None = None, answer: int = 0
) -> list[list[int]]:
    """Positions that each head of keys `[K, S, D]` holds."""
    found = []
    for head in keys.double().tolist():
        held: list[int] = []
        target = 0
        for start, stop, events in steps_of(keys.shape[1], chunk, answer):
            held += range(start, stop)
            for event in events:
                if event == "token":
                    due = method.when == "always" and len(held) > target + SLACK_TOKENS
                elif due := event == "read" or method.when != "read":
                    target = round(method.keep * stop) if method.keep <= 1 else int(method.keep)
                    due = len(held) > target
                if due:
                    held = least_alike(head, held, target)
        found.append(held)
    return found


@pytest.mark.parametrize(("num_tokens", "keep"), [(61, 20), (64, 0.5), (129, 17), (97, 96)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 1), (3, 3)])
def test_keeps_the_keys_least_like_their_mean(
    num_tokens: int, keep: float, heads: int, kv_heads: int
) -> None:
    queries, keys = random_text(num_tokens, heads=heads, kv_heads=kv_heads)
    held = held_after(KeyDiff(keep=keep), queries, keys)[0]
    assert held == brute_force(KeyDiff(keep=keep), keys[0])
    assert {len(head) for head in held} == {round(keep * num_tokens) if keep <= 1 else int(keep)}


@pytest.mark.parametrize("when", ["read", "chunk", "always"])
@pytest.mark.parametrize("chunk", [17, 40])
@pytest.mark.parametrize("answer", [0, 66, 140])
def test_only_what_is_still_held_is_compared(when: Any, chunk: int, answer: int) -> None:
    queries, keys = random_text(101 + answer)
    method = KeyDiff(keep=24, when=when)
    held = held_after(method, queries, keys, chunk=chunk, answer=answer)[0]
    assert held == brute_force(method, keys[0], chunk=chunk, answer=answer)


def test_keys_that_differ_stay_where_a_window_or_chance_would_drop_them() -> None:
    queries, keys = random_text(200)
    keys = keys * 0.1
    keys[..., 0] = 3.0
    keys[0, 0, 30:40, 0], keys[0, 1, 70:80, 0] = -3.0, -0.3
    assert held_after(KeyDiff(keep=10), queries, keys)[0] == [list(range(30, 40)), list(range(70, 80))]


def test_length_does_not_count() -> None:
    queries, keys = random_text(100)
    longer = keys * torch.rand(1, 2, 100, 1).add(0.5)
    assert held_after(KeyDiff(keep=30), queries, keys) == held_after(KeyDiff(keep=30), queries, longer)


def test_rows_with_left_padding_keep_what_they_keep_alone() -> None:
    texts = [random_text(length, seed=length) for length in (90, 55, 30)]
    together = held_after(KeyDiff(keep=0.4), *padded(texts))
    assert together == [held_after(KeyDiff(keep=0.4), q, k)[0] for q, k in texts]


@pytest.mark.parametrize("chunk_tokens", [64, 300])
@pytest.mark.parametrize("before", ["dense", "self_extend(group_size=4, window_tokens=250)"])
def test_a_model_compares_its_keys_as_they_are_held(chunk_tokens: int, before: str) -> None:
    model, ids = random_model(), random_ids(201)
    whole = load(model, before).read(ids)
    stored = [layer.slabs[0].keys[0].double().tolist() for layer in whole.run.layers]
    whole.model.detach()
    spec = before + " + keydiff(keep=0.25, when=read)"
    context = load(model, spec, chunk_tokens=chunk_tokens).read(ids)
    wanted = [[least_alike(head, list(range(201)), 50) for head in layer] for layer in stored]
    assert positions_of(context.run) == wanted
    assert context.kept_tokens == 50
    assert context.kv_bytes == bytes_of_slabs(context.run)


def test_it_reads_asks_and_generates_within_its_budget() -> None:
    context = read_words("keydiff(keep=40)", chunk_tokens=100)
    assert context.kept_tokens == 40
    assert len(context.ask("w10 w11 w12", max_new_tokens=6).token_ids) <= 6
    _, run = generated("keydiff(keep=40)", [random_ids(120)], 80)
    assert 40 <= run.kept_tokens <= 40 + SLACK_TOKENS


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("keep=0", "allowed is a fraction above 0"),
        ("keep=1.5", "whole number of tokens"),
        ("when=never", "when takes read or chunk or always"),
        ("when=chunk, keep=4MB", "got when=chunk with keep=4MB, which decides over all layers"),
    ],
)
def test_wrong_settings_are_refused(settings: str, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        resolve(f"keydiff({settings})")
