"""LongLoRA's shifted sparse attention: rows in full length, of which a token sees its own quarter while it is trained.

Equation: a row of L' tokens (the target) is cut into groups of G = ceil(L' / 4); token i attends to token j <= i where

    floor(i / G) = floor(j / G)                              in the first half of the heads
    floor((i + G - s) / G) = floor((j + G - s) / G)          in the other half,      s = floor(G / 2)

so that what one half cannot see of the groups' borders the other carries over, layer by layer, at a quarter of the cost of
attention. The trained model attends to everything. Frequencies: linear interpolation by L' over the window, or those of
the method that `positions` names.

Paper: LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models (2023).

Differs from the paper: it moves the half's tokens on by s and puts the first s behind the last, as one group. There the first
tokens would see the last ones, which the authors' code with FlashAttention prevents as ours does, and their code without
it does not: `leak=true` is that. Rows of any length serve, the last group then being shorter; theirs must divide by four.
Its low-rank adapters with embeddings and norms trained beside them are `--lora` and `--lora-also`, for every scheme.

Fails when: training is short: attention that was never dense while trained must be made up for by the base model's own.

    longspan train extend reference --scheme 'shifted()' --length 16384 --text books/ --out run/ --lora 8 --lora-also norms,embeddings
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longspan.model_info import Rope
from longspan.training.scheme import Scheme
from longspan.training.schemes._frequencies import check_frequencies, frequency_spec, scaled_rope

CARD = {
    "title": "LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models",
    "year": 2023,
    "paper_id": 55,
    "trains": "on rows of the target's length, with attention within quarters of the row, shifted in half of the heads",
}


@dataclass(frozen=True, kw_only=True)
class Shifted(Scheme):
    """Settings of shifted sparse attention."""

    positions_: str | None = (
        None  # spec of the frequencies; by default the paper's pi; "" for the model's own
    )
    leak: bool = (
        False  # let the first half group see the row's end, as the paper's code without FlashAttention
    )

    def __post_init__(self) -> None:
        check_frequencies(self.positions_ or "")

    def rope(self, rope: Rope, target_tokens: int, rng: np.random.Generator) -> Rope:
        """The method's frequencies, the same in every row."""
        return scaled_rope(self._frequencies(rope, target_tokens), rope)

    def attention(self) -> str | None:
        """The name under which it is registered."""
        from longspan.training.shifted_attention import register

        return register(leak=self.leak)

    def spec(self, rope: Rope, target_tokens: int) -> str:
        """The method trained under; attention is dense."""
        return frequency_spec(self._frequencies(rope, target_tokens))

    def _frequencies(self, rope: Rope, target_tokens: int) -> str:
        """The paper rounds the factor up."""
        if self.positions_ is not None:
            return self.positions_
        return f"pi(factor={-(-target_tokens // rope.window_tokens)})"
