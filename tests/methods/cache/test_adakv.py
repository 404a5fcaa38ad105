"""Ada-KV: what the heads of a layer keep together against a loop over the model's own attention; bytes; wrong settings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longspan.engine.api import load
from longspan.errors import SpecError
from longspan.methods.cache.adakv import AdaKV
from longspan.roles import Held, Step
from longspan.spec import resolve
from tests.methods.cache.evicting import (
    Store,
    attentions_of,
    best,
    bytes_of_slabs,
    eager_model,
    generated,
    layer_of,
    logits_of,
    positions_of,
    random_text,
    read_words,
    softmax,
)
from tests.models import random_ids


def votes_of(attention: list[list[list[float]]], window: int, pool: int) -> dict[int, float]:
    """Votes for each place before the window, from attention `[G][window][S]` of one kv head."""
    far = len(attention[0][0]) - window
    votes = dict.fromkeys(range(far), 0.0)
    for group in attention:
        sums = [sum(row[k] for row in group) for k in range(far)]
        for k in range(far):
            votes[k] += max(sums[max(0, k - pool // 2) : k + pool // 2 + 1]) / len(attention)
    return {k: round(vote, 6) for k, vote in votes.items()}


def shared(
    votes: list[dict[int, float]], *, budget: int, window: int, floor: float, num_tokens: int
) -> list[list[int]]:
    """What each head keeps: its window, its floor, and then the best of all heads."""
    latest = list(range(num_tokens - window, num_tokens))
    owned = [best(head, max(0, int(floor * budget) - window)) for head in votes]
    rest = sorted(
        (-vote, number, place)
        for number, head in enumerate(votes)
        for place, vote in head.items()
        if place not in owned[number]
    )
    left = len(votes) * (budget - window) - sum(map(len, owned))
    for _, number, place in rest[:left]:
        owned[number].append(place)
    return [sorted(head) + latest for head in owned]


@pytest.mark.parametrize("floor", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize(("num_tokens", "keep"), [(61, 20), (96, 0.25), (129, 50)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 1), (5, 5)])
def test_heads_keep_what_a_loop_over_all_of_them_keeps(
    floor: float, num_tokens: int, keep: float, heads: int, kv_heads: int
) -> None:
    queries, keys = random_text(num_tokens, heads=heads, kv_heads=kv_heads)
    keys = keys * torch.linspace(0.2, 1, kv_heads)[None, :, None, None]  # flat heads and sharp ones
    method = AdaKV(keep=keep, window_tokens=6, floor=floor)
    layer, at, groups = layer_of(heads, kv_heads), torch.arange(num_tokens)[None], heads // kv_heads
    held = []
    for number, group in enumerate(method.split(layer)):
        store = Store(keys[:, list(group)], keys[:, list(group)], at[:, None], group)
        held.append(Held(layer, store, {}))
        of_head = queries[:, number * groups : (number + 1) * groups]
        method.observe(
            Step(
                layer=layer,
                phase="prefill",
                queries=of_head,
                query_positions=at,
                store=store,
                num_new=num_tokens,
                state=held[-1].state,
                logits=store.logits,
            )
        )
    kept = [places[0, 0].tolist() for places in method.compact_together(held, event="read")]
    budget = round(keep * num_tokens) if keep <= 1 else int(keep)
    votes = []
    for of_head in logits_of(queries, keys):
        attention = []
        for logits in of_head:
            rows = [softmax(logits[t], list(range(t + 1))) for t in range(num_tokens - 6, num_tokens)]
            attention.append([[row.get(k, 0.0) for k in range(num_tokens)] for row in rows])
        votes.append(votes_of(attention, 6, 7))
    assert kept == shared(votes, budget=budget, window=6, floor=floor, num_tokens=num_tokens)
    assert sum(map(len, kept)) == kv_heads * budget
    assert min(map(len, kept)) >= int(floor * budget)


def model_wanted(attention: Tensor, budget: int, floor: float) -> list[list[int]]:
    votes = [votes_of(groups[:, -16:].tolist(), 16, 7) for groups in attention]
    return shared(votes, budget=budget, window=16, floor=floor, num_tokens=attention.shape[-1])


@pytest.mark.parametrize("chunk_tokens", [64, 300])
@pytest.mark.parametrize("floor", [0.2, 0.9])
def test_a_model_keeps_what_its_own_heads_vote_for_and_frees_the_rest(
    chunk_tokens: int, floor: float
) -> None:
    model, ids = eager_model(), random_ids(201)
    attentions = attentions_of(model, ids)
    spec = f"adakv(keep=0.25, window_tokens=16, floor={floor})"
    context = load(model, spec, chunk_tokens=chunk_tokens).read(ids)
    assert positions_of(context.run) == [model_wanted(x, 50, floor) for x in attentions]
    assert context.kept_tokens == 50
    assert context.kv_bytes == bytes_of_slabs(context.run)
    lengths = [len(head) for layer in positions_of(context.run) for head in layer]
    assert min(lengths) >= int(floor * 50) and len(set(lengths)) > 1


def test_a_head_with_many_needles_takes_room_from_one_with_none() -> None:
    """An even split, or a random one, would lose ten of them."""
    queries, keys = torch.zeros(1, 2, 200, 16), torch.zeros(1, 2, 200, 16)
    queries[..., 0] = 6.0
    keys[0, 0, 20:50, 0] = 5.0
    method = AdaKV(keep=22, window_tokens=2, pool_tokens=1, floor=0.0)
    layer, at = layer_of(2, 2), torch.arange(200)[None]
    held = []
    for head in (0, 1):
        store = Store(keys[:, [head]], keys[:, [head]], at[:, None], (head,))
        state = {"queries": queries[:, [head], -2:], "positions": at[:, -2:]}
        held.append(Held(layer, store, state))
    first, second = (x[0, 0].tolist() for x in method.compact_together(held, event="read"))
    assert set(range(20, 50)) <= set(first)
    assert len(first) + len(second) == 44 and second[-2:] == [198, 199]


def test_an_even_spread_is_snapkv() -> None:
    ada, snap = read_words("adakv(keep=0.25, spread=uniform)"), read_words("snapkv(keep=0.25)")
    assert positions_of(ada.run) == positions_of(snap.run)
    full = read_words("adakv(keep=0.25, floor=1)")
    assert positions_of(full.run) == positions_of(snap.run)
    assert positions_of(read_words("adakv(keep=0.25)").run) != positions_of(snap.run)


def test_it_reads_on_asks_and_generates() -> None:
    context = read_words("adakv(keep=0.25)", chunk_tokens=100)
    assert len(context.ask("w10 w11 w12", max_new_tokens=6).token_ids) <= 6
    assert context.read(random_ids(100, seed=4)).kept_tokens == 100
    tokens, run = generated("adakv(keep=40)", [random_ids(120), random_ids(77)], 6)
    assert tokens.shape == (2, 6)
    assert torch.equal(tokens[1], generated("adakv(keep=40)", [random_ids(77)], 6)[0][0])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("floor=1.5", "got floor=1.5; allowed is 0 to 1, a share of an even budget"),
        ("spread=rows", "spread takes uniform or heads or all"),
        ("keep=31", "got keep=31, less than the 32 tokens of the window"),
        ("window_tokens=0", "got window_tokens=0"),
    ],
)
def test_wrong_settings_are_refused(settings: str, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        resolve(f"adakv({settings})")
