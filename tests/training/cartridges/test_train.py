"""Training a cartridge: it comes nearer to the teacher, only slots change, and a resumed run is an unbroken one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from longspan.engine.api import load
from longspan.engine.model import SpanModel
from longspan.errors import UnsupportedLayerError
from longspan.methods.cache.cartridges.cartridge import load_cartridge
from longspan.training.cartridges import train as module
from longspan.training.cartridges.config import CartridgeConfig
from longspan.training.cartridges.self_study import study
from longspan.training.cartridges.slots import first_slots
from longspan.training.cartridges.student import Student, divergence
from longspan.training.cartridges.train import train_cartridge
from tests.models import random_ids, random_model, word_tokenizer, words

TEXT = words(random_ids(100))
CONFIG = CartridgeConfig(
    tokens_kept=12,
    steps=30,
    conversations=24,
    batch_rows=8,
    answer_tokens=6,
    held_out=8,
    top_logits=50,
    lr=0.05,
    study_rows=8,
    beside_share=0.0,
)
BESIDE = words(random_ids(400, seed=9))
AMONG = replace(CONFIG, beside_share=0.5, passages=3, passage_questions=3)


def span(family: str = "Llama", seed: int = 0) -> SpanModel:
    return load(random_model(family, seed=seed), tokenizer=word_tokenizer())


def distance(model: SpanModel, spec: str) -> float:
    """KL from the model that reads the text, over answers to questions that training did not ask, through `read` alone."""
    teacher = model.read(TEXT, progress=False)
    reading = model.with_methods(spec)
    context, found = reading.read(TEXT, progress=False), []
    for talk in next(study(teacher, TEXT, replace(CONFIG, seed=77, study_rows=12))):
        run, n = context.run.fork(), len(talk.top_ids)
        logits = reading.reader().all_logits(run, talk.ids)[-n - 1 : -1]
        run.give_back(context.run)
        found.append(divergence(logits, talk.top_ids, talk.top_logprobs))
    return float(torch.cat(found).mean())


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_training_comes_nearer_to_the_teacher(family: str, tmp_path: Path) -> None:
    """A file that held the start of training would fail: what is measured is what `read` puts in the text's place."""
    model, out = span(family), tmp_path / "doc.safetensors"
    before = {name: x.clone() for name, x in model.hf_model.state_dict().items()}
    piece = train_cartridge(model, TEXT, CONFIG, out=out)
    assert piece.finished and piece.step == 30
    assert piece.untrained is not None and piece.trained is not None
    assert piece.trained < 0.6 * piece.untrained
    spec = f'cartridges(file="{out}")'
    assert distance(model, spec) < 0.75 * distance(model, "cartridges(tokens=12)")
    assert all(torch.equal(x, before[name]) for name, x in model.hf_model.state_dict().items())
    assert all(x.requires_grad for x in model.hf_model.parameters())


def test_the_first_slot_is_frozen_and_all_others_are_trained(tmp_path: Path) -> None:
    model, out = span(), tmp_path / "doc.safetensors"
    train_cartridge(model, TEXT, replace(CONFIG, steps=3), out=out)
    found = load_cartridge(out)
    start = first_slots(model, model.read(TEXT, progress=False).run.ids, 12)
    for made, given in zip((found.keys, found.values), start, strict=True):
        for a, b in zip(made, given, strict=True):
            assert torch.equal(a[:, 0], b[:, 0])
            assert ((a - b)[:, 1:].abs().amax(dim=(0, 2)) > 1e-4).all()


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Phi3"])
def test_the_student_computes_what_the_engine_computes(family: str, tmp_path: Path) -> None:
    model, out = span(family), tmp_path / "doc.safetensors"
    train_cartridge(model, TEXT, replace(CONFIG, steps=2), out=out)
    found, ids = load_cartridge(out), random_ids(9, seed=3)
    with torch.no_grad():
        logits = Student(model, found.keys, found.values).logits(torch.stack([ids, ids.flip(0)]))
    reading = model.with_methods(f'cartridges(file="{out}")')
    run = reading.read(TEXT, progress=False).run.fork()
    torch.testing.assert_close(logits[0], reading.reader().all_logits(run, ids), atol=1e-4, rtol=1e-4)


