"""One piece of a cartridge's training: self-study, context distillation, the cartridge's file; resumable."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from longspan.engine.api import load
from longspan.engine.model import SpanModel
from longspan.engine.prompt import encode
from longspan.errors import UnsupportedLayerError, UserInputError
from longspan.methods.cache.cartridges.cartridge import hash_ids, save_cartridge
from longspan.training.cartridges.config import CartridgeConfig
from longspan.training.cartridges.self_study import Conversation, study
from longspan.training.cartridges.student import Student, as_cartridge, first_slots

LOG_EVERY = 20
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
    ids, body = teacher.run.ids, encode(span.tokenizer, text)
    if config.tokens_kept >= len(ids):
        raise UserInputError(
            f"the document has {len(ids)} tokens and the cartridge {config.tokens_kept}; keep fewer, or read the text itself"
        )
    key = json.dumps([config.settings(), span.info.fingerprint, hash_ids(ids)])
    state = _read_state(file, key) if resume else {}
    talks: list[Conversation] = [Conversation(**talk) for talk in state.get("conversations", [])]
    wanted = config.conversations + config.held_out
    before = float(state.get("seconds", 0.0))
    run: dict[str, Any] = {"step": int(state.get("step", 0)), "untrained": state.get("untrained")}

    def save(student: Student | None, optimizer: torch.optim.Optimizer | None) -> None:
        kept = {
            "key": key,
            "conversations": [asdict(talk) for talk in talks],
            "student": state.get("student") if student is None else student.state_dict(),
            "optimizer": state.get("optimizer") if optimizer is None else optimizer.state_dict(),
            "seconds": before + time.monotonic() - started,
            **run,
        }
        beside = file.with_name(file.name + ".part")
        torch.save(kept, beside)
        os.replace(beside, file)

    for talk in islice(study(teacher, text, config, tuple(talks)), wanted - len(talks)):
        talks.append(talk)
        if len(talks) % 100 == 0:
            report({"conversations": len(talks), "seconds": round(before + time.monotonic() - started, 1)})
        if time.monotonic() >= deadline:
            break
    if len(talks) < wanted:
        save(None, None)
        return Piece(
            step=0, finished=False, seconds=before + time.monotonic() - started, untrained=None, trained=None
        )
    held, used = talks[: config.held_out], talks[config.held_out :]
    student = Student(span, *first_slots(span, ids, config.tokens_kept)).to(span.info.device)
    optimizer = torch.optim.Adam(student.parameters(), lr=config.lr)
    if state.get("student") is not None:
        student.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
    with _frozen(span):
        if run["untrained"] is None:
            run["untrained"] = _measure(student, held, config)
        saved = time.monotonic()
        while run["step"] < config.steps and time.monotonic() < deadline:
            loss = _step(student, optimizer, used, config, run["step"])
            run["step"] += 1
            if run["step"] in (1, config.steps) or run["step"] % LOG_EVERY == 0:
                past = before + time.monotonic() - started
                report({"step": run["step"], "loss": round(loss, 4), "seconds": round(past, 1)})
            if time.monotonic() - saved > SAVE_SECONDS:
                save(student, optimizer)
                saved = time.monotonic()
        trained = _measure(student, held, config)
    save(student, optimizer)
    past = before + time.monotonic() - started
    facts = {
        "settings": {
            **config.settings(),
            "steps_made": run["step"],
            "seconds": round(past, 1),
            "held_out_kl": {"untrained": run["untrained"], "trained": trained},
            "device": str(span.info.device),
        },
        "model": span.name,
        "fingerprint": span.info.fingerprint,
        "document_hash": hash_ids(body),
        "document_tokens": len(body),
        "head_tokens": len(ids) - len(body),
    }
    save_cartridge(out, as_cartridge(student, **facts))
    return Piece(
        step=run["step"],
        finished=run["step"] >= config.steps,
        seconds=past,
        untrained=run["untrained"],
        trained=trained,
    )


def _step(
    student: Student,
    optimizer: torch.optim.Optimizer,
    talks: list[Conversation],
    config: CartridgeConfig,
    step: int,
) -> float:
    loss = student.loss([talks[i] for i in batch(len(talks), config, step)])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if not torch.isfinite(loss):
        raise UserInputError(f"the loss is not finite at step {step + 1}; lower --lr and start anew")
    for group in optimizer.param_groups:
        group["lr"] = config.lr * config.share(step)
    optimizer.step()
    return float(loss.detach())


def batch(num_talks: int, config: CartridgeConfig, step: int) -> list[int]:
    """Conversations of a step: each comes once an epoch, in an order of its own."""
    rows = min(config.batch_rows, num_talks)
    steps = num_talks // rows
    epoch, place = divmod(step, steps)
    order = np.random.default_rng((config.seed, epoch)).permutation(num_talks)
    return [int(i) for i in order[place * rows : (place + 1) * rows]]


@torch.no_grad()
def _measure(student: Student, talks: list[Conversation], config: CartridgeConfig) -> float:
    rows = config.batch_rows
    parts = [talks[i : i + rows] for i in range(0, len(talks), rows)]
    tokens = [sum(len(talk.top_ids) for talk in part) for part in parts]
    losses = [float(student.loss(part)) for part in parts]
    return round(sum(a * b for a, b in zip(losses, tokens, strict=True)) / sum(tokens), 5)


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
