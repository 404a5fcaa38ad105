"""Found in the Middle against the stock model: attention by loops over tokens, and a stock forward with a bias."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from longspan.engine.api import applied, load
from longspan.engine.model import SpanModel
from longspan.engine.prompt import Prompt, encode
from longspan.errors import SpecError
from longspan.evaluation.haystacks.pydoc import pydoc_haystack
from longspan.evaluation.sample import make_sample
from longspan.evaluation.suites.keyvalue import TASKS
from longspan.methods.attention.found_in_the_middle import FoundInTheMiddle
from tests.models import random_ids, random_model, word_tokenizer, words

TEXT, QUESTION = random_ids(131), random_ids(9, seed=5)


def projections(model: PreTrainedModel, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Rotated queries `[H, S, D]` and keys `[K, S, D]` of every layer, from stock hidden states and weights."""
    found = []
    with torch.no_grad():
        states = model(ids[None], output_hidden_states=True).hidden_states
        cos, sin = model.model.rotary_emb(states[0], torch.arange(len(ids))[None])
        for hidden, block in zip(states, model.model.layers, strict=False):
            normed, attention = block.input_layernorm(hidden), block.self_attn
            shape = (1, len(ids), -1, attention.head_dim)
            queries, keys = (
                f(normed).view(shape).transpose(1, 2) for f in (attention.q_proj, attention.k_proj)
            )
            queries, keys = apply_rotary_pos_emb(queries, keys, cos, sin)
            found.append((queries[0], keys[0]))
    return found


def brute_factors(
    model: PreTrainedModel,
    text: Tensor,
    question: Tensor,
    documents: list[tuple[int, int]],
    dummy: Tensor,
    temperature: float,
) -> list[float]:
    """Log factor on each document's attention, in float64, token by token."""
    asked = projections(model, torch.cat([text, question]))
    placed = [
        projections(model, torch.cat([text[:start], dummy[: stop - start]])) for start, stop in documents
    ]
    scale = model.model.layers[0].self_attn.scaling
    plain, empty = [0.0] * len(documents), [0.0] * len(documents)
    rows = [(layer, head) for layer in range(len(asked)) for head in range(asked[0][0].shape[0])]
    for layer, head in rows:
        queries, keys = asked[layer]
        kv = head // (queries.shape[0] // keys.shape[0])
        query = queries[head, -1].double()
        weights = [math.exp(scale * float(query @ key.double())) for key in keys[kv]]
        for k, (start, stop) in enumerate(documents):
            dummy_keys = placed[k][layer][1][kv, start:]
            on_dummy = [math.exp(scale * float(query @ key.double())) for key in dummy_keys]
            others = sum(weights[:start]) + sum(weights[stop:])
            plain[k] += sum(weights[start:stop]) / sum(weights) / (stop - start) / len(rows)
            empty[k] += sum(on_dummy) / (others + sum(on_dummy)) / (stop - start) / len(rows)
    relevance = [(a - b) / temperature for a, b in zip(plain, empty, strict=True)]
    top = max(relevance)
    alpha = [math.exp(r - top) for r in relevance]
    lengths = [stop - start for start, stop in documents]
    total = sum(a * n for a, n in zip(plain, lengths, strict=True)) / sum(
        a * n for a, n in zip(alpha, lengths, strict=True)
    )
    return [math.log(a * total / p) for a, p in zip(alpha, plain, strict=True)]


