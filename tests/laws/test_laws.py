"""Laws that every method obeys, on whatever methods there are (longspan/methods/<family>/<name>.py).

A method is picked up by its file. Its card gives `example`, a spec that acts on a text of 300 tokens, and `identity`,
a spec at which it must equal dense attention; `tolerances` names a law that holds only approximately, with the reason.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from longspan.card import all_cards
from longspan.engine.api import applied, load, open_context
from longspan.engine.context import Context
from longspan.engine.model import SpanModel
from longspan.engine.run import Run
from tests.models import full_logits, random_ids, random_model, word_tokenizer, words

CARDS = all_cards()
NAMES = sorted(CARDS)
TEXT_TOKENS = 300
FAMILIES_FOR_LAWS = ("Llama", "Gemma3", "Phi3")


def make(spec: str, family: str = "Llama", **settings: int) -> SpanModel:
    return load(random_model(family), spec, tokenizer=word_tokenizer(), **settings)


def next_logits(model: SpanModel, run: Run, ids: torch.Tensor) -> torch.Tensor:
    """Logits behind a question, asked of a run that stays as it is: `[V]`."""
    branch = model.reader().open_question(run, ids)
    logits = model.reader().advance(branch, ids)
    assert logits is not None
    branch.give_back(run)
    return logits[0]


def read(model: SpanModel, ids: torch.Tensor) -> Context:
    return model.read(words(ids), progress=False)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", FAMILIES_FOR_LAWS)
def test_full_budget_equals_dense(name: str, family: str) -> None:
    ids, question = random_ids(TEXT_TOKENS), random_ids(9, seed=5)
    dense, span = make("dense", family), make(CARDS[name].identity, family)
    expected = next_logits(dense, read(dense, ids).run, question)
    torch.testing.assert_close(
        next_logits(span, read(span, ids).run, question), expected, atol=1e-4, rtol=1e-4
    )
    if "Reading" not in CARDS[name].roles:
        torch.testing.assert_close(full_logits(span, ids), full_logits(dense, ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "dense"])
def test_the_example_acts(name: str) -> None:
    """A method that changed nothing would pass every other law."""
    ids, question = random_ids(TEXT_TOKENS), random_ids(9, seed=5)
    dense, span = make("dense", chunk_tokens=100), make(CARDS[name].example, chunk_tokens=100)
    plain, acted = read(dense, ids), read(span, ids)
    difference = (
        (next_logits(span, acted.run, question) - next_logits(dense, plain.run, question)).abs().max()
    )
    assert difference > 1e-3 or acted.kept_tokens < plain.kept_tokens


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk_tokens", [64, 128])
def test_reading_in_chunks_equals_reading_at_once(name: str, chunk_tokens: int) -> None:
    if "chunked_reading" in CARDS[name].tolerances:
        pytest.skip(CARDS[name].tolerances["chunked_reading"])
    ids, question = random_ids(TEXT_TOKENS), random_ids(9, seed=5)
    whole, pieces = (
        make(CARDS[name].example, chunk_tokens=512),
        make(CARDS[name].example, chunk_tokens=chunk_tokens),
    )
    torch.testing.assert_close(
        next_logits(pieces, read(pieces, ids).run, question),
        next_logits(whole, read(whole, ids).run, question),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_equals_a_text(name: str) -> None:
    """However the pieces of a stream come, the engine cuts them the same way: exact for every method."""
    model, text, question = (
        make(CARDS[name].example, chunk_tokens=64),
        words(random_ids(TEXT_TOKENS)),
        random_ids(9, seed=5),
    )
    stream = (text[i : i + 17] for i in range(0, len(text), 17))
    assert torch.equal(
        next_logits(model, model.read(stream, progress=False).run, question),
        next_logits(model, model.read(text, progress=False).run, question),
    )


@pytest.mark.parametrize("name", NAMES)
def test_asking_never_changes_the_context(name: str) -> None:
    model = make(CARDS[name].example)
    context, question = read(model, random_ids(TEXT_TOKENS)), random_ids(9, seed=5)
    before, held = next_logits(model, context.run, question), context.kv_bytes
    first = context.ask("w10 w11 w12", max_new_tokens=5)
    context.ask("w400 w7", max_new_tokens=9, sources=False)
    assert torch.equal(next_logits(model, context.run, question), before)
    again = context.ask("w10 w11 w12", max_new_tokens=5)
    assert (again.text, again.sources) == (first.text, first.sources)
    assert (context.num_tokens, context.kv_bytes) == (read(model, random_ids(TEXT_TOKENS)).num_tokens, held)


@pytest.mark.parametrize("name", NAMES)
def test_two_branches_of_one_context_do_not_meet(name: str) -> None:
    """Two questions in flight at once: each decodes as if it were alone."""
    model = make(CARDS[name].example)
    context = read(model, random_ids(TEXT_TOKENS))
    if "Reading" in CARDS[name].roles:
        pytest.skip("a Reading opens its own run for a question")
    reader, asks = model.reader(), [random_ids(9, seed=5), random_ids(7, seed=6)]
    alone = []
    for ask in asks:
        branch = context.run.fork()
        reader.advance(branch, ask)
        alone.append(reader.advance(branch, torch.tensor([33])))
        branch.give_back(context.run)
    branches = [context.run.fork(), context.run.fork()]
    for branch, ask in zip(branches, asks, strict=True):
        reader.advance(branch, ask)
    for branch, expected in zip(branches, alone, strict=True):
        torch.testing.assert_close(reader.advance(branch, torch.tensor([33])), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load_equals_never_saving(name: str, tmp_path: Path) -> None:
    model, question = make(CARDS[name].example), random_ids(9, seed=5)
    context = read(model, random_ids(TEXT_TOKENS))
    context.save(tmp_path / "book.span")
    back = open_context(tmp_path / "book.span", model)
    assert torch.equal(next_logits(model, back.run, question), next_logits(model, context.run, question))
    assert back.num_tokens == context.num_tokens and back.kept_tokens == context.kept_tokens
    assert back.ask("w10 w11", max_new_tokens=4).text == context.ask("w10 w11", max_new_tokens=4).text


@pytest.mark.parametrize("name", [n for n in NAMES if "Reading" not in CARDS[n].roles])
def test_a_batch_with_left_padding_equals_single_runs(name: str) -> None:
    if "left_padding" in CARDS[name].tolerances:
        pytest.skip(CARDS[name].tolerances["left_padding"])
    rows = [random_ids(210, seed=3), random_ids(TEXT_TOKENS, seed=4)]
    batch = torch.zeros(2, TEXT_TOKENS, dtype=torch.long)
    for row, ids in zip(batch, rows, strict=True):
        row[-len(ids) :] = ids
    model = random_model()
    with applied(model, CARDS[name].example):
        alone = [_two_steps(model, ids[None], None) for ids in rows]
        together = _two_steps(model, batch, (batch > 0).long())
    for number, expected in enumerate(alone):
        torch.testing.assert_close(together[number], expected[0], atol=1e-4, rtol=1e-4)


def _two_steps(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Logits behind a prompt and behind one more token, through the model's own forward: `[B, 2, V]`."""
    mask = torch.ones_like(ids) if mask is None else mask
    at = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        first = model(input_ids=ids, attention_mask=mask, position_ids=at)
        token = torch.full((len(ids), 1), 77)
        grown = torch.cat([mask, torch.ones_like(token)], 1)
        second = model(
            input_ids=token,
            attention_mask=grown,
            position_ids=at[:, -1:] + 1,
            past_key_values=first.past_key_values,
        )
    return torch.stack([first.logits[:, -1], second.logits[:, -1]], 1)


@pytest.mark.parametrize("name", NAMES)
def test_detach_restores_the_model_bit_for_bit(name: str) -> None:
    model, ids = random_model(), random_ids(120)
    with torch.no_grad():
        stock = model(ids[None]).logits
    span = load(model, CARDS[name].example, tokenizer=word_tokenizer())
    read(span, ids).ask("w9 w8", max_new_tokens=3)
    span.detach()
    with torch.no_grad():
        assert torch.equal(model(ids[None]).logits, stock)
    assert not model.model.layers[0].self_attn._forward_pre_hooks and "generate" not in vars(model)
