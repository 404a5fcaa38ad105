"""Settings of a cartridge's training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class CartridgeConfig:
    """One training run.

    Args:
        tokens_kept: p, slots of the cartridge.
        steps: length of the schedule.
        conversations: questions that self-study asks about the document, each with the teacher's answer.
        questions: `spans`: made by rule of the document's sentences, for models that cannot be asked to invent questions;
            `asked`: the model itself invents them, shown a part of the document.
        batch_rows: conversations of one step.
        lr: highest learning rate of keys and values.
        warmup_steps: steps up to it; from there it falls in a line to zero at the last step.
        answer_tokens: most tokens of an answer.
        top_logits: of each of the teacher's distributions, the tokens that are kept.
        chunk_tokens: of the part of the document that `asked` shows.
        held_out: conversations, beside the others, that are only measured.
        study_rows: questions that the teacher answers side by side.
        beside_share: share of the steps in which passages of other texts stand before or behind the cartridge, so that it is
            found, and leaves the others be, among several. 0: it is trained alone.
        passages: how many passages, of as many tokens as the cartridge.
        passage_questions: conversations about each passage, of which the cartridge knows nothing.
        seed: of questions and of the order of conversations.
    """

    tokens_kept: int
    steps: int = 500
    conversations: int = 1024
    questions: Literal["spans", "asked"] = "spans"
    batch_rows: int = 16
    lr: float = 2e-2
    warmup_steps: int = 20
    answer_tokens: int = 24
    top_logits: int = 20
    chunk_tokens: int = 512
    held_out: int = 32
    study_rows: int = 32
    beside_share: float = 0.5
    passages: int = 48
    passage_questions: int = 8
    seed: int = 1

    def __post_init__(self) -> None:
        counts = ("tokens_kept", "steps", "conversations", "batch_rows", "answer_tokens", "top_logits")
        for name in (*counts, "study_rows", "passages", "passage_questions"):
            if getattr(self, name) < 1:
                raise ValueError(f"got {name}={getattr(self, name)}; allowed is 1 or more")
        if self.tokens_kept < 2:
            raise ValueError(
                f"got tokens_kept={self.tokens_kept}; allowed is 2 or more, since the first slot is frozen"
            )
        if self.held_out < 1 or self.chunk_tokens < 1:
            raise ValueError("held_out and chunk_tokens are at least 1; leave them out for the defaults")
        if not 0 < self.lr < 10:
            raise ValueError(f"got lr={self.lr}; allowed is above 0, such as 0.02")
        if not 0 <= self.beside_share <= 1:
            raise ValueError(
                f"got beside_share={self.beside_share}; allowed is 0 (the cartridge is trained alone) to 1"
            )
        if self.questions not in ("spans", "asked"):
            raise ValueError(f"got questions={self.questions!r}; allowed is spans or asked")

    def share(self, step: int) -> float:
        """Share of the learning rate at `step`, counted from 0."""
        warmup = min(self.warmup_steps, self.steps // 10 + 1)
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, (self.steps - step) / (self.steps - warmup))

    def settings(self) -> dict[str, Any]:
        return asdict(self)
