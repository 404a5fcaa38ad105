"""Parallel windows against the authors' procedure: stock forwards over windows, their caches put side by side."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from longspan.engine.api import applied, load, open_context
from longspan.engine.model import SpanModel
from longspan.engine.run import Run
from longspan.errors import UserInputError
from longspan.methods.positions.parallel_windows import PIECE_TOKENS, ParallelWindows, _windows
from tests.methods.positions.maps import distances_of_bands
from tests.methods.positions.small import one_layer, one_model, one_rope, small_llama, worst
from tests.models import FAMILIES, random_ids, random_model, word_tokenizer, words

TEXT, QUESTION = random_ids(233), random_ids(11, seed=5)


def windows_by_hand(ids: Tensor, window: int) -> list[Tensor]:
    if len(ids) <= window:
        return [ids]
    starts = list(range(0, len(ids) - window, window)) + [len(ids) - window]
    return [ids[start : start + window] for start in starts]


@torch.no_grad()
def stock_logits(model: PreTrainedModel, ids: Tensor, question: Tensor, window: int) -> Tensor:
    """Logits `[t, V]` of a question behind windows that the stock model, not attached yet, read one by one at positions 0,
    1, ..."""
    caches = []
    for part in windows_by_hand(ids, window):
        cache = DynamicCache()
        model(part[None], past_key_values=cache)
        caches.append(cache)
    joined = DynamicCache()
    for index in range(model.config.num_hidden_layers):
        keys, values = (
            torch.cat([getattr(cache.layers[index], name) for cache in caches], dim=2)
            for name in ("keys", "values")
        )
        joined.update(keys, values, index)
    first = min(window, len(ids))
    at = torch.arange(first, first + len(question))
    held = joined.get_seq_length()
    mask = torch.ones(len(question), held + len(question), dtype=torch.bool).tril(held)
    return model(
        question[None], past_key_values=joined, position_ids=at[None], attention_mask=mask[None, None]
    ).logits[0]


def asked(span: SpanModel, run: Run, question: Tensor) -> Tensor:
    """Logits `[t, V]` behind each token of a question, which come one by one."""
    reader = span.reader()
    branch = reader.open_question(run, question)
    rows = [reader.advance(branch, token[None]) for token in question]
    branch.give_back(run)
    return torch.cat([row for row in rows if row is not None])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("chunk_tokens", [1024, 64, 13])
@pytest.mark.parametrize("window", [60, 64, 100])
def test_answers_as_the_stock_model_over_joined_windows(kv_heads, chunk_tokens, window):
    model = small_llama(kv_heads=kv_heads)
    wanted = stock_logits(model, TEXT, QUESTION, window)
    span = load(model, f"parallel_windows(window_tokens={window})", chunk_tokens=chunk_tokens)
    run = span.read(TEXT, progress=False).run
    assert run.seen == -(-len(TEXT) // window) * window
    assert worst(asked(span, run, QUESTION), wanted) < 1e-5


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 127, 128, 129])
def test_texts_around_whole_windows(num_tokens):
    model = small_llama()
    wanted = stock_logits(model, TEXT[:num_tokens], QUESTION, 64)
    span = load(model, "parallel_windows(window_tokens=64)", chunk_tokens=37)
    assert worst(asked(span, span.read(TEXT[:num_tokens]).run, QUESTION), wanted) < 1e-5


def test_windows_longer_than_a_piece_are_read_whole():
    window = PIECE_TOKENS + 100
    model, ids = small_llama(layers=1), random_ids(2 * window)
    wanted = stock_logits(model, ids, QUESTION, window)
    span = load(model, f"parallel_windows(window_tokens={window})")
    assert worst(asked(span, span.read(ids, progress=False).run, QUESTION), wanted) < 1e-5


def test_a_question_read_at_once_equals_its_tokens_one_by_one():
    span = load(small_llama(), "parallel_windows(window_tokens=64)")
    run = span.read(TEXT, progress=False).run
    reader = span.reader()
    branch = reader.open_question(run, QUESTION)
    at_once = reader.advance(branch, QUESTION)
    branch.give_back(run)
    assert at_once is not None
    assert worst(at_once[0], asked(span, run, QUESTION)[-1]) < 1e-5


def test_the_order_of_whole_windows_does_not_matter():
    """Nothing says which window came first; stock attention would tell."""
    span = load(small_llama(), "parallel_windows(window_tokens=50)")
    parts = TEXT[:200].split(50)
    forward = asked(span, span.read(torch.cat(parts)).run, QUESTION)
    backward = asked(span, span.read(torch.cat(parts[::-1])).run, QUESTION)
    assert worst(backward, forward) < 1e-5
    turned = asked(span, span.read(torch.cat([TEXT[150:200].flip(0), *parts[1:]])).run, QUESTION)
    assert worst(turned, forward) > 1e-3


def test_bands_of_a_question():
    matrix = distances_of_bands(ParallelWindows(window_tokens=10), 35)
    for t in range(5):
        row = [10 + t - j for _ in range(3) for j in range(10)] + [t - u for u in range(t + 1)]
        assert matrix[30 + t, : 31 + t].tolist() == row


def test_the_window_is_three_quarters_of_the_trained_one_by_default():
    layer = one_layer(rope=one_rope())
    assert ParallelWindows().bands(layer)[0].low(torch.tensor([191, 192])).tolist() == [0, 192]
    ids, model = random_ids(250), small_llama()
    wanted = stock_logits(model, ids, QUESTION, 192)
    span = load(model, "parallel_windows()")
    assert worst(asked(span, span.read(ids).run, QUESTION), wanted) < 1e-5


def test_texts_of_one_window_are_exact():
    model = small_llama()
    with torch.no_grad():
        stock = model(torch.cat([TEXT[:150], QUESTION])[None]).logits[0, 150:]
    span = load(model, "parallel_windows()")
    assert worst(asked(span, span.read(TEXT[:150]).run, QUESTION), stock) < 1e-5


def test_reading_on_sees_everything_and_leaves_the_first_context_alone():
    model = load(random_model(), "parallel_windows(window_tokens=64)", tokenizer=word_tokenizer())
    first = model.read(words(TEXT), progress=False)
    before = asked(model, first.run, QUESTION)
    both = first.read(" " + words(QUESTION))
    assert both.num_tokens == first.num_tokens + len(QUESTION) == 4 * 64 + 11
    assert worst(asked(model, both.run, QUESTION[:1])[0], _behind(model, first.run)) < 1e-5
    assert torch.equal(asked(model, first.run, QUESTION), before)
    assert both.run.origin.tolist()[-12:] == [232, *range(233, 244)]


def _behind(model: SpanModel, run: Run) -> Tensor:
    return asked(model, run, torch.cat([QUESTION, QUESTION[:1]]))[-1]


def split_by(ids: Tensor, size: int) -> Iterable[Tensor]:
    return iter(ids.split(size))


@pytest.mark.parametrize("size", [1, 7, 64, 500])
def test_windows_do_not_depend_on_how_a_text_comes(size):
    for num_tokens, window in ((233, 64), (64, 64), (63, 64), (128, 64), (10, 3)):
        got = list(_windows(split_by(TEXT[:num_tokens], size), window))
        wanted = windows_by_hand(TEXT[:num_tokens], window)
        assert len(got) == len(wanted)
        for (start, tokens), part in zip(got, wanted, strict=True):
            assert torch.equal(tokens, part) and torch.equal(TEXT[start : start + len(part)], part)


def test_sources_name_places_of_the_text(tmp_path: Path):
    model = load(random_model(seed=3), "parallel_windows(window_tokens=64)", tokenizer=word_tokenizer())
    context = model.read(words(TEXT), progress=False)
    assert context.run.origin.tolist() == [*range(192), *range(169, 233)]
    answer = context.ask(words(QUESTION), max_new_tokens=12)
    assert answer.sources
    for source in answer.sources:
        assert int(TEXT[source.token]) in answer.token_ids
    context.save(tmp_path / "a.span")
    back = open_context(tmp_path / "a.span", model)
    assert back.ask(words(QUESTION), max_new_tokens=12).sources == answer.sources


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family not in ("MistralSliding", "Gemma3")]
)
def test_every_family(family):
    model = random_model(family)
    wanted = stock_logits(model, TEXT, QUESTION, 64)
    span = load(model, "parallel_windows(window_tokens=64)", chunk_tokens=50)
    torch.testing.assert_close(asked(span, span.read(TEXT).run, QUESTION), wanted, atol=1e-4, rtol=1e-4)


def test_generate_is_refused():
    with (
        pytest.raises(UserInputError, match="parallel_windows reads a text in its own order"),
        applied(small_llama(), "parallel_windows(window_tokens=64)"),
    ):
        pass


def test_bad_settings():
    with pytest.raises(ValueError, match="got window_tokens=0; allowed is 1 or more, or none for 3/4"):
        ParallelWindows(window_tokens=0)
    with pytest.raises(ValueError, match="parallel_windows changes rotary positions, but no layer of toy"):
        ParallelWindows().check(one_model(one_layer()))
    rope, longer = one_rope(), one_rope(window_tokens=512)
    with pytest.raises(ValueError, match="toy would have windows of 192, None tokens"):
        ParallelWindows().check(one_model(one_layer(rope=rope), one_layer(index=1)))
    with pytest.raises(ValueError, match="windows of 192, 384 tokens .* give window_tokens"):
        ParallelWindows().check(one_model(one_layer(rope=rope), one_layer(index=1, rope=longer)))
    ParallelWindows(window_tokens=64).check(one_model(one_layer(rope=rope), one_layer(index=1, rope=longer)))
    with pytest.raises(ValueError, match="only one method can"):
        load(small_llama(), "parallel_windows(window_tokens=64) + self_extend(window_tokens=64)")
