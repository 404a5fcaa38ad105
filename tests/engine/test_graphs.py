"""Recorded steps of decoding: the same logits as steps that run as they are, for every method and family; what cannot be
recorded runs as it is and says why."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaModel

from longspan.card import all_cards
from longspan.engine.api import load
from longspan.engine.attention import NewTokens, attend_layer
from longspan.engine.graphs import WARM_STEPS, depends_on_length, model_state
from longspan.engine.model import SpanModel
from longspan.engine.run import Run
from longspan.engine.seam import SpanCache
from tests.models import FAMILIES, VOCAB, random_ids, random_model, word_tokenizer, words

CARDS = all_cards()
STEPS = WARM_STEPS + 6
gpu = pytest.mark.gpu


def decoded(span: SpanModel, run: Run, ids: Tensor, *, graphs: bool) -> Tensor:
    """Logits `[n, V]` of `ids` one by one behind a fork of the run."""
    reader = span.reader()
    if not graphs:
        reader.graphs = None
    branch = reader.open_question(run, ids)
    found = [reader.advance(branch, token[None]) for token in ids]
    run.backends.update(branch.backends)
    branch.give_back(run)
    return torch.cat([logits for logits in found if logits is not None])


def steps_of(run: Run) -> dict[str, int]:
    """How many steps ran from graphs and how many did not."""
    found: dict[str, int] = {}
    for choice, calls in run.backends.items():
        if choice.op == "step":
            found[choice.backend] = found.get(choice.backend, 0) + calls
    return found


def reasons(run: Run) -> str:
    """Why steps ran as they are."""
    return "; ".join(reason for choice in run.backends for _, reason in choice.skipped if choice.op == "step")


def loaded(model: nn.Module, spec: str = "dense") -> tuple[SpanModel, Run]:
    span = load(model.cuda(), spec, tokenizer=word_tokenizer(), chunk_tokens=128)
    ids = torch.randperm(VOCAB - 10, generator=torch.Generator().manual_seed(2))[:200] + 10
    return span, span.read(words(ids)).run


def test_what_stands_in_for_attention_gets_its_inputs_and_gives_its_output() -> None:
    """The seam's part of a recording, which needs no GPU."""
    model = random_model("Qwen3")
    span = load(model, "ntk(factor=2)")
    reader = span.reader()
    run = reader.prefill(reader.new_run(), [random_ids(50)])
    usual, other = run.fork(), run.fork()
    expected = reader.advance(usual, torch.tensor([7]))
    nobody, first = Run(plan=span.plan, chunk_tokens=64, seen=run.seen), run.seen
    at, layers = torch.tensor([[first]]), []

    def attend(index: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        layers.append(index)
        new = NewTokens(
            queries=queries, keys=keys, values=values, positions=at, first=first, padded=False, scale=scale
        )
        return attend_layer(other, index, new).transpose(1, 2)

    nobody.cut = attend
    with torch.no_grad():
        given = model(input_ids=torch.tensor([[7]]), position_ids=at, past_key_values=SpanCache(nobody))
    assert torch.equal(given.logits[:, -1], expected) and layers == [0, 1]
    assert not nobody.layers[0].slabs[0].num_tokens and other.seen == usual.seen == first + 1
    span.detach()


def test_a_model_that_cannot_be_recorded_says_why() -> None:
    model = random_model()
    assert model_state(model) == "the weights are on cpu"
    handle = model.lm_head.register_forward_hook(lambda *given: None)
    assert model_state(model) == "a Linear has a hook"
    handle.remove()
    model.lm_head.forward = model.lm_head.forward  # type: ignore[method-assign]
    assert "was replaced" in model_state(model)
    assert "trained" in model_state(model.train())


def test_a_forward_that_counts_what_was_read_is_found() -> None:
    class Counts(LlamaModel):
        def forward(self, input_ids: Tensor, past_key_values: SpanCache, **others: object) -> object:
            shifted = (input_ids + past_key_values.get_seq_length()) % VOCAB
            return super().forward(input_ids=shifted, past_key_values=past_key_values, **others)

    model = random_model()
    span = load(model)
    nobody = Run(plan=span.plan, chunk_tokens=64, seen=40)
    step = torch.tensor([[7]]), torch.tensor([[40]])
    with torch.no_grad():
        assert not depends_on_length(model, nobody, *step)
        model.model.__class__ = Counts
        assert depends_on_length(model, nobody, *step) and nobody.seen == 40
    span.detach()


@gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    span, run = loaded(random_model(family))
    ids = random_ids(STEPS, seed=5)
    ours, expected = decoded(span, run, ids, graphs=True), decoded(span, run, ids, graphs=False)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    recorded = steps_of(run).get("graphs", 0)
    assert recorded == STEPS - WARM_STEPS or "cannot be recorded" in reasons(run), reasons(run)
    assert recorded or family in ("Phi3", "Qwen3Moe"), reasons(run)
    span.detach()


@gpu
@pytest.mark.parametrize("name", sorted(CARDS))
def test_methods(name: str) -> None:
    """Whatever a method does at a step, it does it at a replayed one; keeps what it was given, not what comes later."""
    span, run = loaded(random_model(), CARDS[name].example)
    ids = torch.arange(STEPS) + 300
    ours, expected = decoded(span, run, ids, graphs=True), decoded(span, run, ids, graphs=False)
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=2e-3)
    assert steps_of(run)["graphs"] >= STEPS - WARM_STEPS - 1
    span.detach()


