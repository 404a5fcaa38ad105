"""One run: every number of it, in one place."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from longspan.errors import UserInputError
from longspan.reference.config import RecipeConfig

SHARES = (
    (4, 1 / 8),
    (2, 1 / 4),
    (1, 5 / 8),
)  # rows of a fourth, a half and all of the window: shares of a step's tokens


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Settings of a run; sources in brackets.

    window_tokens: T of the longest rows; None for the base's own window. step_tokens: most tokens of a step, in whole rows.
    steps, seconds: the schedule's length; with both, what ends first. The learning rate falls to zero at its end.
    task_share: rows with hidden tasks, whose answers alone are masked; the other rows are text, masked anywhere (LLaDA's
    fine-tuning and pre-training). peak: highest share of the reference recipe's learning rates.
    shift: the output at place i - 1 predicts token i, as in the causal model that training starts from (Dream); without it
    the output at place i does (LLaDA).
    block_tokens: the last answer of a row is followed by up to so many end tokens, which are predicted too, so that an answer of
    unknown length can be written into a block (LLaDA's fine-tuning). least_masked: t is drawn from (0, 1] and not below this.
    clip: of the gradient's length. held_out_tokens: the text's end, never trained on. seed: of rows and masks.
    """

    window_tokens: int | None = None
    step_tokens: int = 131_072
    steps: int | None = None
    seconds: float | None = None
    task_share: float = 0.5
    peak: float = 0.5
    warmup_steps: int = 40
    shift: bool = True
    block_tokens: int = 16
    least_masked: float = 1e-3
    clip: float = 1.0
    held_out_tokens: int = 1_000_000
    seed: int = 1

    def __post_init__(self) -> None:
        if self.steps is None and self.seconds is None:
            raise UserInputError("the schedule has no end; give --steps, --seconds or both")
        if not 0 <= self.task_share <= 1:
            raise UserInputError(f"got task_share={self.task_share:g}; allowed is 0 to 1")
        if not (math.isfinite(self.peak) and self.peak > 0):
            raise UserInputError(f"got a peak of {self.peak:g}; allowed is above 0, such as 0.5")
        if not 0 < self.least_masked <= 1:
            raise UserInputError(f"got least_masked={self.least_masked:g}; allowed is above 0, up to 1")

    def settings(self) -> dict[str, Any]:
        """Every setting as plain values."""
        return asdict(self)

    def recipe(self, base_window_tokens: int) -> RecipeConfig:
        """The rows of a step, and the reference recipe's learning rates at this peak.

        Raises:
            ValueError: the window is not within the base's, or a step holds no row of it.
        """
        window = base_window_tokens if self.window_tokens is None else self.window_tokens
        if not 64 <= window <= base_window_tokens:
            raise UserInputError(
                f"got a window of {window:,} tokens; allowed is 64 up to the base model's {base_window_tokens:,}"
            )
        buckets = []
        for divisor, share in SHARES:
            length = window // divisor
            rows = int(self.step_tokens * share) // length
            buckets += [(length, rows)] if rows and length >= 64 else []
        if not buckets or buckets[-1][0] != window:
            needed = math.ceil(window / SHARES[-1][1])
            raise UserInputError(
                f"got steps of {self.step_tokens:,} tokens, which hold no row of {window:,}; give {needed:,} or more"
            )
        return RecipeConfig(
            buckets=tuple(buckets),
            task_share=self.task_share,
            warmup_steps=self.warmup_steps,
            peak=self.peak,
            seed=self.seed,
        )

    def share(self, step: int, seconds: float) -> float:
        """Share of the recipe's learning rates at `step`, `seconds` after the first: linear warm-up, then linear to zero."""
        left = [1.0]
        if self.steps is not None:
            left.append((self.steps - step) / self.steps)
        if self.seconds:
            left.append((self.seconds - seconds) / self.seconds)
        return self.peak * max(0.0, min((step + 1) / self.warmup_steps, *left))
