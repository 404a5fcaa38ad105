"""H2O: kept places against a loop over every query, while reading and generating; bytes; wrong settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from longspan import eviction
from longspan.engine.api import applied, load
from longspan.errors import SpecError
from longspan.methods.cache.h2o import H2O
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
from tests.models import random_ids, random_model


def brute_force(
    method: H2O, queries: Tensor, keys: Tensor, *, chunk: int | None = None, answer: int = 0
) -> list[list[int]]:
    """Positions that each kv head holds: every query of every head is walked through, token by token."""
    num_tokens, found = keys.shape[2], []
    for groups in logits_of(queries, keys):
        held: list[int] = []
        received: dict[int, float] = {}
        target = 0
        for start, stop, events in steps_of(num_tokens, chunk, answer):
            held += range(start, stop)
            for at in range(start, stop):
                for logits in groups:
                    for place, part in softmax(logits[at], [k for k in held if k <= at]).items():
                        received[place] = received.get(place, 0.0) + part / len(groups)
            for event in events:
                if event == "token":
                    due = method.when == "always" and len(held) > target + SLACK_TOKENS
                elif due := event == "read" or method.when != "read":
                    target = round(method.keep * stop) if method.keep <= 1 else int(method.keep)
                    due = len(held) > target
                if due:
                    latest = held[len(held) - int(target * method.recent) :]
                    rest = {place: received[place] for place in held if place not in latest}
                    held = best(rest, target - len(latest)) + latest
        found.append(held)
    return found


@pytest.mark.parametrize(("num_tokens", "keep"), [(61, 20), (64, 0.5), (97, 33)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 1), (3, 3)])
@pytest.mark.parametrize("recent", [0.5, 0.0, 0.3])
def test_keeps_what_a_loop_over_all_queries_keeps(
    num_tokens: int, keep: float, heads: int, kv_heads: int, recent: float
) -> None:
    queries, keys = random_text(num_tokens, heads=heads, kv_heads=kv_heads)
    method = H2O(keep=keep, recent=recent)
    held = held_after(method, queries, keys)[0]
    assert held == brute_force(method, queries, keys)
    assert {len(head) for head in held} == {round(keep * num_tokens) if keep <= 1 else int(keep)}


@pytest.mark.parametrize("when", ["read", "chunk", "always"])
@pytest.mark.parametrize("chunk", [17, 40])
def test_scores_grow_over_chunks_and_follow_their_keys(when: Any, chunk: int) -> None:
    queries, keys = random_text(101)
    method = H2O(keep=24, when=when)
    assert held_after(method, queries, keys, chunk=chunk)[0] == brute_force(
        method, queries, keys, chunk=chunk
    )


@pytest.mark.parametrize("answer", [64, 65, 100, 135])
def test_generated_tokens_count_and_take_the_places_of_others(answer: int) -> None:
    queries, keys = random_text(60 + answer)
    method = H2O(keep=24)
    held = held_after(method, queries, keys, answer=answer, chunk=32)[0]
    assert held == brute_force(method, queries, keys, answer=answer, chunk=32)
    assert 24 <= len(held[0]) <= 24 + SLACK_TOKENS


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_once_after_a_text_chunks_of_any_size_keep_the_same(chunk: int) -> None:
    queries, keys = random_text(97)
    method = H2O(keep=30, when="read")
    assert held_after(method, queries, keys, chunk=chunk) == held_after(method, queries, keys)


def test_queries_are_scored_in_slices_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys = random_text(97)
    whole = held_after(H2O(keep=30), queries, keys)
    monkeypatch.setattr(eviction, "LOGITS_AT_ONCE", 5 * 4 * 97)
    assert held_after(H2O(keep=30), queries, keys) == whole


def test_rows_with_left_padding_keep_what_they_keep_alone() -> None:
    texts = [random_text(length, seed=length) for length in (90, 55, 30)]
    together = held_after(H2O(keep=0.4), *padded(texts))
    assert together == [held_after(H2O(keep=0.4), q, k)[0] for q, k in texts]


def test_a_heavy_hitter_stays_where_a_window_or_chance_would_drop_it() -> None:
    queries = torch.zeros(1, 4, 200, 16)
    queries[..., 0] = 6.0
    keys = torch.randn(1, 2, 200, 16, generator=torch.Generator().manual_seed(0))
    keys[..., 0] = -1.0
    keys[0, 0, 31, 0] = keys[0, 1, 73, 0] = 6.0
    first, second = held_after(H2O(keep=10), queries, keys)[0]
    assert 31 in first and 73 in second and 31 not in second[1:] and 73 not in first
    assert first[-5:] == second[-5:] == list(range(195, 200))


@pytest.mark.parametrize("chunk_tokens", [64, 300])
def test_a_model_keeps_what_its_own_attention_sums_to(chunk_tokens: int) -> None:
    model, ids = eager_model(), random_ids(201)
    attentions = attentions_of(model, ids)
    context = load(model, "h2o(keep=0.25, when=read)", chunk_tokens=chunk_tokens).read(ids)
    for layer, attention in zip(positions_of(context.run), attentions, strict=True):
        for head, of_head in zip(layer, attention, strict=True):
            sums = of_head.mean(0).sum(0).tolist()
            heavy = best({place: round(sums[place], 5) for place in range(201 - 25)}, 25)
            assert head == heavy + list(range(201 - 25, 201))
    assert context.kept_tokens == 50
    assert context.kv_bytes == bytes_of_slabs(context.run)


def test_it_reads_asks_and_generates_within_its_budget() -> None:
    context = read_words("h2o(keep=40)", chunk_tokens=100)
    assert context.kept_tokens == 40 and context.kv_bytes == bytes_of_slabs(context.run)
    assert len(context.ask("w10 w11 w12", max_new_tokens=6).token_ids) <= 6
    _, run = generated("h2o(keep=40)", [random_ids(120)], 80)
    assert 40 <= run.kept_tokens <= 40 + SLACK_TOKENS


@pytest.mark.parametrize("spread", ["heads", "all"])
def test_heads_may_share_a_budget(spread: str) -> None:
    context = read_words(f"h2o(keep=0.25, spread={spread})")
    lengths = [slab.num_tokens for layer in context.run.layers for slab in layer.slabs]
    assert len(set(lengths)) > 1 and sum(lengths) == 4 * 75


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("recent=1.5", "got recent=1.5; allowed is 0 to 1, the share of the budget for the latest tokens"),
        ("recent=-0.1", "got recent=-0.1; allowed is 0 to 1"),
        ("keep=0", "allowed is a fraction above 0"),
        ("when=never", "when takes read or chunk or always"),
    ],
)
def test_wrong_settings_are_refused(settings: str, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        resolve(f"h2o({settings})")


def test_guesses_that_are_taken_back_leave_scores_and_keys_in_step() -> None:
    model, ids = random_model(), random_ids(40).repeat(3)[None]
    with applied(model, "h2o(keep=40)"):
        out = model.generate(
            ids,
            max_new_tokens=90,
            min_new_tokens=90,
            do_sample=False,
            prompt_lookup_num_tokens=3,
            return_dict_in_generate=True,
        )
        run = out.past_key_values.run
        assert out.sequences.shape == (1, 210) and run.kept_tokens <= 40 + SLACK_TOKENS
        for held in run.held(run.plan.methods[0].method, [0, 1]):
            received = held.state["received"]
            assert 0 <= received.shape[-1] - held.store.num_tokens <= 4
            assert held.store.positions.amax() + 1 == run.seen
