"""GemFilter against the stock model: projections of one layer, loops over tokens, stock logits of what it chose."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from longspan.engine.api import load, open_context
from longspan.errors import SpecError
from longspan.methods.cache.gemfilter import GemFilter
from tests.models import random_ids, random_model, word_tokenizer, words

TEXT, QUESTION = random_ids(233), random_ids(11, seed=5)


def last_logits(model: PreTrainedModel, ids: Tensor, layer: int) -> Tensor:
    """Scaled products `[H, S]` of the last query with every key at a layer, from stock hidden states and weights."""
    with torch.no_grad():
        hidden = model(ids[None], output_hidden_states=True).hidden_states[layer]
        block = model.model.layers[layer]
        normed, attention = block.input_layernorm(hidden), block.self_attn
        shape = (1, len(ids), -1, attention.head_dim)
        queries, keys = (f(normed).view(shape).transpose(1, 2) for f in (attention.q_proj, attention.k_proj))
        cos, sin = model.model.rotary_emb(hidden, torch.arange(len(ids))[None])
        queries, keys = apply_rotary_pos_emb(queries, keys, cos, sin)
        groups = queries.shape[1] // keys.shape[1]
        return (
            torch.stack([keys[0, h // groups] @ queries[0, h, -1] for h in range(queries.shape[1])])
            * attention.scaling
        )


def brute_choice(logits: Tensor, num_tokens: int, keep: int, pool: int, score: str) -> list[int]:
    rows = logits.softmax(-1) if score == "softmax" else logits
    total = [sum(float(row[j]) for row in rows) for j in range(logits.shape[1])]
    half = pool // 2
    pooled = [sum(total[max(0, j - half) : j + half + 1]) / pool for j in range(num_tokens)]
    return sorted(sorted(range(num_tokens), key=lambda j: -pooled[j])[:keep])


def asked(model: object, ids: Tensor, question: Tensor) -> tuple[list[int], Tensor]:
    """Places chosen and the logits behind the question."""
    span = model
    run = span.read(ids, progress=False).run  # type: ignore[attr-defined]
    branch = span.reader().open_question(run, question)  # type: ignore[attr-defined]
    return branch.origin.tolist(), span.reader().advance(branch, question)[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("score", ["logits", "softmax"])
@pytest.mark.parametrize(("layer", "keep", "pool"), [(0, 41, 5), (1, 63, 1), (2, 100, 7)])
def test_chooses_and_answers_as_the_stock_model_says(layer: int, keep: int, pool: int, score: str) -> None:
    stock = random_model(num_layers=4)
    places = brute_choice(
        last_logits(stock, torch.cat([TEXT, QUESTION]), layer), len(TEXT), keep, pool, score
    )
    with torch.no_grad():
        expected = stock(torch.cat([TEXT[places], QUESTION])[None]).logits[0, -1]
    span = load(
        stock, f"gemfilter(keep={keep}, layer={layer}, pool_tokens={pool}, score={score})", chunk_tokens=50
    )
    found, logits = asked(span, TEXT, QUESTION)
    assert found == places
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_the_question_decides_and_not_the_place() -> None:
    span = load(random_model(num_layers=4), "gemfilter(keep=40)")
    first, second = asked(span, TEXT, QUESTION)[0], asked(span, TEXT, random_ids(11, seed=6))[0]
    assert first != second
    for places in (first, second):
        assert len(places) == 40 and places == sorted(set(places))
        assert (
            places != list(range(len(TEXT) - 40, len(TEXT)))
            and max(b - a for a, b in zip(places, places[1:], strict=False)) > 1
        )


def test_layers_above_the_filter_hold_nothing() -> None:
    model = load(random_model(num_layers=4), "gemfilter(keep=40)", tokenizer=word_tokenizer())
    context = model.read(words(TEXT), progress=False)
    held = [layer.slabs[0].num_tokens for layer in context.run.layers]
    assert held == [len(TEXT)] * 3 + [0]  # round(4 * 13 / 32) = 2
    dense = model.with_methods(None).read(words(TEXT), progress=False)
    assert context.kv_bytes == dense.kv_bytes * 3 // 4
    assert context.ask("w9 w8 w7", max_new_tokens=2).usage.peak_kv_bytes > context.kv_bytes


def test_a_text_within_the_budget_is_read_as_it_is() -> None:
    stock = random_model(num_layers=3)
    with torch.no_grad():
        expected = stock(torch.cat([TEXT, QUESTION])[None]).logits[0, -1]
    places, logits = asked(load(stock, "gemfilter(keep=1.0)"), TEXT, QUESTION)
    assert places == list(range(len(TEXT)))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_reading_on_equals_reading_at_once() -> None:
    model = load(
        random_model(num_layers=4), "gemfilter(keep=64)", tokenizer=word_tokenizer(), chunk_tokens=37
    )
    whole = model.read(words(TEXT), progress=False)
    first = model.read(words(TEXT[:150]), progress=False)
    both = first.read(" " + words(TEXT[150:]))
    assert both.num_tokens == whole.num_tokens and first.num_tokens == 150
    reader = model.reader()
    found = [reader.open_question(context.run, QUESTION).origin.tolist() for context in (both, whole)]
    assert found[0] == found[1]


def test_the_answer_does_not_depend_on_tracing_and_sources_are_of_the_text() -> None:
    model = load(random_model(num_layers=4, seed=3), "gemfilter(keep=64)", tokenizer=word_tokenizer())
    context = model.read(words(TEXT), progress=False)
    with_sources = context.ask(words(QUESTION), max_new_tokens=12)
    without = context.ask(words(QUESTION), max_new_tokens=12, sources=False)
    assert with_sources.token_ids == without.token_ids
    text_ids = context.run.ids.tolist()
    assert with_sources.sources
    for source in with_sources.sources:
        assert text_ids[source.token] in with_sources.token_ids
        assert f"w{text_ids[source.token]}" in source.text


def test_saved_contexts_answer_the_same(tmp_path: Path) -> None:
    model = load(random_model(num_layers=4), "gemfilter(keep=64)", tokenizer=word_tokenizer())
    context = model.read(words(TEXT), progress=False)
    context.save(tmp_path / "a.span")
    back = open_context(tmp_path / "a.span", model)
    assert back.ask("w5 w6", max_new_tokens=6).token_ids == context.ask("w5 w6", max_new_tokens=6).token_ids


def test_keys_that_are_gone_are_not_chosen() -> None:
    logits = torch.randn(4, 60)
    logits[:, 10:30] = -torch.inf
    logits[:2, 30:35] = -torch.inf  # held by two heads of four
    places = GemFilter(keep=35).choose(logits, 50)
    assert len(places) == 30 and not set(range(10, 30)) & set(places.tolist())
    assert len(GemFilter(keep=0.25).choose(torch.randn(4, 60), 50)) == 12


def test_finds_tokens_that_no_window_holds_any_more() -> None:
    """A filter pass that visits a window only still scores every stored key, at the capped distance."""
    stock, text = random_model(num_layers=4), random_ids(900, seed=9)
    near = "lm_infinite(evict=false, global_tokens=4, window_tokens=64)"
    places, logits = asked(load(stock, f"{near} + gemfilter(keep=50)", chunk_tokens=128), text, QUESTION)
    assert sum(4 <= place < 900 - 64 for place in places) > 25
    only = load(stock, near, chunk_tokens=128)
    expected = only.reader().advance(only.read(text[places], progress=False).run, QUESTION)
    assert expected is not None
    torch.testing.assert_close(logits, expected[0], atol=1e-4, rtol=1e-4)


def test_a_sliding_layer_is_passed_over() -> None:
    span = load(random_model("Gemma3", num_layers=4), "gemfilter(keep=20)")
    method = span.plan.reading
    assert isinstance(method, GemFilter) and method.filter_layer(span.info) == 1  # 2 slides; 1 and 3 do not
    assert len(asked(span, TEXT, QUESTION)[0]) == 20


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gemfilter(keep=0)", "allowed is a fraction above 0"),
        ("gemfilter(pool_tokens=4)", "allowed is an odd number"),
        ("gemfilter(score=max)", "logits or softmax"),
        ("gemfilter(layer=-1)", "allowed is 0 or more"),
        ("gemfilter(layer=4)", "has layers 0 to 3"),
        ("gemfilter + gemfilter", "only one method can"),
    ],
)
def test_bad_settings_are_refused(spec: str, message: str) -> None:
    with pytest.raises((ValueError, SpecError), match=message):
        load(random_model(num_layers=4), spec)


def test_sliding_layers_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="write layer=1"):
        load(random_model("Gemma3", num_layers=4), "gemfilter(layer=2)")
    with pytest.raises(ValueError, match="every layer of .* has a sliding window"):
        load(random_model("MistralSliding"), "gemfilter")
