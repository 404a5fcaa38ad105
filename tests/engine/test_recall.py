"""What a storage method dropped waits in a lower tier, and a question brings it back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

from longspan.engine.api import load, open_context
from longspan.engine.context import Context
from longspan.engine.model import SpanModel
from longspan.engine.run import Run
from longspan.errors import SpecError
from longspan.spec import resolve
from tests.models import random_ids, random_model, word_tokenizer, words

SPECS = (
    "snapkv(keep=0.25, window_tokens=8, recall=true)",
    "snapkv(keep=0.25, window_tokens=8, recall=true, tier=disk)",
    "snapkv(keep=0.25, window_tokens=8, recall=true, spread=heads)",
    "snapkv(keep=0.25, window_tokens=8, recall=true, spread=all)",
    "self_extend(group_size=2, window_tokens=64) + snapkv(keep=0.25, window_tokens=8, recall=true)",
)


def make(spec: str) -> SpanModel:
    return load(random_model(), spec, tokenizer=word_tokenizer(), chunk_tokens=100)


def read(model: SpanModel) -> Context:
    return model.read(words(random_ids(300)), progress=False)


def ask(model: SpanModel, run: Run, question: torch.Tensor) -> tuple[Run, torch.Tensor]:
    branch = model.reader().open_question(run, question)
    logits = model.reader().advance(branch, question)
    assert logits is not None
    return branch, logits[0]


@pytest.mark.parametrize("spec", SPECS)
def test_a_question_sees_all_of_the_text_and_keeps_its_budget(spec: str) -> None:
    whole = spec.rpartition(" + ")[0] or "dense"
    model, dense, question = make(spec), make(whole), random_ids(9, seed=5)
    context = read(model)
    assert context.kept_tokens == 75
    held = context.kv_bytes
    branch, logits = ask(model, context.run, question)
    _, expected = ask(dense, read(dense).run, question)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert branch.kept_tokens == 77  # a quarter of 309
    assert (context.kept_tokens, context.kv_bytes) == (75, held)
    later = model.reader().advance(branch, torch.tensor([33]))
    assert later is not None and branch.kept_tokens == 78


@pytest.mark.parametrize("spec", SPECS[:1])
def test_what_comes_back_differs_by_the_question(spec: str) -> None:
    model = make(spec)
    context = read(model)
    kept = [
        ask(model, context.run, random_ids(9, seed=seed))[0].layers[0].slabs[0].positions for seed in (5, 6)
    ]
    assert not torch.equal(*kept)
    without = make("snapkv(keep=0.25, window_tokens=8)")
    _, blind = ask(without, read(without).run, random_ids(9, seed=5))
    _, seeing = ask(model, context.run, random_ids(9, seed=5))
    assert (blind - seeing).abs().max() > 1e-3


@pytest.mark.parametrize("spec", SPECS[:2])
def test_a_second_turn_is_archived_too(spec: str) -> None:
    model = make(spec)
    more = read(model).read(words(random_ids(60, seed=9)))
    assert more.num_tokens == 360 and more.kept_tokens == 90
    branch, _ = ask(model, more.run, random_ids(9, seed=5))
    for layer in more.run.layers:
        archive = layer.slabs[0].archive
        assert archive is not None and archive.load(torch.device("cpu"))[2].tolist() == [[list(range(360))]]
    assert branch.kept_tokens == 92


def test_bytes_by_tier_and_no_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    context = read(make(SPECS[1]))
    whole = 300 * 2 * (2 * 2 * 16 * 4 + 8)  # 2 layers of 2 kv heads of 16 channels, and an int64 position
    assert context.run.archived_bytes == {"disk": whole}
    assert read(make(SPECS[0])).run.archived_bytes == {"host": whole}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spec", SPECS[:3])
def test_a_saved_context_recalls(spec: str, tmp_path: Path) -> None:
    model, question = make(spec), random_ids(9, seed=5)
    context = read(model)
    context.save(tmp_path / "book.span")
    back = open_context(tmp_path / "book.span", model)
    assert torch.equal(ask(model, back.run, question)[1], ask(model, context.run, question)[1])
    assert back.run.archived_bytes == context.run.archived_bytes


def test_a_budget_that_covers_the_text_archives_nothing() -> None:
    context = read(make("snapkv(keep=1.0, recall=true)"))
    assert context.run.archived_bytes == {} and context.kept_tokens == 300


@pytest.mark.parametrize(
    ("settings", "words_"),
    [
        ("recall=true, when=chunk", "got recall=true with when=chunk"),
        ("tier=tape", "tier takes host or disk"),
    ],
)
def test_wrong_settings_are_refused(settings: str, words_: str) -> None:
    with pytest.raises(SpecError, match=words_):
        resolve(f"snapkv({settings})")
