"""One piece of a run: load, check, make data, train until the schedule or the time ends, keep and export."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from longspan.errors import UserInputError
from longspan.evaluation.provenance import versions
from longspan.reference.config import RecipeConfig
from longspan.reference.feed import Feed
from longspan.reference.rows import RowMaker
from longspan.reference.train import pick_device
from longspan.training.base import Base, load_base
from longspan.training.checkpoint import Progress, check_out, read_checkpoint, restore, save_checkpoint
from longspan.training.config import ExtendConfig, Schedule, make_schedule
from longspan.training.export import MODEL, export
from longspan.training.text import check_folders, count_text, make_rows
from longspan.training.trainer import StepLosses, Trainer

LOG = "log.jsonl"
LOG_EVERY = 10
SAVE_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What a piece left behind. folder: the exported model's. spec: what it is run with."""

    progress: Progress
    schedule: Schedule
    folder: Path
    spec: str


def extend_piece(
    model: str | PreTrainedModel,
    config: ExtendConfig,
    *,
    text: list[Path],
    out: Path,
    tokenizer: Any = None,
    resume: bool = False,
    seconds: float | None = None,
    workers: int = 0,
    smoke: bool = False,
    started: float | None = None,
    report: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Piece:
    """Train one piece of at most `seconds`, counted from `started`; write checkpoint, log and exported model to `out`.

    Args:
        model: what `longspan.load` takes; tokenizer: for a loaded model. text: folders of .md, .txt or .py files.
        resume: go on from the checkpoint in `out`. workers: processes that make rows. smoke: a tiny random model instead.
        report: gets every tenth record of the log, the first and the last.

    Raises:
        ValueError: bad input, in one sentence, or a loss that is not finite.
    """
    started = time.monotonic() if started is None else started
    deadline = started + seconds if seconds is not None else float("inf")
    check_out(out, resume=resume)
    check_folders(text)
    config = replace(config, scheme=replace(config.scheme))  # its parameters are this run's alone
    half = config.lora_rank is not None and torch.cuda.is_available()
    base = load_base(model, config.scheme, config.length_tokens, half=half, smoke=smoke, tokenizer=tokenizer)
    schedule = make_schedule(config, base.window_tokens)
    out.mkdir(parents=True, exist_ok=True)
    state = read_checkpoint(out) if resume else None
    recipe = RecipeConfig(
        buckets=((schedule.row_tokens, schedule.rows),),
        task_share=config.task_share,
        answer_weight=config.answer_weight,
        seed=config.seed,
    )
    rows = make_rows(base.tokenizer, text, out, recipe, resume=resume, smoke=smoke)
    first = state["progress"]["step"] if state is not None else 0
    # The workers are forked, so they start before the first use of a GPU. TaskRows makes rows as RowMaker does.
    feed = Feed(cast(RowMaker, rows), first_step=first, workers=workers)
    try:
        trainer = Trainer(base, config, schedule, pick_device())
        given = Progress(text_tokens=count_text(rows), device=_device_name(trainer.device))
        progress = given if state is None else _resumed(restore(state, trainer), given)
        log = _Log(out / LOG, progress.step, report)
        with trainer:
            progress = _run(trainer, feed, progress, out, deadline, log)
    finally:
        feed.close()
    save_checkpoint(out, trainer, progress)
    spec = export(trainer, out / MODEL, _card(config, schedule, base, progress))
    return Piece(progress=progress, schedule=schedule, folder=out / MODEL, spec=spec)


def _resumed(progress: Progress, given: Progress) -> Progress:
    """The run's progress, on the device and the text of this piece."""
    if progress.text_tokens != given.text_tokens:
        raise UserInputError(
            f"the run began with a text of {progress.text_tokens:,} tokens, and this one has {given.text_tokens:,}; "
            "resume with the same --text, or start anew in another --out"
        )
    return replace(progress, device=given.device)


def _run(trainer: Trainer, feed: Feed, start: Progress, out: Path, deadline: float, log: _Log) -> Progress:
    """Steps until the schedule ends or the deadline passes; a checkpoint every ten minutes on the way."""
    schedule, progress = trainer.schedule, start
    began = saved = last = time.monotonic()
    for data in feed:
        if progress.step >= schedule.steps or last > deadline:
            break
        assert data.step == progress.step
        losses = trainer.step(data)
        now = time.monotonic()
        step = progress.step + 1
        progress = replace(
            progress, step=step, tokens=step * schedule.step_tokens, seconds=start.seconds + now - began
        )
        log.add(_record(losses, progress, schedule, trainer.config, now - last), last=step == schedule.steps)
        last = now
        if now - saved > SAVE_SECONDS:
            save_checkpoint(out, trainer, progress)
            saved = now
    return replace(progress, finished=progress.step >= schedule.steps)


def _record(
    losses: StepLosses, progress: Progress, schedule: Schedule, config: ExtendConfig, seconds: float
) -> dict[str, Any]:
    rounded = {name: None if value is None else round(value, 4) for name, value in asdict(losses).items()}
    return {
        "step": progress.step,
        **rounded,
        "lr": config.lr * schedule.share(progress.step - 1),
        "tokens": progress.tokens,
        "tokens_per_second": round(schedule.step_tokens / max(seconds, 1e-9)),
        "seconds": round(progress.seconds, 2),
    }


class _Log:
    """JSON lines, one a step; records behind the step that a run goes on from are dropped."""

    def __init__(self, path: Path, step: int, report: Callable[[dict[str, Any]], None]) -> None:
        self.path, self.report = path, report
        lines = path.read_text(encoding="utf-8").splitlines() if step and path.is_file() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.first = step + 1

    def add(self, record: dict[str, Any], *, last: bool) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        if last or record["step"] == self.first or record["step"] % LOG_EVERY == 0:
            self.report(record)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _card(config: ExtendConfig, schedule: Schedule, base: Base, progress: Progress) -> dict[str, Any]:
    """How the model was made: what `longspan.json` holds beside the spec."""
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {
        "base": {"name": base.name, "fingerprint": base.fingerprint, "window_tokens": base.window_tokens},
        "settings": config.settings(),
        "row_tokens": schedule.row_tokens,
        "step_tokens": schedule.step_tokens,
        "planned_steps": schedule.steps,
        "steps": progress.step,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 1),
        "device": progress.device,
        "text_tokens": progress.text_tokens,
        "peak_memory_bytes": peak,
        "versions": versions(),
    }
