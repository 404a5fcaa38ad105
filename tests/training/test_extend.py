"""A run in pieces: what it leaves behind, and that cutting it changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from longspan.errors import UserInputError
from longspan.training import checkpoint, extend
from longspan.training.config import ExtendConfig
from longspan.training.extend import Piece, extend_piece
from longspan.training.scheme import Scheme
from tests.models import word_tokenizer
from tests.training.tiny import TARGET, WINDOW, Learned, text_folder, tiny_config, tiny_model


@pytest.fixture
def piece(tmp_path: Path) -> Callable[..., Piece]:
    """Trains one piece of a tiny run into a folder of that name."""
    folder = text_folder(tmp_path / "text")

    def train(name: str, config: ExtendConfig, *, text: list[Path] | None = None, **options: Any) -> Piece:
        return extend_piece(
            tiny_model(),
            config,
            text=[folder] if text is None else text,
            out=tmp_path / name,
            tokenizer=word_tokenizer(),
            **options,
        )

    return train


def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes whenever the run looks."""
    now = iter(range(10_000))
    monkeypatch.setattr(extend, "time", SimpleNamespace(monotonic=lambda: float(next(now))))


@pytest.mark.parametrize(
    ("scheme", "changes"),
    [
        ('full(positions="yarn(factor=4)")', {}),
        ("pose", {"task_share": 0.5}),
        ("e2_llm", {}),
        ("learned", {}),
        ("full", {"lora_rank": 4, "lora_also": ("norms",)}),
    ],
)
def test_a_run_cut_by_the_clock_and_resumed_equals_an_unbroken_one(
    scheme: str,
    changes: dict[str, Any],
    piece: Callable[..., Piece],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "lora_rank" in changes:
        pytest.importorskip("peft")
    made: str | Scheme = Learned() if scheme == "learned" else scheme
    config = tiny_config(made, steps=6, **changes)
    whole = piece("whole", config)
    clock(monkeypatch)
    first = piece("parts", config, started=0.0, seconds=3.0)
    assert (first.progress.step, first.progress.finished) == (4, False)
    second = piece("parts", config, text=[], resume=True)
    assert (second.progress.step, second.progress.finished) == (6, True)
    assert second.progress.tokens == whole.progress.tokens == 6 * 2 * TARGET
    files = {"model.safetensors"} | ({"scheme.safetensors"} if scheme == "learned" else set())
    for file in files:
        wanted, got = (load_file(tmp_path / name / "model" / file) for name in ("whole", "parts"))
        assert all(torch.equal(got[name], wanted[name]) for name in wanted), file
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_what_a_piece_leaves_behind(piece: Callable[..., Piece], tmp_path: Path) -> None:
    reported: list[dict[str, Any]] = []
    done = piece("run", tiny_config('full(positions="pi(factor=4)")', steps=12), report=reported.append)
    assert done.spec == "dense"
    assert done.folder == tmp_path / "run" / "model"
    assert [record["step"] for record in reported] == [1, 10, 12]
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 13))
    assert records[-1]["loss"] < records[0]["loss"] - 1
    assert records[0]["loss"] == records[0]["text"] and records[0]["answers"] is None
    assert records[-1]["tokens"] == 12 * 2 * TARGET
    card = json.loads((done.folder / "longspan.json").read_text())
    assert card["settings"]["scheme"] == 'full(positions="pi(factor=4)")'
    assert card["base"]["window_tokens"] == WINDOW
    assert len(card["base"]["fingerprint"]) == 16
    assert (card["steps"], card["planned_steps"], card["tokens"]) == (12, 12, 6144)
    assert (card["row_tokens"], card["step_tokens"], card["text_tokens"]) == (TARGET, 512, 1803)
    assert (card["device"], card["method"]) == ("cpu", "pi(factor=4.0)")
    assert card["seconds"] >= 0
    assert AutoModelForCausalLM.from_pretrained(done.folder).config.max_position_embeddings == TARGET
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint.pt",
        "log.jsonl",
        "model",
        "text.safetensors",
    ]


def test_checkpoints_on_the_way_and_a_log_that_ran_ahead_of_one(
    piece: Callable[..., Piece], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine stops at step 5; the last checkpoint is of step 4."""
    monkeypatch.setattr(extend, "SAVE_SECONDS", 1)
    clock(monkeypatch)
    real = extend.Trainer.step

    def step(self: Any, data: Any) -> Any:
        if data.step == 5:
            raise KeyboardInterrupt
        return real(self, data)

    config = tiny_config("pose", steps=6)
    monkeypatch.setattr(extend.Trainer, "step", step)
    with pytest.raises(KeyboardInterrupt):
        piece("run", config)
    monkeypatch.setattr(extend.Trainer, "step", real)
    assert checkpoint.read_checkpoint(tmp_path / "run")["progress"]["step"] == 4
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 5
    piece("run", config, resume=True)
    whole = piece("whole", config)
    assert whole.progress.step == 6
    logs = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("run", "whole")
    ]
    assert logs[0] == logs[1]


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(
    piece: Callable[..., Piece], tmp_path: Path
) -> None:
    piece("run", tiny_config("full", steps=2))
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    state = checkpoint.read_checkpoint(tmp_path / "run")
    state["weights"]["lm_head.weight"][:] = float("nan")
    torch.save(state, tmp_path / "run" / "checkpoint.pt")
    broken = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with pytest.raises(UserInputError, match="the loss is not finite at step 3"):
        piece("run", tiny_config("full", steps=4), resume=True)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == broken != before


def test_refusals(piece: Callable[..., Piece], tmp_path: Path) -> None:
    config = tiny_config("full", steps=1)
    with pytest.raises(
        UserInputError, match="nothing to resume: .*run has no checkpoint.pt; start without --resume"
    ):
        piece("run", config, resume=True)
    with pytest.raises(UserInputError, match="text folder '.*absent' does not exist"):
        piece("run", config, text=[tmp_path / "absent"])
    piece("run", config)
    with pytest.raises(UserInputError, match="run holds a run already; go on with --resume"):
        piece("run", config)
    with pytest.raises(UserInputError, match="the checkpoint is of a run with other settings"):
        piece("run", tiny_config("full", steps=2, lr=1.0), resume=True)
    (tmp_path / "run" / "text.safetensors").unlink()
    other = text_folder(tmp_path / "other", documents=4)
    with pytest.raises(
        UserInputError, match="the run began with a text of 1,803 tokens, and this one has 2,404"
    ):
        piece("run", tiny_config("full", steps=2), text=[other], resume=True)
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(UserInputError, match="cannot be read as a checkpoint"):
        piece("run", config, resume=True)


def test_workers_make_the_same_rows(piece: Callable[..., Piece], tmp_path: Path) -> None:
    config = tiny_config("pose", steps=3)
    piece("alone", config)
    piece("helped", config, workers=2)
    first, second = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("alone", "helped")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