def test_divergence_is_the_sum_written_out() -> None:
    torch.manual_seed(0)
    teacher, student = torch.log_softmax(torch.randn(3, 11), -1), torch.randn(3, 11)
    top = teacher.topk(4)
    found = divergence(student, top.indices, top.values)
    for n in range(3):
        own = torch.log_softmax(student[n], -1)
        p = [math.exp(float(teacher[n, i])) for i in top.indices[n]]
        q = [math.exp(float(own[i])) for i in top.indices[n]]
        p, q = [*p, 1 - sum(p)], [*q, 1 - sum(q)]
        expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert float(found[n]) == pytest.approx(expected, abs=1e-5)
    whole = teacher.topk(11)
    assert divergence(teacher, whole.indices, whole.values).abs().max() < 1e-4


@pytest.mark.parametrize("base", [CONFIG, AMONG])
def test_a_resumed_run_equals_an_unbroken_one(
    base: CartridgeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(base, steps=9, study_rows=4)
    train_cartridge(span(), TEXT, config, out=tmp_path / "whole.safetensors", beside=BESIDE)
    out, pieces = tmp_path / "pieces.safetensors", []
    monkeypatch.setattr(module.time, "monotonic", _ticks())
    while not pieces or not pieces[-1].finished:
        pieces.append(
            train_cartridge(span(), TEXT, config, out=out, beside=BESIDE, resume=bool(pieces), seconds=6)
        )
    assert len(pieces) > 2 and any(0 < piece.step < 9 for piece in pieces)
    assert pieces[0].trained is None and pieces[0].step == 0  # broken off within self-study, too
    whole, resumed = load_cartridge(tmp_path / "whole.safetensors"), load_cartridge(out)
    for a, b in zip((*whole.keys, *whole.values), (*resumed.keys, *resumed.values), strict=True):
        assert torch.equal(a, b)
    assert whole.settings["held_out_kl"] == resumed.settings["held_out_kl"]


def _ticks() -> Callable[[], float]:
    count = itertools.count()
    return lambda: float(next(count))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens_kept": 1}, "allowed is 2 or more"),
        ({"steps": 0}, "got steps=0; allowed is 1 or more"),
        ({"lr": 0.0}, "got lr=0.0; allowed is above 0"),
        ({"beside_share": 1.5}, r"got beside_share=1\.5; allowed is 0 .* to 1"),
        ({"study_rows": 0}, "got study_rows=0; allowed is 1 or more"),
        ({"questions": "none"}, "allowed is spans or asked"),
    ],
)
def test_wrong_settings_are_one_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **settings)


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    model, out = span(), tmp_path / "doc.safetensors"
    with pytest.raises(ValueError, match="nothing to resume: there is no"):
        train_cartridge(model, TEXT, CONFIG, out=out, resume=True)
    with pytest.raises(ValueError, match=r"the document has 100 tokens and the cartridge 100; keep fewer"):
        train_cartridge(model, TEXT, replace(CONFIG, tokens_kept=100), out=out)
    with pytest.raises(ValueError, match="under the model's own attention, got"):
        train_cartridge(model.with_methods("streaming()"), TEXT, CONFIG, out=out)
    with pytest.raises(UnsupportedLayerError, match="a sliding window of their own"):
        train_cartridge(span("Gemma3"), TEXT, CONFIG, out=out)
    short = replace(CONFIG, steps=1, conversations=8)
    train_cartridge(model, TEXT, short, out=out)
    with pytest.raises(ValueError, match=r"holds a run already; go on with --resume"):
        train_cartridge(model, TEXT, short, out=out)
    with pytest.raises(ValueError, match="of a run with other settings, another model or another document"):
        train_cartridge(model, TEXT, replace(short, steps=2), out=out, resume=True)
    out.with_name(out.name + ".checkpoint").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        train_cartridge(model, TEXT, short, out=out, resume=True)