@gpu
def test_specs_and_runs_in_turns_share_recordings() -> None:
    span, run = loaded(random_model())
    other = span.with_methods("ntk(factor=3)")
    ids = random_ids(2 * STEPS, seed=6)
    for spec in (span, other, span):
        own = spec.read(words(random_ids(100, seed=8))).run
        for held in (run, own) if spec is span else (own,):
            expected = decoded(spec, held, ids, graphs=False)
            torch.testing.assert_close(decoded(spec, held, ids, graphs=True), expected, atol=1e-4, rtol=1e-4)
    assert span.loaded.graphs is not None and len(span.loaded.graphs._recorded) == 2
    # two runs, a token each in turns; earlier logits stay as they were
    reader, branches = span.reader(), [run.fork(), span.read(words(random_ids(60, seed=9))).run]
    both = [[], []]
    for token in ids[:STEPS]:
        for place, branch in enumerate(branches):
            both[place].append(reader.advance(branch, token[None]))
    expected = decoded(span, run, ids[:STEPS], graphs=False)
    torch.testing.assert_close(torch.cat(both[0]), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(torch.cat(both[1]), expected)
    span.detach()


@gpu
def test_hooks_are_called_and_new_weights_count() -> None:
    span, run = loaded(random_model())
    ids, called = random_ids(STEPS, seed=7), []
    decoded(span, run, ids, graphs=True)
    handle = span.hf_model.model.layers[1].mlp.register_forward_hook(lambda *given: called.append(1))
    decoded(span, run, ids, graphs=True)
    assert len(called) == STEPS and "a LlamaMLP has a hook" in reasons(run)
    handle.remove()
    before = decoded(span, run, ids, graphs=True)
    head = span.hf_model.lm_head
    head.weight = nn.Parameter(-head.weight.detach())
    torch.testing.assert_close(decoded(span, run, ids, graphs=True), -before, atol=1e-4, rtol=1e-4)
    span.detach()


@gpu
def test_a_forward_that_reads_values_runs_as_it_is() -> None:
    class Reads(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (2.0 if float(x.abs().sum()) >= 0 else 1.0)

    model = random_model()
    model.model.layers[1].mlp.down_proj.__class__ = Reads
    span, run = loaded(model)
    ids = random_ids(STEPS, seed=5)
    ours, expected = decoded(span, run, ids, graphs=True), decoded(span, run, ids, graphs=False)
    assert torch.equal(ours, expected) and "graphs" not in steps_of(run)
    assert "LlamaForCausalLM cannot be recorded" in reasons(run)
    span.detach()
    test_families("Llama")  # and the device is none the worse


@gpu
def test_the_reference_model_answers_alike() -> None:
    span = load("reference", "snapkv(keep=0.5)", device="cuda")
    text = "The sea was grey. " * 80 + "The magic number of Brindle is 58213. " + "The quay was still. " * 80
    context = span.read(text)
    answers = [context.ask("What is the magic number of Brindle?") for _ in range(2)]
    span.loaded.graphs = None
    answers.append(context.ask("What is the magic number of Brindle?"))
    assert answers[0].token_ids == answers[1].token_ids == answers[2].token_ids
    assert any(row["op"] == "step" and row["backend"] == "graphs" for row in answers[1].usage.backends)
