"""StreamingLLM: sinks and the latest tokens, a cache that never grows, positions that stay; wrong settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from longspan.engine.api import load
from longspan.errors import SpecError
from longspan.methods.cache.streaming import Streaming
from longspan.spec import resolve
from tests.methods.cache.evicting import (
    HEAD_DIM,
    SLACK_TOKENS,
    bytes_of_slabs,
    generated,
    held_after,
    padded,
    positions_of,
    random_text,
    read_words,
    steps_of,
)
from tests.models import random_ids, random_model, word_tokenizer, words


def brute_force(
    method: Streaming, num_tokens: int, *, chunk: int | None = None, answer: int = 0
) -> list[int]:
    """Positions held, token by token."""
    held: list[int] = []
    target = 0
    for start, stop, events in steps_of(num_tokens, chunk, answer):
        held += range(start, stop)
        for event in events:
            if event == "token":
                due = method.when == "always" and len(held) > target + SLACK_TOKENS
            elif due := event == "read" or method.when != "read":
                target = round(method.keep * stop) if method.keep <= 1 else int(method.keep)
                due = len(held) > target
            while due and len(held) > target:
                held.remove(next(place for place in held if place >= method.sink_tokens))
    return held


@pytest.mark.parametrize("when", ["read", "chunk", "always"])
@pytest.mark.parametrize(("keep", "sinks"), [(20, 4), (0.5, 0), (33, 1), (6, 5)])
@pytest.mark.parametrize(("num_tokens", "chunk", "answer"), [(61, None, 0), (129, 17, 0), (200, 40, 100)])
def test_sinks_and_the_latest_stay(
    when: Any, keep: float, sinks: int, num_tokens: int, chunk: int | None, answer: int
) -> None:
    queries, keys = random_text(num_tokens)
    method = Streaming(keep=keep, sink_tokens=sinks, when=when)
    held = held_after(method, queries, keys, chunk=chunk, answer=answer)[0]
    assert held == [brute_force(method, num_tokens, chunk=chunk, answer=answer)] * 2


def test_a_random_choice_would_be_seen() -> None:
    held = held_after(Streaming(keep=30), *random_text(500))[0]
    assert held == [[0, 1, 2, 3, *range(474, 500)]] * 2


def test_rows_with_left_padding_keep_what_they_keep_alone() -> None:
    texts = [random_text(length, seed=length) for length in (90, 55, 30)]
    together = held_after(Streaming(keep=0.4), *padded(texts))
    assert together == [held_after(Streaming(keep=0.4), q, k)[0] for q, k in texts]


def test_a_stream_of_any_length_has_the_same_cache_and_its_own_positions() -> None:
    model = load(random_model(), "streaming(keep=40)", tokenizer=word_tokenizer(), chunk_tokens=64)

    def stream(pieces: int) -> Iterator[str]:
        for number in range(pieces):
            yield words(random_ids(50, seed=number)) + " "

    shorter, longer = (model.read(stream(pieces), progress=False) for pieces in (6, 30))
    assert (shorter.num_tokens, longer.num_tokens) == (300, 1500)
    assert shorter.kept_tokens == longer.kept_tokens == 40
    assert shorter.kv_bytes == longer.kv_bytes == bytes_of_slabs(longer.run)
    assert longer.run.peak_bytes <= shorter.run.peak_bytes
    assert longer.run.peak_bytes <= 2 * (2 * 2 * HEAD_DIM * 4 + 8) * (40 + 64 + 64)
    assert positions_of(longer.run) == [[[0, 1, 2, 3, *range(1464, 1500)]] * 2] * 2


def test_places_far_into_a_stream_keep_their_order() -> None:
    """Positions beyond what float32 counts: they are compared with the latest."""
    start = 2**26
    queries, keys = random_text(60)
    at = torch.arange(60)[None] + start
    at[0, :4] = torch.arange(4)
    held = held_after(Streaming(keep=20), queries, keys, at)[0]
    assert held == [[0, 1, 2, 3, *range(start + 44, start + 60)]] * 2


def test_it_reads_asks_and_generates_within_its_budget() -> None:
    context = read_words("streaming(keep=40)", chunk_tokens=100)
    assert context.kept_tokens == 40
    assert len(context.ask("w10 w11 w12", max_new_tokens=6).token_ids) <= 6
    _, run = generated("streaming(keep=40)", [random_ids(120)], 80)
    assert 40 <= run.kept_tokens <= 40 + SLACK_TOKENS
    assert positions_of(run)[0][0][:4] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("sink_tokens=-1", "got sink_tokens=-1; allowed is 0 or more, such as sink_tokens=4"),
        ("keep=4", "got keep=4, less than the 5 tokens of sinks and window, which always stay"),
        ("spread=heads", "got spread=heads; allowed is uniform, since every head keeps the same tokens"),
        ("when=never", "when takes read or chunk or always"),
    ],
)
def test_wrong_settings_are_refused(settings: str, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        resolve(f"streaming({settings})")
