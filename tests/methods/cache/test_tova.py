"""TOVA: kept places against a loop that follows the last query; one choice for a layer; bytes; wrong settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from longspan.engine.api import load
from longspan.errors import SpecError
from longspan.methods.cache.tova import Tova
from longspan.spec import resolve
from tests.methods.cache.evicting import (
    SLACK_TOKENS,
    attentions_of,
    best,
    bytes_of_slabs,
    eager_model,
    generated,
    held_after,
    logits_of,
    padded,
    positions_of,
    random_text,
    read_words,
    softmax,
    steps_of,
)
from tests.models import random_ids


def brute_force(
    method: Tova, queries: Tensor, keys: Tensor, *, chunk: int | None = None, answer: int = 0
) -> list[int]:
    """Positions that the layer holds: at each eviction the last query's attention, head by head."""
    logits, held, target = logits_of(queries, keys), [], 0
    heads = [group for groups in logits for group in groups]
    for start, stop, events in steps_of(keys.shape[2], chunk, answer):
        held += range(start, stop)
        for event in events:
            if event == "token":
                due = method.when == "always" and len(held) > target + SLACK_TOKENS
            elif due := event == "read" or method.when != "read":
                target = round(method.keep * stop) if method.keep <= 1 else int(method.keep)
                due = len(held) > target
            if due:
                votes = dict.fromkeys(held, 0.0)
                for head in heads:
                    for place, part in softmax(head[stop - 1], held).items():
                        votes[place] += part / len(heads)
                held = best(votes, target)
    return held


@pytest.mark.parametrize(("num_tokens", "keep"), [(61, 20), (64, 0.5), (97, 33)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 1), (3, 3)])
def test_keeps_what_a_loop_keeps_and_all_heads_alike(
    num_tokens: int, keep: float, heads: int, kv_heads: int
) -> None:
    queries, keys = random_text(num_tokens, heads=heads, kv_heads=kv_heads)
    held = held_after(Tova(keep=keep), queries, keys)[0]
    wanted = brute_force(Tova(keep=keep), queries, keys)
    assert held == [wanted] * kv_heads
    assert len(wanted) == (round(keep * num_tokens) if keep <= 1 else int(keep))


@pytest.mark.parametrize("when", ["read", "chunk", "always"])
@pytest.mark.parametrize("chunk", [17, 40])
@pytest.mark.parametrize("answer", [0, 66, 140])
def test_the_last_query_before_each_eviction_decides(when: Any, chunk: int, answer: int) -> None:
    queries, keys = random_text(101 + answer)
    method = Tova(keep=24, when=when)
    wanted = brute_force(method, queries, keys, chunk=chunk, answer=answer)
    assert held_after(method, queries, keys, chunk=chunk, answer=answer)[0] == [wanted] * 2


def test_rows_with_left_padding_keep_what_they_keep_alone() -> None:
    texts = [random_text(length, seed=length) for length in (90, 55, 30)]
    together = held_after(Tova(keep=0.4), *padded(texts))
    assert together == [held_after(Tova(keep=0.4), q, k)[0] for q, k in texts]


def test_only_the_last_query_counts_and_nothing_is_protected() -> None:
    queries, keys = torch.zeros(1, 4, 200, 16), torch.zeros(1, 2, 200, 16)
    keys[0, :, 20:40, 0], keys[0, :, 60:80, 1] = 5.0, 5.0
    queries[0, :, :199, 0], queries[0, :, 199, 1] = 6.0, 6.0
    assert held_after(Tova(keep=20), queries, keys)[0] == [list(range(60, 80))] * 2


@pytest.mark.parametrize("chunk_tokens", [64, 300])
def test_a_model_keeps_what_its_last_token_attends_to(chunk_tokens: int) -> None:
    model, ids = eager_model(), random_ids(201)
    attentions = attentions_of(model, ids)
    context = load(model, "tova(keep=0.25, when=read)", chunk_tokens=chunk_tokens).read(ids)
    for layer, attention in zip(positions_of(context.run), attentions, strict=True):
        votes = attention[:, :, -1].flatten(0, 1).mean(0).tolist()
        assert layer == [best({place: round(vote, 7) for place, vote in enumerate(votes)}, 50)] * 2
    assert context.kept_tokens == 50
    assert context.kv_bytes == bytes_of_slabs(context.run)
    assert {slab.positions.shape[1] for x in context.run.layers for slab in x.slabs} == {1}


def test_it_reads_asks_and_generates_within_its_budget() -> None:
    context = read_words("tova(keep=40)", chunk_tokens=100)
    assert context.kept_tokens == 40 and context.kv_bytes == bytes_of_slabs(context.run)
    assert len(context.ask("w10 w11 w12", max_new_tokens=6).token_ids) <= 6
    _, run = generated("tova(keep=40)", [random_ids(120)], 80)
    assert 40 <= run.kept_tokens <= 40 + SLACK_TOKENS


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("spread=heads", "got spread=heads; allowed is uniform, since the heads of a layer share one choice"),
        ("spread=all", "got spread=all; allowed is uniform"),
        ("keep=1.5", "whole number of tokens"),
        ("when=never", "when takes read or chunk or always"),
    ],
)
def test_wrong_settings_are_refused(settings: str, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        resolve(f"tova({settings})")