def biased_logits(
    model: PreTrainedModel, ids: Tensor, bias: Tensor, queries_from: int, layers: range
) -> Tensor:
    """Stock logits of the last token where the queries from a place on, in some layers, get a bias on their keys."""
    mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)
    mask[queries_from:, : len(bias)] += bias

    def before(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, kwargs | {"attention_mask": mask[None, None]}

    handles = [
        model.model.layers[i].self_attn.register_forward_pre_hook(before, with_kwargs=True) for i in layers
    ]
    with torch.no_grad():
        logits = model(ids[None]).logits[0, -1]
    for handle in handles:
        handle.remove()
    return logits


def asked(span: SpanModel, text: Tensor, question: Tensor) -> tuple[dict[int, Any], Tensor]:
    """What was measured, and the logits behind the question."""
    branch = span.reader().open_question(span.read(text, progress=False).run, question)
    logits = span.reader().advance(branch, question)
    assert logits is not None
    (measured,) = branch.ask_states.values()
    return measured, logits[0]


@pytest.mark.parametrize("temperature", [0.02, 0.001])
def test_measures_and_steers_as_the_stock_model_says(temperature: float) -> None:
    stock = random_model(num_layers=3)
    documents = [(4, 34), (34, 64), (64, 94), (94, 131)]
    dummy = TEXT[[i * 131 // 37 for i in range(37)]]
    factors = brute_factors(stock, TEXT, QUESTION, documents, dummy, temperature)
    assert max(factors) > 0 > min(factors)  # some documents gain, some lose
    bias = torch.zeros(len(TEXT))
    for factor, (start, stop) in zip(factors, documents, strict=True):
        bias[start:stop] = factor
    expected = biased_logits(stock, torch.cat([TEXT, QUESTION]), bias, len(TEXT), range(1, 3))
    span = load(stock, f"found_in_the_middle(document_tokens=30, temperature={temperature})", chunk_tokens=50)
    measured, logits = asked(span, TEXT, QUESTION)
    assert sorted(measured) == [1, 2]  # the last half of three layers, rounded up
    for found in measured.values():
        torch.testing.assert_close(found[0], bias, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


def test_the_place_of_a_document_does_not_decide() -> None:
    """Attention that differs by place alone is taken out: equal relevance gives equal shares."""
    lengths = torch.tensor([10, 10, 10, 20])
    plain, dummy = torch.tensor([0.03, 0.004, 0.002, 0.01]), torch.tensor([0.029, 0.003, 0.001, 0.009])
    factors = FoundInTheMiddle().factors(plain, dummy, lengths)
    after = plain * factors.exp()
    torch.testing.assert_close(after, after[:1].expand(4), atol=1e-6, rtol=1e-3)
    torch.testing.assert_close((after * lengths).sum(), (plain * lengths).sum(), atol=1e-6, rtol=1e-5)
    middle = FoundInTheMiddle().factors(plain + torch.tensor([0.0, 0.0, 1e-3, 0.0]), dummy, lengths)
    assert int(middle.argmax()) == 2 and float(middle[0]) < -5


def test_a_document_that_is_gone_gets_no_factor() -> None:
    lengths = torch.tensor([10, 10, 10])
    factors = FoundInTheMiddle().factors(
        torch.tensor([0.01, 0.0, 0.01]), torch.tensor([0.01, 0.01, 0.01]), lengths
    )
    assert factors.isfinite().all() and float(factors[1]) == 0.0


def test_documents_cover_the_text() -> None:
    ids = torch.arange(10, 260)
    assert FoundInTheMiddle(document_tokens=100).documents(torch.arange(254)) == [
        (4, 104),
        (104, 204),
        (204, 254),
    ]
    assert FoundInTheMiddle(document_tokens=100).documents(ids) == [(4, 104), (104, 250)]
    assert FoundInTheMiddle(document_tokens=80, sink_tokens=0).documents(ids) == [
        (0, 80),
        (80, 160),
        (160, 250),
    ]
    assert FoundInTheMiddle(document_tokens=300).documents(ids) == [(4, 250)]
    marked = torch.tensor([1, 1, 7, 7, 5, 5, 5, 7, 6, 7, 7, 8])
    assert FoundInTheMiddle(separator_id=7, sink_tokens=0).documents(marked) == [
        (0, 4),
        (4, 8),
        (8, 11),
        (11, 12),
    ]
    with pytest.raises(ValueError, match="which the text does not hold"):
        FoundInTheMiddle(separator_id=9).documents(marked)


def test_separators_and_a_given_dummy_are_used() -> None:
    stock = random_model(num_layers=2)
    text = TEXT.clone()
    text[[30, 31, 80]] = 77
    spec = "found_in_the_middle(separator_id=77, temperature=0.01, sink_tokens=2, dummy_ids=[9, 10, 11])"
    documents, dummy = [(2, 32), (32, 81), (81, 131)], torch.tensor([9, 10, 11] * 17)
    factors = brute_factors(stock, text, QUESTION, documents, dummy, 0.01)
    measured, _ = asked(load(stock, spec), text, QUESTION)
    for factor, (start, stop) in zip(factors, documents, strict=True):
        torch.testing.assert_close(
            measured[1][0, start:stop], torch.full((stop - start,), factor), atol=1e-3, rtol=1e-4
        )
    assert not measured[1][0, :2].any()


def test_two_questions_measure_different_things_and_the_context_stays() -> None:
    model = load(
        random_model(num_layers=4),
        "found_in_the_middle(document_tokens=30, temperature=0.001)",
        tokenizer=word_tokenizer(),
    )
    context = model.read(words(TEXT), progress=False)
    held = context.kv_bytes
    first = context.ask(words(QUESTION), max_new_tokens=6)
    context.ask(words(random_ids(9, seed=6)), max_new_tokens=6)
    assert context.ask(words(QUESTION), max_new_tokens=6, sources=False).token_ids == first.token_ids
    assert context.kv_bytes == held
    measured = [
        model.reader().open_question(context.run, ids).ask_states[0][3]
        for ids in (QUESTION, random_ids(9, seed=6))
    ]
    assert float((measured[0] - measured[1]).abs().max()) > 0.1


@pytest.mark.parametrize(
    "other",
    [
        "snapkv(keep=0.5, window_tokens=8)",
        "gemfilter(keep=100)",
        "lm_infinite(evict=false, window_tokens=64)",
    ],
)
def test_combines_with_what_drops_moves_and_chooses(other: str) -> None:
    span = load(
        random_model(num_layers=4),
        f"{other} + found_in_the_middle(document_tokens=30, temperature=0.01)",
        chunk_tokens=50,
    )
    measured, logits = asked(span, TEXT, QUESTION)
    plain = load(random_model(num_layers=4), other, chunk_tokens=50)
    branch = plain.reader().open_question(plain.read(TEXT, progress=False).run, QUESTION)
    unsteered = plain.reader().advance(branch, QUESTION)
    assert unsteered is not None and sorted(measured) == [2, 3]
    assert logits.isfinite().all() and float((logits - unsteered[0]).abs().max()) > 1e-3


def test_sliding_layers_are_left_out() -> None:
    span = load(
        random_model("Gemma3", num_layers=4), "found_in_the_middle(document_tokens=30, temperature=0.01)"
    )
    measured, logits = asked(span, TEXT, QUESTION)
    assert sorted(measured) == [3] and logits.isfinite().all()


def test_generate_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="generate.. has no question"),
        applied(random_model(), "found_in_the_middle"),
    ):
        pass


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("found_in_the_middle(document_tokens=1)", "allowed is 2 or more"),
        ("found_in_the_middle(temperature=0)", "allowed is above 0"),
        ("found_in_the_middle(last_layers=0)", "allowed is 1 or more"),
        ("found_in_the_middle(last_layers=3)", "has 2 layers"),
        ("found_in_the_middle(sink_tokens=-1)", "allowed is 0 or more"),
        ("found_in_the_middle(separator_id=-2)", "allowed is a token id"),
    ],
)
def test_bad_settings_are_refused(spec: str, message: str) -> None:
    with pytest.raises((ValueError, SpecError), match=message):
        load(random_model(), spec)


