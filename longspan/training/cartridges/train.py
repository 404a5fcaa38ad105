"""One piece of a cartridge's training: self-study, context distillation, the cartridge's file; resumable."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longspan.engine.api import load
from longspan.engine.context import Context
from longspan.engine.model import SpanModel
from longspan.engine.prompt import encode
from longspan.errors import UnsupportedLayerError, UserInputError
from longspan.evaluation.haystacks.pydoc import pydoc_text
from longspan.methods.cache.cartridges.cartridge import hash_ids, save_cartridge
from longspan.training.cartridges.beside import (
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
from longspan.training.cartridges.self_study import Conversation, study
from longspan.training.cartridges.slots import first_slots
from longspan.training.cartridges.student import Student, as_cartridge

LOG_EVERY = 20
REPORT_TALKS = 100
SAVE_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What a piece left behind. untrained, trained: KL from the teacher on held-out conversations, before the first step and
    after the last."""

    step: int
    finished: bool
    seconds: float
    untrained: float | None
    trained: float | None


def train_cartridge(
    model: str | SpanModel,
    text: str,
    config: CartridgeConfig,
    *,
    out: Path,
    beside: str | None = None,
    resume: bool = False,
    seconds: float | None = None,
    started: float | None = None,
    report: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Piece:
    """Train for at most `seconds`, counted from `started`, and write the cartridge to `out`, the run beside it.

    Args:
        model: what `longspan.load` takes, or a loaded model without methods.
        text: the document.
        out: the cartridge's file; `out.checkpoint` beside it is what a resumed run goes on from.
        beside: text of which passages stand beside the cartridge in a share of the steps (`beside_share`); None: Python's
            language reference.
        report: gets every twentieth record, the first and the last.

    Raises:
        ValueError: bad input, in one sentence.
    """
    started = time.monotonic() if started is None else started
    deadline = started + seconds if seconds is not None else float("inf")
    file = out.with_name(out.name + ".checkpoint")
    _check_out(out, file, resume=resume)
    span = load(model) if isinstance(model, str) else model
    _check_model(span)
    if span.tokenizer is None:
        raise UserInputError(f"{span.name} has no tokenizer; give a model folder with one")
    teacher = span.read(text, progress=False)
    if config.tokens_kept >= teacher.num_tokens:
        raise UserInputError(
            f"the document has {teacher.num_tokens} tokens and the cartridge {config.tokens_kept}; keep fewer, or read "
            "the text itself"
        )
    drawn = draw_passages(span, beside or pydoc_text(), config) if config.beside_share else []
    hashes = [hash_ids(ids) for ids in (teacher.run.ids, *drawn)]
    key = json.dumps([config.settings(), span.info.fingerprint, hashes])
    run = _Run(file, key, started=started, deadline=deadline, report=report, resume=resume)
    if not run.study(teacher, text, config) or not run.study_passages(span, drawn, config):
        run.save()
        return Piece(step=0, finished=False, seconds=run.seconds, untrained=None, trained=None)
    student = Student(span, *first_slots(span, teacher.run.ids, config.tokens_kept)).to(span.info.device)
    with _frozen(span):
        trained, trained_beside = run.fit(student, read_passages(span, drawn, run.beside), config)
    kl = {"untrained": run.untrained, "trained": trained, "trained_beside": trained_beside}
    body = encode(span.tokenizer, text)
    settings = {"steps_made": run.step, "seconds": round(run.seconds, 1), "held_out_kl": kl}
    facts = {
        "settings": {**config.settings(), **settings, "device": str(span.info.device)},
        "model": span.name,
        "fingerprint": span.info.fingerprint,
        "document_hash": hash_ids(body),
        "document_tokens": len(body),
        "head_tokens": teacher.num_tokens - len(body),
    }
    save_cartridge(out, as_cartridge(student, **facts))
    return Piece(
        step=run.step,
        finished=run.step >= config.steps,
        seconds=run.seconds,
        untrained=run.untrained,
        trained=trained,
    )


class _Run:
    """What is kept between pieces: conversations, the student, the optimiser, and where they stand.

    Args:
        file: the checkpoint.
        key: what a checkpoint must have been made with.
        started, deadline: of this piece, by the monotonic clock.
        report: gets records.
        resume: go on from `file`.
    """

    def __init__(
        self,
        file: Path,
        key: str,
        *,
        started: float,
        deadline: float,
        report: Callable[[dict[str, Any]], None],
        resume: bool,
    ) -> None:
        state = _read_state(file, key) if resume else {}
        self.file, self.key, self.report, self.deadline = file, key, report, deadline
        self._started, self._before = started, float(state.get("seconds", 0.0))
        self.talks = [Conversation(**talk) for talk in state.get("conversations", [])]
        self.beside = [[Conversation(**talk) for talk in talks] for talks in state.get("beside", [])]
        self.step = int(state.get("step", 0))
        self.untrained: float | None = state.get("untrained")
        self.student: dict[str, Any] | None = state.get("student")
        self.optimizer: dict[str, Any] | None = state.get("optimizer")

    @property
    def seconds(self) -> float:
        """Of all pieces."""
        return self._before + time.monotonic() - self._started

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        kept = {
            "key": self.key,
            "conversations": [asdict(talk) for talk in self.talks],
            "beside": [[asdict(talk) for talk in talks] for talks in self.beside],
            "student": self.student,
            "optimizer": self.optimizer,
            "seconds": self.seconds,
            "step": self.step,
            "untrained": self.untrained,
        }
        part = self.file.with_name(self.file.name + ".part")
        torch.save(kept, part)
        os.replace(part, self.file)

    def study(self, teacher: Context, text: str, config: CartridgeConfig) -> bool:
        """Self-study about the document; False where it was broken off."""
        wanted = config.conversations + config.held_out
        reported = len(self.talks)
        for part in study(teacher, text, config, self.talks) if len(self.talks) < wanted else ():
            self.talks = (self.talks + part)[:wanted]
            if len(self.talks) >= wanted or time.monotonic() >= self.deadline:
                break
            if len(self.talks) - reported >= REPORT_TALKS:
                reported = len(self.talks)
                self.report({"conversations": reported, "seconds": round(self.seconds, 1)})
        return len(self.talks) >= wanted

    def study_passages(self, span: SpanModel, drawn: Sequence[Tensor], config: CartridgeConfig) -> bool:
        """Self-study about each passage; False where it was broken off."""
        for number in range(len(self.beside), len(drawn)):
            if time.monotonic() >= self.deadline:
                return False
            self.beside.append(study_passage(span, drawn[number], config, number))
        return True

    def fit(
        self, student: Student, passages: Passages | None, config: CartridgeConfig
    ) -> tuple[float, float | None]:
        """Train; KL from the teacher on held-out conversations, the cartridge alone and with a passage beside it."""
        used, held = self.talks[: config.conversations], self.talks[config.conversations :]
        weights = weigh(used)
        optimizer = torch.optim.Adam(student.parameters(), lr=config.lr)
        if self.student is not None and self.optimizer is not None:
            student.load_state_dict(self.student)
            optimizer.load_state_dict(self.optimizer)
        if self.untrained is None:
            self.untrained = _measure(student, held, None, config)
        saved = time.monotonic()
        while self.step < config.steps and time.monotonic() < self.deadline:
            rows, beside = draw_step(used, weights, passages, config, self.step)
            loss = _step(student, optimizer, rows, beside, config, self.step)
            self.step += 1
            if self.step in (1, config.steps) or self.step % LOG_EVERY == 0:
                past = round(self.seconds, 1)
                self.report({"step": self.step, "loss": round(float(loss), 4), "seconds": past})
            if time.monotonic() - saved > SAVE_SECONDS:
                self._keep(student, optimizer)
                saved = time.monotonic()
        self._keep(student, optimizer)
        alone = _measure(student, held, None, config)
        return alone, None if passages is None else _measure(student, held, passages, config)

    def _keep(self, student: Student, optimizer: torch.optim.Optimizer) -> None:
        self.student, self.optimizer = student.state_dict(), optimizer.state_dict()
        self.save()


def _step(
    student: Student,
    optimizer: torch.optim.Optimizer,
    rows: Sequence[Conversation],
    beside: Beside | None,
    config: CartridgeConfig,
    step: int,
) -> Tensor:
    loss = student.loss(rows, beside)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if not torch.isfinite(loss):
        raise UserInputError(f"the loss is not finite at step {step + 1}; lower --lr and start anew")
    for group in optimizer.param_groups:
        group["lr"] = config.lr * config.share(step)
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def _measure(
    student: Student, talks: Sequence[Conversation], passages: Passages | None, config: CartridgeConfig
) -> float:
    rng = np.random.default_rng(config.seed)
    total, tokens = 0.0, 0
    for first in range(0, len(talks), config.batch_rows):
        part, beside = list(talks[first : first + config.batch_rows]), None
        if passages is not None:
            part, beside = beside_rows(part, passages, rng, about=0.0)
        count = sum(len(talk.top_ids) for talk in part)
        total, tokens = total + float(student.loss(part, beside)) * count, tokens + count
    return round(total / tokens, 5)


@contextmanager
def _frozen(span: SpanModel) -> Iterator[None]:
    """No gradient for the model's weights in this block."""
    trained = [x for x in span.hf_model.parameters() if x.requires_grad]
    for x in trained:
        x.requires_grad_(False)
    try:
        yield
    finally:
        for x in trained:
            x.requires_grad_(True)


def _check_model(span: SpanModel) -> None:
    if span.spec != "dense":
        raise UserInputError(f"a cartridge is trained under the model's own attention, got {span.spec!r}")
    if len(span.info.open_layers) < span.info.num_layers:
        raise UnsupportedLayerError(
            f"{span.name} has layers with a sliding window of their own, which would lose a cartridge's slots; use a model "
            "with full attention in all layers"
        )


def _check_out(out: Path, file: Path, *, resume: bool) -> None:
    if not out.parent.is_dir():
        raise UserInputError(f"there is no folder {out.parent} to save {out.name} in; make it first")
    if resume and not file.is_file():
        raise UserInputError(f"nothing to resume: there is no {file}; start without --resume")
    if file.is_file() and not resume:
        raise UserInputError(f"{file} holds a run already; go on with --resume, or choose another --out")


def _read_state(file: Path, key: str) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        raise UserInputError(
            f"{file} cannot be read as a checkpoint; start anew with another --out"
        ) from error
    if state.get("key") != key:
        raise UserInputError(
            f"{file} is of a run with other settings, another model or another document; resume with the same ones, or "
            "choose another --out"
        )
    return state
