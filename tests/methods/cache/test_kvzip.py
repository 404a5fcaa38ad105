"""KVzip: scores against the attention of a model that is fed its text twice, budgets over heads and layers, appended text."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longspan.engine.api import applied, load
from longspan.engine.store import Slab
from longspan.errors import SpecError, UserInputError
from longspan.roles import Coded
from longspan.spec import resolve
from tests.methods.cache.evicting import attentions_of, bytes_of_slabs, eager_model, positions_of
from tests.models import random_ids, random_model, word_tokenizer, words

NUM_TOKENS = 91
SINKS, LEAD = 4, 8


def received_by_text(ids: Tensor, *, chunk: int, prompt: list[int]) -> list[list[list[float]]]:
    """Score of each token, per layer and kv head, from dense attention over text and repetition, key by key."""
    model, num_tokens = eager_model(), len(ids)
    scores: list[list[list[float]]] = [[[], []], [[], []]]
    for start in range(0, num_tokens, chunk):
        stop = min(start + chunk, num_tokens)
        repeated = torch.cat((torch.tensor(prompt, dtype=torch.long), ids[max(0, start - LEAD) : stop]))
        for layer, attention in enumerate(attentions_of(model, torch.cat((ids, repeated)))):
            for kv in range(2):
                best = [0.0] * (stop - start)
                for g in range(2):
                    for t in range(num_tokens, num_tokens + len(repeated)):
                        row = attention[kv, g, t].tolist()
                        seen = sum(row[: min(SINKS, start)]) + sum(row[start:stop]) + sum(row[num_tokens:])
                        best = [max(b, x / seen) for b, x in zip(best, row[start:stop], strict=True)]
                scores[layer][kv] += best
    return scores


def brute_force(scores: list[list[list[float]]], budget: int, spread: str) -> list[list[list[int]]]:
    """The best places of all heads together, of a layer's, or of each; the sink stays in all."""
    ranked = sorted(
        ((s, layer, kv, place) for layer, heads in enumerate(scores) for kv, head in enumerate(heads)
         for place, s in enumerate(head) if place >= SINKS),
        key=lambda x: (-x[0], x[1:]),
    )  # fmt: skip
    groups = {
        "all": lambda layer, kv: 0,
        "heads": lambda layer, kv: layer,
        "uniform": lambda layer, kv: (layer, kv),
    }
    heads_in = {"all": 4, "heads": 2, "uniform": 1}[spread]
    kept = [[list(range(SINKS)) for _ in heads] for heads in scores]
    spent: dict[object, int] = {}
    for _, layer, kv, place in ranked:
        group = groups[spread](layer, kv)
        if spent.get(group, 0) < heads_in * (budget - SINKS):
            spent[group] = spent.get(group, 0) + 1
            kept[layer][kv].append(place)
    return [[sorted(head) for head in heads] for heads in kept]


@pytest.mark.parametrize("spread", ["all", "heads", "uniform"])
@pytest.mark.parametrize(("chunk", "prompt"), [(100, []), (40, []), (33, [7, 8, 9])])
def test_a_model_keeps_what_its_repetition_attends_to(chunk: int, prompt: list[int], spread: str) -> None:
    ids = random_ids(NUM_TOKENS)
    spec = f"kvzip(keep=0.33, chunk_tokens={chunk}, prompt_ids={prompt}, spread={spread})"
    context = load(eager_model(), spec, chunk_tokens=50).read(ids)
    wanted = brute_force(received_by_text(ids, chunk=chunk, prompt=prompt), 30, spread)
    assert positions_of(context.run) == wanted
    assert context.kept_tokens == 30 and context.num_tokens == NUM_TOKENS
    assert context.kv_bytes == bytes_of_slabs(context.run)


def test_heads_get_unequal_shares_of_one_budget() -> None:
    context = load(random_model(), "kvzip(keep=0.5)").read(random_ids(NUM_TOKENS))
    lengths = [len(head) for layer in positions_of(context.run) for head in layer]
    assert sum(lengths) == 4 * round(0.5 * NUM_TOKENS) and len(set(lengths)) > 1


def test_slices_of_a_long_repetition_score_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, spec = random_ids(NUM_TOKENS), "kvzip(keep=0.4, chunk_tokens=40)"
    whole = positions_of(load(random_model(), spec).read(ids).run)
    monkeypatch.setattr("longspan.methods.cache.kvzip.LOGITS_AT_ONCE", 2 * 100 * 5)
    assert positions_of(load(random_model(), spec).read(ids).run) == whole


def test_appended_text_competes_with_what_earlier_text_scored() -> None:
    model, ids = load(random_model(), "kvzip(keep=0.5)", tokenizer=word_tokenizer()), random_ids(160)
    context = model.read(words(ids[:100]), progress=False)
    before = positions_of(context.run)
    longer = context.read(words(ids[100:]))
    assert positions_of(context.run) == before
    assert longer.num_tokens == context.num_tokens + 60
    kept = positions_of(longer.run)
    assert sum(len(head) for layer in kept for head in layer) == 4 * round(0.5 * longer.num_tokens)
    for old, new in zip(before, kept, strict=True):
        for was, is_now in zip(old, new, strict=True):
            assert {p for p in is_now if p < context.num_tokens} <= set(was)
            assert any(p >= context.num_tokens for p in is_now)


def test_an_answer_leaves_what_is_kept_alone() -> None:
    context = load(random_model(), "kvzip(keep=0.5)", tokenizer=word_tokenizer()).read(
        words(random_ids(NUM_TOKENS)), progress=False
    )
    before = positions_of(context.run)
    assert len(context.ask("w10 w11", max_new_tokens=6).token_ids) > 0
    assert positions_of(context.run) == before


def test_a_codec_beside_it_codes_what_stays_and_nothing_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model, text, coded = random_model(), words(random_ids(NUM_TOKENS)), []
    alone = load(model, "kvzip(keep=0.5)", tokenizer=word_tokenizer()).read(text, progress=False)
    code = Slab.code

    def watched(slab: Slab, given: Coded) -> None:
        coded.append(given.num_tokens)
        code(slab, given)

    monkeypatch.setattr(Slab, "code", watched)
    spec = "kvzip(keep=0.5) + kivi(bits=4, residual_tokens=0)"
    both = load(model, spec, tokenizer=word_tokenizer()).read(text, progress=False)
    assert positions_of(both.run) == positions_of(alone.run)
    slabs = [slab for layer in both.run.layers for slab in layer.slabs]
    assert all(slab.coded_tokens == slab.num_tokens // 32 * 32 for slab in slabs)
    assert coded
    assert both.kv_bytes < alone.kv_bytes


def test_generate_is_refused() -> None:
    with (
        pytest.raises(UserInputError, match="kvzip reads a text in its own order"),
        applied(random_model(), "kvzip"),
    ):
        pass


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("chunk_tokens=0", "got chunk_tokens=0; allowed is 1 or more"),
        ("lead_tokens=-1", "got lead_tokens=-1; allowed is 0 or more"),
        ("sink_tokens=0", "got sink_tokens=0; allowed is 1 or more"),
        ("when=always", "when takes read"),
        ("prompt_ids=[-3]", r"got prompt_ids=\[-3\]; allowed are token ids, 0 or more"),
    ],
)
def test_wrong_settings_are_refused(settings: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        resolve(f"kvzip({settings})")
