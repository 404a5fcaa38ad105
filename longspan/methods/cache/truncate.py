"""Truncation: what does not fit the window is left out before the model sees it.

The plainest way to put a long text into a short window, and the baseline that every other method has to beat. Of n ids,
"middle" keeps the first and the last half of the budget, "left" the last part only, "right" the first part only.

Equation: ids' = ids[: k/2] + ids[n - k/2 :] for "middle", ids[n - k :] for "left", ids[: k] for "right".

Paper: LongBench: A Bilingual, Multitask Benchmark for Long Context Understanding (2023), which truncates in the middle.

Differs from the paper: the budget leaves room for the question inside the model's window, by default 512 tokens.

Fails when: the answer lies in the part that was left out.

    model = longspan.load("reference", methods="truncate(side=middle)")
    model.read(text).ask("Who keeps the lantern?")
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from longspan.roles import ModelInfo, Reader, Reading

CARD = {
    "title": "LongBench: A Bilingual, Multitask Benchmark for Long Context Understanding",
    "year": 2023,
    "paper_id": 17,
    "family": "cache",
    "roles": ["Reading"],
    "phase": "read",
    "training": "none",
    "exact": "exact while the text fits the budget",
    "frees": "frees",
    "needs": [],
    "claim": {
        "text": "a text twice the window, cut in the middle, keeps about half of its needles",
        "spec": "truncate(side=middle)",
        "task": "niah_single_1",
        "length_tokens": 8192,
        "against": "dense",
        "margin": 0.2,
    },
    "example": "truncate(keep_tokens=100)",
    "identity": "truncate(keep_tokens=4096)",
    "tolerances": {},
}

QUESTION_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Truncate(Reading):
    """Keep `keep_tokens` of the text and read them as if they were all of it."""

    keep_tokens: int | None = None  # None: the model's window less 512 tokens for question and answer
    side: Literal["middle", "left", "right"] = "middle"  # LongBench truncates in the middle

    def __post_init__(self) -> None:
        if self.keep_tokens is not None and self.keep_tokens < 2:
            raise ValueError(
                f"got keep_tokens={self.keep_tokens}; allowed is 2 or more, or none for the model's window"
            )

    def check(self, model: ModelInfo) -> None:
        if self.keep_tokens is None and model.window_tokens <= QUESTION_TOKENS:
            raise ValueError(
                f"{model.name} has a window of {model.window_tokens} tokens, which leaves no room for a text beside a "
                f"question of {QUESTION_TOKENS}; give keep_tokens"
            )

    def read(self, reader: Reader, ids: Iterable[Tensor], num_tokens: int | None) -> Any:
        """Read what is kept; `run.origin` says where in the text each token stood."""
        whole = torch.cat(list(ids))
        places = self.kept_places(len(whole), self.keep_tokens or reader.info.window_tokens - QUESTION_TOKENS)
        run = reader.new_run(num_tokens=len(places))
        run.origin = places
        return reader.prefill(run, [whole[places]])

    def kept_places(self, num_tokens: int, budget_tokens: int) -> Tensor:
        """Places `[k]` of the ids that are kept, ascending."""
        if num_tokens <= budget_tokens:
            return torch.arange(num_tokens)
        head = {"middle": budget_tokens // 2, "left": 0, "right": budget_tokens}[self.side]
        tail = budget_tokens - head
        return torch.cat([torch.arange(head), torch.arange(num_tokens - tail, num_tokens)])
