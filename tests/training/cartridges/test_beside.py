"""What stands beside a cartridge: passages of as many tokens, in any order; and that a cartridge learns to be one of several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from longspan.engine.api import load
from longspan.engine.model import SpanModel
from longspan.methods.cache.cartridges.cartridge import load_cartridge
from longspan.training.cartridges.beside import (
    ABOUT_PASSAGES,
    OTHERS,
    Beside,
    Passages,
    beside_rows,
    draw_passages,
    draw_step,
    read_passages,
    study_passage,
    weigh,
)
from longspan.training.cartridges.config import CartridgeConfig
from longspan.training.cartridges.self_study import Conversation
from longspan.training.cartridges.slots import first_slots
from longspan.training.cartridges.student import Student
from longspan.training.cartridges.train import train_cartridge
from tests.models import random_ids, random_model, word_tokenizer, words

TEXT = words(random_ids(100))
OTHER = words(random_ids(400, seed=9))
CONFIG = CartridgeConfig(
    tokens_kept=12, batch_rows=8, answer_tokens=6, top_logits=50, passages=4, passage_questions=3
)


def span(family: str = "Llama") -> SpanModel:
    return load(random_model(family), tokenizer=word_tokenizer())


def passages_of(model: SpanModel) -> Passages:
    drawn = draw_passages(model, OTHER, CONFIG)
    talks = [study_passage(model, ids, CONFIG, number) for number, ids in enumerate(drawn)]
    found = read_passages(model, drawn, talks)
    assert found is not None
    return found


def test_passages_have_as_many_tokens_as_the_cartridge_and_differ() -> None:
    model = span()
    drawn = draw_passages(model, OTHER, CONFIG)
    assert [len(ids) for ids in drawn] == [12] * 4
    assert len({tuple(ids.tolist()) for ids in drawn}) > 1
    again = draw_passages(model, OTHER, CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    with pytest.raises(ValueError, match="the haystack text is empty"):
        draw_passages(model, "  ", CONFIG)


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Phi3"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0), (2, 0, 1), (1, 2, 0)])
def test_slots_of_several_stand_as_read_puts_them(
    family: str, order: tuple[int, ...], tmp_path: Path
) -> None:
    """The student's logits among passages are the engine's, where the same slots are cartridges behind one another."""
    model, ids = span(family), random_ids(9, seed=3)
    passages = passages_of(model)
    own = first_slots(model, random_ids(40, seed=5), 12)
    chosen = [2, 0][: len(order) - 1]
    beside = Beside(
        passages=passages,
        chosen=torch.tensor([[1, 3][: len(chosen)], chosen]),
        order=torch.tensor([order] * 2),
    )
    with torch.no_grad():
        logits = Student(model, *own).logits(torch.stack([ids.flip(0), ids]), beside)[1]
    run, reader = model.reader().new_run(), model.reader()
    for place, block in enumerate(order):
        keys, values = (
            own
            if block == 0
            else [[x[chosen[block - 1]] for x in parts] for parts in (passages.keys, passages.values)]
        )
        reader.put(run, keys, values, torch.arange(12 * place, 12 * (place + 1)))
    reader.prefill(run, [])
    torch.testing.assert_close(logits, reader.all_logits(run, ids), atol=1e-4, rtol=1e-4)


def test_gradients_reach_only_the_cartridge() -> None:
    model = span()
    passages = passages_of(model)
    for x in model.hf_model.parameters():
        x.requires_grad_(False)
    student = Student(model, *first_slots(model, random_ids(40, seed=5), 12))
    rows, beside = beside_rows(passages.talks[0], passages, np.random.default_rng(0))
    student.loss(rows, beside).backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in student.keys)
    assert not any(x.requires_grad for x in (*passages.keys, *passages.values))


def test_a_row_about_a_passage_has_that_passage_beside_it() -> None:
    model = span()
    passages = passages_of(model)
    whose = {id(talk): number for number, talks in enumerate(passages.talks) for talk in talks}
    own = [replace(passages.talks[0][0]) for _ in range(40)]
    rng, about, offsets = np.random.default_rng(0), 0, set()
    for _ in range(20):
        rows, beside = beside_rows(own, passages, rng)
        for row, chosen, order in zip(rows, beside.chosen.tolist(), beside.order.tolist(), strict=True):
            offsets.add((len(order), order.index(0)))
            if id(row) in whose:
                about += 1
                assert whose[id(row)] in chosen
    assert offsets == {(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)}
    assert abs(about / 800 - ABOUT_PASSAGES) < 0.08


def test_steps_are_drawn_by_their_number_and_have_passages_in_a_share() -> None:
    model = span()
    passages = passages_of(model)
    talks = [talk for talks in passages.talks for talk in talks]
    config = replace(CONFIG, beside_share=0.25)
    steps = [draw_step(talks, weigh(talks), passages, config, step) for step in range(200)]
    share = sum(beside is not None for _, beside in steps) / 200
    assert abs(share - 0.25) < 0.1
    again, _ = draw_step(talks, weigh(talks), passages, config, 7)
    assert [id(talk) for talk in again] == [id(talk) for talk in steps[7][0]]
    assert all(beside is None for _, beside in [draw_step(talks, weigh(talks), None, config, 3)])


def test_conversations_with_an_answer_are_preferred_and_sentences_balanced() -> None:
    none = torch.zeros(1, 1)
    talks = [
        Conversation(ids=none, top_ids=none, top_logprobs=none, sentence=n, answered=ok)
        for n, ok in ((0, True), (0, True), (0, True), (0, True), (1, True), (2, False), (2, False))
    ]
    weights = weigh(talks)
    assert weights.sum() == pytest.approx(1)
    assert weights[5:].sum() == pytest.approx(OTHERS)
    assert weights[4] == pytest.approx(2 * weights[0])
    assert weigh(talks[5:]).tolist() == pytest.approx([0.5, 0.5])
    assert weigh(talks[:4]).tolist() == pytest.approx([0.25] * 4)


def test_training_among_others_makes_a_cartridge_that_is_found_among_them(tmp_path: Path) -> None:
    """KL on held-out conversations with a passage beside: trained (all but) alone, the cartridge would fail."""
    config = replace(CONFIG, steps=100, conversations=32, held_out=16, study_rows=16, lr=0.05)
    found = {}
    for share in (1e-9, 0.8):
        out = tmp_path / f"{share}.safetensors"
        train_cartridge(span(), TEXT, replace(config, beside_share=share), out=out, beside=OTHER)
        found[share] = load_cartridge(out).settings["held_out_kl"]["trained_beside"]
    assert found[0.8] < 0.85 * found[1e-9]


def test_two_cartridges_are_asked_one_behind_the_other(tmp_path: Path) -> None:
    model, files, texts = span(), [], [words(random_ids(60, seed=seed)) for seed in (3, 4)]
    config = replace(CONFIG, steps=3, conversations=8, held_out=4)
    for number, text in enumerate(texts):
        files.append(tmp_path / f"{number}.safetensors")
        train_cartridge(model, text, config, out=files[-1], beside=OTHER)
    both = model.with_methods(f'cartridges(files=["{files[0]}", "{files[1]}"])')
    context = both.read("\n\n".join(texts), progress=False)
    assert context.kept_tokens == 24
    assert context.ask("w10 w11", max_new_tokens=3, sources=False).usage.generated_tokens <= 3
