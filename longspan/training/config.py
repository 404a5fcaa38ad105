"""One training run: every number of the recipe, in one place, and the schedule that follows from it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from typing import Any

from longspan.errors import UserInputError, did_you_mean
from longspan.training.registry import canonical_scheme
from longspan.training.scheme import Scheme

ALSO = ("embeddings", "norms")
SMOKE_DIVIDES = 16


@dataclass(frozen=True, kw_only=True)
class ExtendConfig:
    """Settings of a run; sources in brackets.

    scheme: what rows show of positions. length_tokens: the target. steps or tokens: the schedule's length, one of them.
    batch_tokens: most tokens of a step, in whole rows. forward_tokens: most tokens of one forward; a step's gradients are
    summed over as many as it needs (they change nothing but memory).
    lr: highest learning rate (full weights in PI, YaRN and PoSE). warmup_steps, adam_betas, clip: as there. weight decay is 0.
    lora_rank: train adapters of this rank on attention and MLP projections instead of all weights, with alpha 16 (LongLoRA);
    lora_also: "norms" and "embeddings", trained whole beside them (LongLoRA: both).
    task_share: rows with hidden tasks. answer_weight: loss weight of an answer token against 1 for text (the reference recipe's).
    checkpointing: keep a layer's input instead of all that backward needs. seed: of rows, scheme and adapters.
    """

    scheme: Scheme
    length_tokens: int
    steps: int | None = None
    tokens: int | None = None
    batch_tokens: int = 65_536
    forward_tokens: int = 32_768
    lr: float = 2e-5
    warmup_steps: int = 20
    adam_betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    lora_rank: int | None = None
    lora_also: tuple[str, ...] = ()
    task_share: float = 0.5
    answer_weight: int = 40
    checkpointing: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.tokens is None):
            raise UserInputError("the schedule's length is given once: as --steps or as --tokens")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UserInputError(f"got a learning rate of {self.lr:g}; allowed is above 0, such as 2e-5")
        if not 0 <= self.task_share <= 1:
            raise UserInputError(f"got task_share={self.task_share:g}; allowed is 0 to 1")
        if self.lora_also and self.lora_rank is None:
            raise UserInputError(
                "--lora-also names weights trained beside adapters; give --lora RANK with it"
            )
        for name in self.lora_also:
            if name not in ALSO:
                raise UserInputError(f"--lora-also has {name!r}; {did_you_mean(name, ALSO)}")

    def settings(self) -> dict[str, Any]:
        """Every setting as plain values, the scheme as its spec."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return plain | {"scheme": canonical_scheme(self.scheme)}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What a config comes to for one model: T tokens of a row, rows of a step, steps of the run."""

    row_tokens: int
    rows: int
    steps: int
    warmup_steps: int

    @property
    def step_tokens(self) -> int:
        """Tokens of one step."""
        return self.row_tokens * self.rows

    def share(self, step: int) -> float:
        """Share of the full learning rate at `step`: linear warm-up, then linear to zero behind the last step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return max(0.0, (self.steps - step) / (self.steps - self.warmup_steps))


def make_schedule(config: ExtendConfig, window_tokens: int) -> Schedule:
    """The schedule for a model of this window.

    Raises:
        ValueError: the target is not above the window, the scheme cannot reach it, or a step holds no row.
    """
    target = config.length_tokens
    if target <= window_tokens:
        raise UserInputError(
            f"got --length {target}, but the model's window already has {window_tokens:,} tokens; give a longer one, "
            f"such as {4 * window_tokens}"
        )
    row_tokens = config.scheme.row_tokens(window_tokens, target)
    rows = config.batch_tokens // row_tokens
    if rows == 0:
        raise UserInputError(
            f"got --batch-tokens {config.batch_tokens}, but one row has {row_tokens:,} tokens; give {row_tokens} or more"
        )
    step_tokens = rows * row_tokens
    steps = config.steps if config.tokens is None else config.tokens // step_tokens
    if not steps:
        raise UserInputError(
            f"got --tokens {config.tokens}, but one step has {step_tokens:,}; give more, or fewer --batch-tokens"
        )
    return Schedule(
        row_tokens=row_tokens,
        rows=rows,
        steps=steps,
        warmup_steps=min(config.warmup_steps, steps // 10 + 1),
    )


def smoke_config(config: ExtendConfig) -> ExtendConfig:
    """The same run over a sixteenth of the length, in steps of 2,048 tokens: for the model that `--smoke` puts in place."""
    return replace(
        config,
        length_tokens=config.length_tokens // SMOKE_DIVIDES,
        batch_tokens=2048,
        forward_tokens=1024,
        lr=1e-3,
        warmup_steps=2,
    )


def resume_key(config: ExtendConfig, base: str) -> str:
    """What a checkpoint must share with the run that goes on from it: all but the schedule's length and what cannot change
    a result. `base`: fingerprint of the base model."""
    free = replace(config, steps=1, tokens=None, forward_tokens=0, checkpointing=False)
    return json.dumps({"base": base, **free.settings()}, sort_keys=True)
