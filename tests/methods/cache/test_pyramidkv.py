"""PyramidKV: budgets of layers against the formula, kept places against the model's own attention; bytes; wrong settings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longspan.engine.api import load
from longspan.errors import SpecError
from longspan.methods.cache.pyramidkv import PyramidKV
from longspan.spec import resolve
from tests.methods.cache.evicting import (
    attentions_of,
    best,
    bytes_of_slabs,
    eager_model,
    generated,
    positions_of,
    read_words,
)
from tests.models import random_ids, random_model, word_tokenizer


def budgets_of(*, keep: int, window: int, beta: float, num_layers: int, num_tokens: int) -> list[float]:
    """The paper's budgets, not yet whole: an arithmetic sequence from the first layer to the last."""
    mean = keep - window
    last = mean / beta
    first = 2 * mean - last
    if first > num_tokens - window:
        first = num_tokens - window
        last = 2 * mean - first
    return [window + first - (first - last) * layer / (num_layers - 1) for layer in range(num_layers)]


def brute_force(attention: Tensor, *, budget: int, window: int, pool: int) -> list[list[int]]:
    """Places that each kv head keeps, from attention `[K, G, S, S]`, token by token."""
    places, num_tokens = [], attention.shape[-1]
    far = num_tokens - window
    for groups in attention:
        votes = dict.fromkeys(range(far), 0.0)
        for group in groups:
            sums = [float(group[far:, k].sum()) for k in range(far)]
            for k in range(far):
                votes[k] += max(sums[max(0, k - pool // 2) : k + pool // 2 + 1]) / len(groups)
        chosen = best({k: round(vote, 6) for k, vote in votes.items()}, budget - window)
        places.append(chosen + list(range(far, num_tokens)))
    return places


@pytest.mark.parametrize("num_layers", [2, 4])
@pytest.mark.parametrize(
    ("keep", "window", "beta"),
    [(60, 8, 20), (60, 8, 2), (61, 1, 20), (0.25, 16, 5), (200, 8, 20), (40, 8, 1)],
)
def test_layers_keep_an_even_fall_that_sums_to_the_budget(
    keep: float, window: int, beta: float, num_layers: int
) -> None:
    method = PyramidKV(keep=keep, window_tokens=window, beta=beta)
    model = load(random_model(num_layers=num_layers), method, tokenizer=word_tokenizer())
    context = model.read(random_ids(300))
    budget = round(keep * 300) if keep <= 1 else int(keep)
    exact = budgets_of(keep=budget, window=window, beta=beta, num_layers=num_layers, num_tokens=300)
    held = [layer.kept_tokens for layer in context.run.layers]
    assert sum(held) == num_layers * budget == num_layers * context.kept_tokens
    assert all(abs(got - wanted) <= 1 for got, wanted in zip(held, exact, strict=True))
    assert (held[0] > held[-1]) == (beta > 1)
    assert context.kv_bytes == bytes_of_slabs(context.run)


def test_numbers_of_the_paper() -> None:
    """32 layers, 2048 tokens of a long text, beta 20: from 3986 beyond the window down to 102."""
    weights = PyramidKV().layer_weights(32, 10.0)
    assert sum(weights) == pytest.approx(32)
    assert [round(2040 * weights[layer]) for layer in (0, 31)] == [3978, 102]
    falls = {round(a - b, 9) for a, b in zip(weights, weights[1:], strict=False)}
    assert len(falls) == 1


def test_a_first_layer_that_would_keep_more_than_there_is_keeps_its_text() -> None:
    context = read_words("pyramidkv(keep=0.75)")
    assert [layer.kept_tokens for layer in context.run.layers] == [300, 150]


def test_layers_with_one_window_of_their_own_are_not_counted() -> None:
    model = load(random_model("Gemma3"), "pyramidkv(keep=0.25)", tokenizer=word_tokenizer())
    context = model.read(random_ids(300))
    assert context.run.layers[1].kept_tokens == 75


@pytest.mark.parametrize("chunk_tokens", [64, 300])
def test_a_model_keeps_what_its_own_attention_votes_for(chunk_tokens: int) -> None:
    model, ids = eager_model(), random_ids(201)
    attentions = attentions_of(model, ids)
    context = load(model, "pyramidkv(keep=0.3, beta=4)", chunk_tokens=chunk_tokens).read(ids)
    budgets = [int(layer.kept_tokens) for layer in context.run.layers]
    assert budgets == [99, 21]  # 8 of the window, and 1.75 and 0.25 times 52
    wanted = [
        brute_force(attention, budget=budget, window=8, pool=7)
        for attention, budget in zip(attentions, budgets, strict=True)
    ]
    assert positions_of(context.run) == wanted


def test_another_layer_than_the_first_would_not_do() -> None:
    """An even budget, as SnapKV's, keeps other places."""
    even, pyramid = read_words("snapkv(keep=0.3, window_tokens=8)"), read_words("pyramidkv(keep=0.3)")
    assert even.kept_tokens == pyramid.kept_tokens == 90
    assert positions_of(even.run)[0] != positions_of(pyramid.run)[0]
    assert set(positions_of(even.run)[0][0]) < set(positions_of(pyramid.run)[0][0])


def test_it_reads_on_asks_and_generates() -> None:
    context = read_words("pyramidkv(keep=0.25)", chunk_tokens=100)
    assert len(context.ask("w10 w11 w12", max_new_tokens=6).token_ids) <= 6
    assert context.read(random_ids(100, seed=4)).kept_tokens == 100
    tokens, run = generated("pyramidkv(keep=40)", [random_ids(120), random_ids(77)], 6)
    assert tokens.shape == (2, 6) and run.kept_tokens == 40 + 5
    assert torch.equal(tokens[1], generated("pyramidkv(keep=40)", [random_ids(77)], 6)[0][0])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("beta=0.5", r"got beta=0.5; allowed is 1 \(all layers alike\) or more, such as beta=20"),
        ("when=chunk", "got when=chunk with a budget that differs from layer to layer"),
        ("keep=7", "got keep=7, less than the 8 tokens of the window"),
        ("pool_tokens=2", "allowed is an odd number"),
    ],
)
def test_wrong_settings_are_refused(settings: str, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        resolve(f"pyramidkv({settings})")
