"""A run between two pieces: trained weights, optimiser and progress, in one file that is replaced whole."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from longspan.errors import UserInputError
from longspan.training.config import resume_key
from longspan.training.trainer import Trainer

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands. seconds: of all its pieces. device: name of what the last one ran on. text_tokens: of the text that
    rows are made of."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    finished: bool = False
    device: str = ""
    text_tokens: int = 0


def check_out(folder: Path, *, resume: bool) -> None:
    """Refuse to go on from nothing, and to start where a run stands.

    Raises:
        UserInputError: with what to do.
    """
    there = (folder / CHECKPOINT).is_file()
    if resume and not there:
        raise UserInputError(f"nothing to resume: {folder} has no {CHECKPOINT}; start without --resume")
    if there and not resume:
        raise UserInputError(f"{folder} holds a run already; go on with --resume, or choose another --out")


def save_checkpoint(folder: Path, trainer: Trainer, progress: Progress) -> None:
    """Write the run; the old checkpoint stays until the new one is whole."""
    state = {
        "weights": trainer.weights.state(),
        "scheme": None if trainer.module is None else trainer.module.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "progress": asdict(progress),
        "key": resume_key(trainer.config, trainer.base.fingerprint),
    }
    temporary = folder / (CHECKPOINT + ".part")
    torch.save(state, temporary)
    os.replace(temporary, folder / CHECKPOINT)


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, on the CPU.

    Raises:
        UserInputError: the file is not a whole checkpoint.
    """
    path = folder / CHECKPOINT
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        raise UserInputError(f"{path} cannot be read as a checkpoint; start anew in another --out") from error
    return state


def restore(state: dict[str, Any], trainer: Trainer) -> Progress:
    """Put a trainer where the checkpoint's stood.

    Raises:
        UserInputError: the run had other settings or another base.
    """
    if state["key"] != resume_key(trainer.config, trainer.base.fingerprint):
        raise UserInputError(
            "the checkpoint is of a run with other settings or another model; resume with the same ones, or start anew "
            "in another --out (longspan.json beside its model has them)"
        )
    trainer.weights.load(state["weights"])
    if trainer.module is not None:
        trainer.module.load_state_dict(state["scheme"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])
