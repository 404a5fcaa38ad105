"""Compactor: leverage and block attention against loops over tokens, chunks, padding, freed bytes, and wrong settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from longspan.engine.api import applied, load
from longspan.errors import SpecError
from longspan.methods.cache.compactor import RIDGE, Compactor
from longspan.spec import resolve
from tests.methods.cache.evicting import (
    HEAD_DIM,
    bytes_of_slabs,
    eager_model,
    held_after,
    positions_of,
    random_text,
)
from tests.methods.cache.rotating import dense_pass, turn
from tests.models import random_ids

NUM_TOKENS, BLOCK, SINKS, LATEST = 103, 24, 8, 4


def leverage_of(keys: list[list[float]], sketch: Tensor | None) -> list[float]:
    """x (X'X)^-1 x' of each key before rotation, one by one."""
    mean = [sum(k[i] for k in keys) / len(keys) for i in range(HEAD_DIM)]
    x = torch.tensor([[k[i] - mean[i] for i in range(HEAD_DIM)] for k in keys], dtype=torch.float64)
    x = x if sketch is None else x @ sketch.double()
    gram = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for row in x:
        gram += torch.outer(row, row)
    inverse = torch.linalg.inv(gram + RIDGE * torch.eye(len(gram), dtype=torch.float64))
    return [float(row @ inverse @ row) for row in x]


def attention_of(
    queries: list[list[list[float]]], keys: list[list[float]], norms: list[float]
) -> list[float]:
    """What each key gets from all queries of its block, mean over heads, times its value's norm, pooled over three."""
    received = []
    for start in range(0, len(keys), BLOCK):
        block = range(start, min(start + BLOCK, len(keys)))
        sums = dict.fromkeys(block, 0.0)
        for head in queries:
            for t in block:
                logits = {j: sum(a * b for a, b in zip(head[t], keys[j], strict=True)) for j in block}
                top = max(logits.values())
                total = sum(math.exp(x - top) for x in logits.values())
                for j in block:
                    sums[j] += math.exp(logits[j] - top) / total / len(queries)
        received += [sums[j] * norms[j] for j in block]
    return [sum(received[max(0, j - 1) : j + 2]) / 3 for j in range(len(received))]


def normal(scores: list[float]) -> list[float]:
    mean = sum(scores) / len(scores)
    deviation = (sum((x - mean) ** 2 for x in scores) / (len(scores) - 1)) ** 0.5
    return [(x - mean) / deviation for x in scores]


def brute_force(
    queries: Tensor, keys: Tensor, values: Tensor, *, budget: int, blending: float, sketch: Tensor | None
) -> list[list[int]]:
    places, groups = [], queries.shape[1] // len(keys)
    for kv in range(len(keys)):
        rows = keys[kv, SINKS:].double().tolist()
        plain = [turn(k, -place) for place, k in enumerate(rows, start=SINKS)]
        turned = [
            [turn(q, place) for place, q in enumerate(queries[SINKS:, head].double().tolist(), start=SINKS)]
            for head in range(kv * groups, (kv + 1) * groups)
        ]
        attention = normal(attention_of(turned, rows, values[kv, SINKS:].double().norm(dim=-1).tolist()))
        leverage = normal(leverage_of(plain, sketch))
        scores = {
            place: blending * a + b
            for place, (a, b) in enumerate(zip(leverage, attention, strict=True), start=SINKS)
            if place < NUM_TOKENS - LATEST
        }
        ranked = sorted(scores, key=lambda place: -scores[place])[: budget - SINKS - LATEST]
        places.append(sorted([*range(SINKS), *ranked, *range(NUM_TOKENS - LATEST, NUM_TOKENS)]))
    return places


@pytest.mark.parametrize("chunk_tokens", [17, 300])
@pytest.mark.parametrize(("blending", "sketch_dims"), [(0.35, 48), (2.0, 8), (0.0, 48)])
def test_a_model_keeps_what_a_loop_over_tokens_keeps(
    chunk_tokens: int, blending: float, sketch_dims: int
) -> None:
    model, ids = eager_model(), random_ids(NUM_TOKENS)
    layers = dense_pass(model, ids)
    sketch = None
    if sketch_dims < HEAD_DIM:
        sketch = torch.randn(HEAD_DIM, sketch_dims, generator=torch.Generator().manual_seed(3))
        sketch /= sketch_dims**0.5
    spec = f"compactor(keep=40, block_tokens={BLOCK}, blending={blending}, sketch_dims={sketch_dims}, seed=3)"
    context = load(model, spec, chunk_tokens=chunk_tokens).read(ids)
    assert context.kept_tokens == 40
    assert positions_of(context.run) == [
        brute_force(*tensors, budget=40, blending=blending, sketch=sketch) for tensors in layers
    ]
    assert context.kv_bytes == bytes_of_slabs(context.run)


@pytest.mark.parametrize("mapped", ["self_extend(group_size=4, window_tokens=250)", ""])
@pytest.mark.parametrize("spread", ["heads", "all"])
def test_heads_stored_apart_score_as_those_stored_together(mapped: str, spread: str) -> None:
    """With a full floor each head keeps its own best, however it is stored."""
    model, ids = eager_model(), random_ids(NUM_TOKENS)
    spec = f"compactor(keep=40, block_tokens={BLOCK}, floor=1.0, spread={spread})"
    together = load(model, f"compactor(keep=40, block_tokens={BLOCK})").read(ids)
    apart = load(model, f"{mapped} + {spec}" if mapped else spec).read(ids)
    assert positions_of(apart.run) == positions_of(together.run)


def test_an_outlier_that_nothing_attends_to_stays_by_its_leverage() -> None:
    queries, keys = random_text(80, heads=2, kv_heads=1)
    keys = keys * 0.05
    keys[..., 0] = 0.0
    queries = queries * 0.05
    queries[..., 0] = -5.0
    keys[0, 0, 33, 0] = 4.0
    assert 33 in held_after(Compactor(keep=14, blending=3.0), queries, keys)[0][0]
    assert 33 not in held_after(Compactor(keep=14, blending=0.0), queries, keys)[0][0]


@pytest.mark.parametrize(("keep", "weight"), [(0.25, 0.75), (0.06, 0.94), (20, 0.35), ("1MB", 0.35)])
def test_the_more_is_dropped_the_more_leverage_counts(keep: Any, weight: float) -> None:
    queries, keys = random_text(300, heads=2, kv_heads=1)
    assert Compactor(keep=keep).leverage_weight() == pytest.approx(weight)
    assert Compactor(keep=keep, blending=2.0).leverage_weight() == 2.0
    if keep == 0.25:
        own, other = (held_after(Compactor(keep=keep, blending=b), queries, keys)[0] for b in (None, 0.35))
        assert own == held_after(Compactor(keep=keep, blending=0.75), queries, keys)[0] and own != other


def test_a_key_that_only_earlier_queries_want_stays() -> None:
    """No causal attention would show it: what looks for it stands before it."""
    queries, keys = random_text(80, heads=2, kv_heads=1)
    keys, queries = keys * 0.05, queries * 0.05
    keys[..., 0], keys[0, 0, 60, 0] = -3.0, 3.0  # of one norm
    queries[:, :, 20:50, 0] = 3.0
    assert 60 in held_after(Compactor(keep=14, blending=0.0), queries, keys)[0][0]
    assert 60 not in held_after(Compactor(keep=14, blending=0.0, block_tokens=16), queries, keys)[0][0]


@pytest.mark.parametrize("when", ["chunk", "always"])
def test_the_budget_holds_at_every_step(when: Any) -> None:
    queries, keys = random_text(400)
    held = held_after(
        Compactor(keep=40, when=when, block_tokens=16),
        queries,
        keys,
        chunk=50,
        answer=100 if when == "always" else 0,
    )
    assert all(40 <= len(head) <= 40 + 64 for head in held[0])
    assert all(
        head[:SINKS] == list(range(SINKS)) and head[-LATEST:] == [396, 397, 398, 399] for head in held[0]
    )


def test_generate_with_left_padding_equals_single_runs() -> None:
    model = eager_model()
    texts = [random_ids(length, seed=length) for length in (200, 140)]
    ids, mask = torch.zeros(2, 200, dtype=torch.long), torch.zeros(2, 200, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, 200 - len(text) :], mask[row, 200 - len(text) :] = text, 1
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with applied(model, "compactor(keep=0.25, block_tokens=32)"):
        together = model.generate(ids, attention_mask=mask, **settings)
        for row, text in enumerate(texts):
            alone = model.generate(text[None], **settings)
            assert torch.equal(together[row, 200:], alone[0, len(text) :])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("block_tokens=0", "got block_tokens=0; allowed is 1 or more"),
        ("sketch_dims=0", "got sketch_dims=0; allowed is 1 or more"),
        ("blending=-1", "got blending=-1; allowed is 0 or more"),
        ("keep=8", "got keep=8, less than the 12 tokens at both ends"),
    ],
)
def test_wrong_settings_are_refused(settings: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        resolve(f"compactor({settings})")
