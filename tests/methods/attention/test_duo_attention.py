"""DuoAttention: which heads are chosen, what they visit and keep, against references written out here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from longspan.engine.api import applied, load
from longspan.engine.model import SpanModel
from longspan.errors import SpecError
from longspan.methods.attention.duo_attention import (
    BUNDLED,
    SLACK_TOKENS,
    DuoAttention,
    Gates,
    load_gates,
    save_gates,
    sink_and_recent,
)
from tests.models import full_logits, random_ids, random_model

SINK, RECENT = 3, 17
RETRIEVAL = {(0, 1), (1, 0)}
SPEC = f"duo_attention(retrieval_heads=[1, 2], sink_tokens={SINK}, recent_tokens={RECENT})"


@contextmanager
def masked_by_hand(
    model: PreTrainedModel, retrieval: set[tuple[int, int]], sink: int, recent: int
) -> Iterator[None]:
    """The model with every head's mask written out, pair by pair."""

    def attend(
        module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **rest: Any
    ) -> tuple[Tensor, None]:
        places, groups = range(q.shape[2]), q.shape[1] // k.shape[1]
        near = [[s <= t and (s < sink or t - s < recent) for s in places] for t in places]
        far = [[s <= t for s in places] for t in places]
        out = torch.zeros_like(q)
        for head in range(q.shape[1]):
            logits = q[:, head] @ k[:, head // groups].transpose(1, 2) * scaling
            visited = far if (module.layer_idx, head // groups) in retrieval else near
            out[:, head] = (
                logits.masked_fill(~torch.tensor(visited), -torch.inf).softmax(-1) @ v[:, head // groups]
            )
        return out.transpose(1, 2), None

    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS["by_hand"] = attend
    model.set_attn_implementation("by_hand")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        del ALL_ATTENTION_FUNCTIONS["by_hand"]


@torch.no_grad()
def logits_by_hand(
    ids: Tensor, retrieval: set[tuple[int, int]], sink: int = SINK, recent: int = RECENT
) -> Tensor:
    model = random_model()
    with masked_by_hand(model, retrieval, sink, recent):
        return model(ids[None], use_cache=False).logits[0]


def slabs(model: SpanModel, num_tokens: int) -> dict[tuple[int, tuple[int, ...]], list[int]]:
    run = model.read(random_ids(num_tokens), progress=False).run
    return {
        (index, slab.heads): slab.positions[0, 0].tolist()
        for index, layer in enumerate(run.layers)
        for slab in layer.slabs
    }


@pytest.mark.parametrize("num_tokens", [1, 20, 63])
@pytest.mark.parametrize("chunk_tokens", [16, 1024])
def test_every_head_visits_its_own_keys(num_tokens: int, chunk_tokens: int) -> None:
    ids = random_ids(num_tokens)
    got = full_logits(load(random_model(), SPEC), ids, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(got, logits_by_hand(ids, RETRIEVAL), atol=1e-4, rtol=1e-4)


def test_the_choice_of_heads_matters() -> None:
    """A method that streamed other heads, or none, would give other logits."""
    ids = random_ids(101)
    got = full_logits(load(random_model(), SPEC), ids)
    for other in ({(0, 0), (1, 1)}, {(0, 1), (1, 1)}, set(), {(0, 0), (0, 1), (1, 0), (1, 1)}):
        assert (got - logits_by_hand(ids, other)).abs().max() > 1e-2


def test_decoding_far_beyond_the_window_equals_the_mask() -> None:
    ids = random_ids(230)
    model = load(random_model(), SPEC)
    branch, reader = model.read(ids[:40], progress=False).run.fork(), model.reader()
    got = torch.cat([reader.advance(branch, token[None]) for token in ids[40:]])
    torch.testing.assert_close(got, logits_by_hand(ids, RETRIEVAL)[40:], atol=1e-4, rtol=1e-4)
    for index, layer in enumerate(branch.layers):
        for slab in layer.slabs:
            if (index, slab.heads[0]) in RETRIEVAL:
                assert slab.num_tokens == 230
            else:
                assert SINK + RECENT <= slab.num_tokens <= SINK + RECENT + 2 * SLACK_TOKENS


def test_streaming_heads_keep_exactly_sinks_and_recent_tokens() -> None:
    held = slabs(load(random_model(), SPEC, chunk_tokens=32), 101)
    window = [*range(SINK), *range(101 - RECENT, 101)]
    everything = list(range(101))
    assert held == {(0, (1,)): everything, (0, (0,)): window, (1, (0,)): everything, (1, (1,)): window}


def test_memory_is_freed() -> None:
    ids = random_ids(2000)
    full = load(random_model(), "dense").read(ids, progress=False)
    duo = load(random_model(), SPEC).read(ids, progress=False)
    assert duo.kept_tokens == (2000 + SINK + RECENT) / 2
    assert duo.kv_bytes < 0.7 * full.kv_bytes


def test_heads_of_one_kind_share_a_slab() -> None:
    all_streaming = slabs(
        load(random_model(), "duo_attention(retrieval_fraction=0, sink_tokens=2, recent_tokens=5)"), 40
    )
    assert all_streaming == {(index, (0, 1)): [0, 1, 35, 36, 37, 38, 39] for index in (0, 1)}
    none_streaming = slabs(load(random_model(), "duo_attention(retrieval_fraction=1)"), 40)
    assert none_streaming == {(index, (0, 1)): list(range(40)) for index in (0, 1)}


def test_guesses_taken_back_leave_the_window_whole() -> None:
    """Assisted decoding crops what it rejects; the keys before the window's new start must still be there."""
    ids, guesses = random_ids(130), random_ids(40, seed=9)
    model = load(random_model(), SPEC)
    branch, reader = model.read(ids[:40], progress=False).run.fork(), model.reader()
    got = []
    for start in range(40, 130, 10):
        reader.advance(branch, guesses)
        branch.crop(len(guesses))
        got.append(reader.all_logits(branch, ids[start : start + 10]))
    expected = logits_by_hand(ids, RETRIEVAL)[40:]
    torch.testing.assert_close(torch.cat(got), expected, atol=1e-4, rtol=1e-4)


def test_rows_of_different_length_each_keep_their_own_window() -> None:
    rows = [random_ids(31, seed=1), random_ids(77, seed=2)]
    batch = torch.stack([torch.cat([torch.zeros(77 - len(row), dtype=torch.long), row]) for row in rows])
    mask = (torch.arange(77) >= torch.tensor([[46], [0]])).long()
    model = random_model()
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with applied(model, SPEC):
        together = model.generate(batch, attention_mask=mask, **settings)
        for row, got in zip(rows, together, strict=True):
            assert torch.equal(got[77:], model.generate(row[None], **settings)[0, len(row) :])


def brute_places(row: list[int], sink: int, recent: int) -> list[int]:
    latest = max(row)
    return [place for place, at in enumerate(row) if at >= 0 and (at < sink or at > latest - recent)]


@pytest.mark.parametrize(("sink", "recent"), [(0, 1), (2, 3), (5, 4), (4, 100)])
def test_places_of_sinks_and_recent_tokens(sink: int, recent: int) -> None:
    rows = [list(range(13)), [-1] * 8 + list(range(5)), [0, 1, 7, 8, -1, -1, 9, 10, 11, 12, 13, -1, 14]]
    got = sink_and_recent(torch.tensor(rows)[:, None], sink, recent)
    expected = [brute_places(row, sink, recent) for row in rows]
    width = max(map(len, expected))
    assert got.tolist() == [[row + [-1] * (width - len(row))] for row in expected]


def make_gates(**changed: Any) -> Gates:
    return Gates(
        **{
            "model": "m",
            "fingerprints": ("f", "g"),
            "alpha": ((0.2, 0.9), (None, None), (0.9, 0.5)),
            **changed,
        }
    )


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.0, set()),
        (0.25, {(0, 1)}),
        (0.5, {(0, 1), (2, 0)}),
        (0.75, {(0, 1), (2, 0), (2, 1)}),
        (0.8, {(0, 1), (2, 0), (2, 1)}),
    ],
)
def test_strongest_gates_over_all_layers(fraction: float, expected: set[tuple[int, int]]) -> None:
    assert make_gates().strongest(fraction) == expected


def test_gates_come_back_from_their_file(tmp_path: Path) -> None:
    gates = make_gates(settings={"steps": 3})
    save_gates(tmp_path / "g.json", gates)
    assert load_gates(tmp_path / "g.json") == gates
    assert [path.name for path in tmp_path.iterdir()] == ["g.json"]


def test_gates_choose_the_heads(tmp_path: Path) -> None:
    model = load(random_model(), "dense")
    path = tmp_path / "g.json"
    save_gates(
        path, Gates(model="m", fingerprints=("other", model.info.fingerprint), alpha=((0.1, 0.8), (0.7, 0.2)))
    )
    spec = f'duo_attention(gates="{path}", sink_tokens={SINK}, recent_tokens={RECENT})'
    ids = random_ids(101)
    by_gates, by_name = (full_logits(model.with_methods(text), ids) for text in (spec, SPEC))
    assert torch.equal(by_gates, by_name)
    three = model.with_methods(spec.replace("(", "(retrieval_fraction=0.75, ", 1))
    expected = logits_by_hand(ids, RETRIEVAL | {(1, 1)})
    torch.testing.assert_close(full_logits(three, ids), expected, atol=1e-4, rtol=1e-4)


def test_gates_of_another_model_are_refused(tmp_path: Path) -> None:
    save_gates(tmp_path / "g.json", make_gates())
    with pytest.raises(
        ValueError, match=r"no gates for .*holds those of m \(f, g\); make them with `python -m"
    ):
        load(random_model(), DuoAttention(gates=str(tmp_path / "g.json")))


def test_a_model_without_gates_is_told_how_to_make_them() -> None:
    with pytest.raises(
        ValueError, match="there are no gates for LlamaForCausalLM.*make them with `python -m"
    ):
        load(random_model(), "duo_attention")


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        json.dumps([1]),
        json.dumps({"format": 1, "alpha": [[0.1, 2.0]]}),
        json.dumps({"format": 9, "alpha": [[0.1]]}),
    ],
)
def test_files_that_hold_no_gates_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "g.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"g\.json (is no JSON file of|holds no) gates"):
        load_gates(tmp_path / "g.json")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("duo_attention(retrieval_fraction=1.5)", "retrieval_fraction=1.5; allowed is 0"),
        ("duo_attention(sink_tokens=-1)", "sink_tokens=-1; allowed is 0 or more"),
        ("duo_attention(recent_tokens=0)", "recent_tokens=0; allowed is 1 or more"),
        ("duo_attention(retrieval_heads=[1], gates=g)", "leave the other out"),
        ("duo_attention(retrieval_heads=[1], retrieval_fraction=0.3)", "leave the other out"),
        ("duo_attention(retrieval_heads=[-1])", "numbered from 0"),
        ("duo_attention(retrieval_heads=[0, 4])", "kv head 4; .* has kv heads 0 to 3, numbered layer \\* 2"),
        ("duo_attention(gates=missing.json)", "there is no file missing.json"),
    ],
)
def test_bad_settings_say_what_to_do(spec: str, message: str) -> None:
    with pytest.raises((SpecError, ValueError), match=message):
        load(random_model(), spec)


def test_bundled_gates_are_those_of_the_reference_model() -> None:
    """They must be made again whenever the reference model is."""
    model = load("reference", "duo_attention")
    assert model.info.fingerprint in load_gates(BUNDLED).fingerprints
    slabs_of = [len(layer.slabs) for layer in model.read(random_ids(400), progress=False).run.layers]
    assert 1 < sum(slabs_of) - len(slabs_of) < len(slabs_of)