@pytest.mark.slow
def test_calibrated_attention_ranks_the_right_document_first_in_the_reference_model() -> None:
    """The ranking claim of the paper: calibrated attention finds the fact, at least as often as plain attention."""
    model = load("reference", "found_in_the_middle")
    (method,) = (scoped.method for scoped in model.plan.methods)
    assert isinstance(method, FoundInTheMiddle)
    haystack, first = pydoc_haystack(), {"plain": 0, "calibrated": 0}
    for seed in range(4):
        sample = make_sample(
            TASKS["keys8_facts"],
            name="keys8_facts",
            haystack=haystack,
            length_tokens=2400,
            tokenizer=model.tokenizer,
            seed=seed,
            depth=0.5,
        )
        run = model.read(sample.context, progress=False).run
        question = encode(
            model.tokenizer, Prompt.of(model.tokenizer).question(sample.question, sample.answer_prefix)
        )
        documents = method.documents(run.ids)
        plain, dummy, _ = method.measure(model.reader(), run, question, documents)
        for name, scores in (("plain", plain), ("calibrated", plain - dummy)):
            start, stop = documents[int(scores.argmax())]
            around = model.tokenizer.decode(run.ids[max(0, start - 20) : stop + 20])
            first[name] += sample.references[0] in around and sample.evidence[0][:20] in around
    assert first["calibrated"] >= max(3, first["plain"]), first
