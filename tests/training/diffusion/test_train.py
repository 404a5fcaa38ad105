"""Training: a tiny model learns to copy, a run repeats exactly, and the folder that is left is a denoiser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longspan.errors import UserInputError
from longspan.reference.config import RecipeConfig
from longspan.reference.feed import StepData
from longspan.training.diffusion.config import DiffusionConfig
from longspan.training.diffusion.denoiser import load_denoiser
from longspan.training.diffusion.sampling import fill
from longspan.training.diffusion.train import DiffusionTrainer, Trained, train
from tests.models import word_tokenizer
from tests.training.diffusion.tiny import tiny_denoiser
from tests.training.tiny import text_folder, tiny_model

ROWS, LENGTH, COPIED = 32, 16, 6


def copy_step(step: int) -> StepData:
    """Rows of six words, a mark, and the same six words as the answer."""
    rng = np.random.default_rng(step)
    words = rng.integers(10, 26, (ROWS, COPIED))
    tokens = np.full((ROWS, LENGTH), 3)
    tokens[:, 1 : 1 + COPIED] = words
    tokens[:, -COPIED:] = words
    weights = np.zeros((ROWS, LENGTH), dtype=np.uint8)
    weights[:, -COPIED:] = 1
    answers = [("copy", LENGTH, 0, row * LENGTH + LENGTH - COPIED, (row + 1) * LENGTH) for row in range(ROWS)]
    return StepData(step=step, tokens=tokens.reshape(-1), weights=weights.reshape(-1), answers=answers)


def trainer_of(shift: bool) -> DiffusionTrainer:
    config = DiffusionConfig(steps=200, peak=1.0, shift=shift)
    recipe = RecipeConfig(buckets=((LENGTH, ROWS),), adam_lr=0.02)
    return DiffusionTrainer(tiny_denoiser(shift=shift, tied=True), config, recipe)


@pytest.mark.parametrize("shift", [True, False])
def test_a_tiny_model_learns_to_copy(shift: bool) -> None:
    trainer = trainer_of(shift)
    losses = []
    for step in range(200):
        found = trainer.step(copy_step(step), trainer.config.share(step, 0.0))
        losses.append(float(found.answers))
        assert float(found.text) == pytest.approx(0.0, abs=1e-4)
    assert np.mean(losses[-10:]) < 0.1 * losses[0]
    trainer.denoiser.model.eval()
    data = copy_step(10_000)
    rows = torch.from_numpy(data.tokens).view(ROWS, LENGTH)
    found = fill(trainer.denoiser, rows[:, :-COPIED], block_tokens=COPIED, steps=COPIED)
    assert (found == rows[:, -COPIED:]).float().mean() > 0.95


def test_masks_are_decided_by_step_and_seed() -> None:
    trainer = trainer_of(True)
    first, again, other = (trainer.masked_rows(copy_step(step))[0].rows for step in (3, 3, 4))
    assert torch.equal(first.given, again.given)
    assert not torch.equal(first.given, other.given)
    place = first.places % LENGTH
    assert (place >= LENGTH - COPIED).all()


def test_a_steps_losses_are_means_over_text_rows_and_task_rows() -> None:
    trainer = trainer_of(True)
    with torch.no_grad():
        trainer.denoiser.head.weight.zero_()  # every token costs log 500, so a row's loss is its masked share over t
    data = copy_step(0)
    weights = data.weights.reshape(ROWS, LENGTH).copy()
    weights[: ROWS // 2, 1:] = 1
    mixed = StepData(
        step=0, tokens=data.tokens, weights=weights.reshape(-1), answers=data.answers[ROWS // 2 :]
    )
    part = trainer.masked_rows(mixed)[0]
    assert (part.texts, part.count) == (ROWS // 2, ROWS)
    text = float((part.rows.weights * part.of_text).sum()) / (ROWS // 2) * np.log(500)
    answers = float((part.rows.weights * (1 - part.of_text)).sum()) / (ROWS // 2) * np.log(500)
    found = trainer.step(mixed, 0.0)
    assert float(found.text) == pytest.approx(text, rel=1e-4)
    assert float(found.answers) == pytest.approx(answers, rel=1e-4)


def run_of(tmp_path: Path, name: str, **changes: Any) -> Trained:
    config = DiffusionConfig(**{"steps": 3, "step_tokens": 512, "task_share": 0.0, **changes})
    text = tmp_path / "text"
    return train(
        tiny_model(),
        config,
        text=[text if text.is_dir() else text_folder(text)],
        out=tmp_path / name,
        tokenizer=word_tokenizer(),
    )


def test_a_run_repeats_exactly_and_leaves_a_denoiser(tmp_path: Path) -> None:
    first, second = (run_of(tmp_path, name) for name in ("a", "b"))
    assert first.steps == 3 and first.tokens == 3 * 5 * 64
    for one, other in zip(first.denoiser.model.parameters(), second.denoiser.model.parameters(), strict=True):
        assert torch.equal(one, other)
    loaded = load_denoiser(first.folder)
    ids = torch.arange(3, 40)[None]
    assert torch.equal(loaded.hidden(ids), first.denoiser.hidden(ids))
    card = json.loads((first.folder / "longspan.json").read_text())
    assert (card["kind"], card["window_tokens"], card["steps"], card["settings"]["shift"]) == (
        "masked diffusion",
        64,
        3,
        True,
    )
    assert card["held_out_tokens"] == len(first.held_out) > 0


def test_the_clock_ends_a_run(tmp_path: Path) -> None:
    done = run_of(tmp_path, "a", steps=None, seconds=0.0)
    assert (done.steps, done.tokens) == (0, 0)
    assert done.folder.is_dir()


def test_the_rate_rises_and_falls_to_the_end() -> None:
    config = DiffusionConfig(steps=100, seconds=50.0, warmup_steps=10, peak=0.5)
    assert config.share(0, 0.0) == pytest.approx(0.05)
    assert config.share(20, 1.0) == pytest.approx(0.4)
    assert config.share(20, 45.0) == pytest.approx(0.05)
    assert config.share(20, 60.0) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "the schedule has no end; give --steps, --seconds or both"),
        ({"task_share": 1.5}, "got task_share=1.5; allowed is 0 to 1"),
        ({"peak": 0.0}, "got a peak of 0; allowed is above 0, such as 0.5"),
        ({"least_masked": 0.0}, "got least_masked=0; allowed is above 0, up to 1"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        DiffusionConfig(**{"steps": 1, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_tokens": 128}, "got a window of 128 tokens; allowed is 64 up to the base model's 64"),
        ({"step_tokens": 64}, "got steps of 64 tokens, which hold no row of 64; give 103 or more"),
    ],
)
def test_rows_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        run_of(tmp_path, "a", **changes)


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    run_of(tmp_path, "a", steps=1)
    with pytest.raises(UserInputError, match="holds a model already; choose another --out"):
        run_of(tmp_path, "a", steps=1)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="the loss is not finite at step"):
        run_of(tmp_path, "a", steps=8, peak=1e30, warmup_steps=1)
    assert not (tmp_path / "a" / "model").exists()
