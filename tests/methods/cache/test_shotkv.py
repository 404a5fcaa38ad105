"""ShotKV: whole shots against a loop over tokens, decoded tokens, freed bytes, padding, and wrong settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from longspan.engine.api import applied, load
from longspan.errors import SpecError
from longspan.methods.cache.shotkv import ShotKV
from longspan.roles import Held
from longspan.spec import resolve
from tests.methods.cache.evicting import (
    Store,
    attentions_of,
    bytes_of_slabs,
    eager_model,
    layer_of,
    positions_of,
    random_text,
)
from tests.models import random_ids, random_model

NUM_TOKENS = 131


def brute_force(attentions: list[Tensor], borders: list[int], *, budget: int, window: int) -> list[int]:
    """Places that all heads of all layers keep, from attention `[K, G, S, S]` of each layer, token by token."""
    num_tokens = attentions[0].shape[-1]
    far, shots = num_tokens - window, {}
    for start, stop in zip(borders, [*borders[1:], num_tokens], strict=True):
        members = [t for t in range(start, stop) if t < far]
        if members:
            votes = [sum(float(a[:, :, far:, t].sum()) for a in attentions) for t in members]
            shots[tuple(members)] = sum(votes) / len(votes)
    kept, room = list(range(far, num_tokens)), budget - window
    for members in sorted(shots, key=lambda m: -shots[m]):
        if len(members) <= room:
            kept += members
            room -= len(members)
    return sorted(kept)


@pytest.mark.parametrize("chunk_tokens", [33, 300])
@pytest.mark.parametrize(
    ("settings", "borders"),
    [
        ("shot_tokens=10", list(range(0, NUM_TOKENS, 10))),
        ("shot_tokens=37", list(range(0, NUM_TOKENS, 37))),
        ("starts=[5, 6, 40, 90, 110]", [0, 5, 6, 40, 90, 110]),
    ],
)
@pytest.mark.parametrize(("keep", "window"), [(60, 8), (0.5, 1), (0.3, 32)])
def test_a_model_keeps_the_shots_that_a_loop_over_tokens_keeps(
    settings: str, borders: list[int], keep: float, window: int, chunk_tokens: int
) -> None:
    model, ids = eager_model(), random_ids(NUM_TOKENS)
    budget = round(keep * NUM_TOKENS) if keep <= 1 else int(keep)
    wanted = brute_force(attentions_of(model, ids), borders, budget=budget, window=window)
    spec = f"shotkv(keep={keep}, window_tokens={window}, {settings})"
    context = load(model, spec, chunk_tokens=chunk_tokens).read(ids)
    assert positions_of(context.run) == [[wanted, wanted]] * 2
    assert context.kept_tokens == len(wanted) <= budget
    assert context.kv_bytes == bytes_of_slabs(context.run)


def held_of(queries: Tensor, keys: Tensor, window: int) -> Held:
    positions = torch.arange(keys.shape[2])[None]
    state: dict[str, Any] = {"queries": queries[:, :, -window:], "positions": positions[:, -window:]}
    return Held(layer_of(4, 2), Store(keys, keys, positions[:, None]), state)


def test_one_token_that_is_wanted_brings_its_whole_shot() -> None:
    queries, keys = random_text(100)
    queries, keys = queries * 0.1, keys * 0.1
    queries[..., 0], keys[..., 0], keys[:, :, 47, 0] = 4.0, -1.0, 4.0
    kept = ShotKV(keep=28, shot_tokens=20, window_tokens=8).compact_together(
        [held_of(queries, keys, 8)], event="read"
    )[0]
    assert kept is not None and kept.tolist() == [[[*range(40, 60), *range(92, 100)]]]


def test_decoded_tokens_are_kept_apart_from_the_text() -> None:
    with applied(
        random_model(), "shotkv(keep=0.5, shot_tokens=10, window_tokens=8, keep_decoded=12)"
    ) as model:
        settings: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True}
        short, long = (
            model.generate(
                random_ids(150)[None], max_new_tokens=n, min_new_tokens=n, **settings
            ).past_key_values.run
            for n in (1, 160)
        )
    for before, after in zip(positions_of(short), positions_of(long), strict=True):
        for text, head in zip(before, after, strict=True):
            assert [p for p in head if p < 150] == text
            decoded = [p for p in head if p >= 150]
            assert 12 <= len(decoded) <= 12 + 64
            assert decoded[-8:] == list(range(301, 309))


def test_of_decoded_tokens_the_wanted_one_stays() -> None:
    queries, keys = random_text(220)
    queries, keys = queries * 0.1, keys * 0.1
    queries[..., 0], keys[..., 0], keys[:, :, 140, 0] = 4.0, -1.0, 4.0
    held = held_of(queries, keys, 8)
    held.state["text_tokens"] = torch.tensor([100])
    kept = ShotKV(keep_decoded=9, window_tokens=8).compact_together([held], event="token")[0]
    assert kept is not None and kept.tolist() == [[[*range(100), 140, *range(212, 220)]]]


def test_generate_with_left_padding_equals_single_runs() -> None:
    model = eager_model()
    texts = [random_ids(length, seed=length) for length in (200, 140)]
    ids, mask = torch.zeros(2, 200, dtype=torch.long), torch.zeros(2, 200, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, 200 - len(text) :], mask[row, 200 - len(text) :] = text, 1
    settings: dict[str, Any] = {"max_new_tokens": 90, "min_new_tokens": 90, "do_sample": False}
    with applied(model, "shotkv(keep=0.5, shot_tokens=10, window_tokens=8, keep_decoded=8)"):
        together = model.generate(ids, attention_mask=mask, **settings)
        for row, text in enumerate(texts):
            alone = model.generate(text[None], **settings)
            assert torch.equal(together[row, 200:], alone[0, len(text) :])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("shot_tokens=0", "got shot_tokens=0; allowed is 1 or more"),
        ("window_tokens=0", "got window_tokens=0; allowed is 1 or more"),
        ("keep=16", "got keep=16, less than the 32 tokens of the window"),
        ("keep_decoded=16", "got keep_decoded=16, less than the 32 tokens of the window"),
        ("starts=[9, 4]", r"got starts=\[9, 4\]; allowed are tokens after the first, ascending"),
        ("starts=[0, 4]", r"got starts=\[0, 4\]; allowed are tokens after the first, ascending"),
    ],
)
def test_wrong_settings_are_refused(settings: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        resolve(f"shotkv({settings})")


def test_a_share_below_the_window_is_refused_in_one_sentence() -> None:
    with pytest.raises(
        ValueError, match=r"keep=0.1 of 131 tokens is 13, less than the 32 tokens of the window"
    ):
        load(random_model(), "shotkv(keep=0.1)").read(random_ids(NUM_TOKENS))
