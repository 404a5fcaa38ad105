"""Rows in full length, under frequencies of a position method: what most published recipes come down to.

Equation: a row of L' tokens (the target) at positions 0 .. L' - 1, rotated with theta' of the method that `positions` names;
next-token loss.

Paper: Extending Context Window of Large Language Models via Position Interpolation (2023), with positions="pi(factor=s)"; with
"yarn(factor=s)" it is YaRN's recipe and, in one step to the target, UltraLong's; with "abf(theta=b)" continual training
with a raised base (Effective Long-Context Scaling); with "ntk(factor=s)", "power_basis()" or "truncated_basis()" rows of the
Controlled Study and of Giraffe; with the embeddings trained beside LoRA, the recipe of Extending Llama-3's Context
Ten-Fold Overnight.

Differs from the papers: data, number of steps and learning rate are the user's, the same for every scheme.

Fails when: memory or time do not allow rows of the target's length; pose and e2_llm train on the window's.

    longspan train extend reference --scheme 'full(positions="yarn(factor=4)")' --length 16384 --text books/ --out run/
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longspan.model_info import Rope
from longspan.training.scheme import Scheme
from longspan.training.schemes._frequencies import check_frequencies, frequency_spec, scaled_rope

CARD = {
    "title": "Extending Context Window of Large Language Models via Position Interpolation",
    "year": 2023,
    "paper_id": None,
    "trains": "on rows of the target's length, all positions in order",
}


@dataclass(frozen=True, kw_only=True)
class Full(Scheme):
    """Settings of training in full length."""

    positions_: str = ""  # spec of the frequencies trained under; none for the model's own

    def __post_init__(self) -> None:
        check_frequencies(self.positions_)

    def rope(self, rope: Rope, target_tokens: int, rng: np.random.Generator) -> Rope:
        """The method's frequencies, the same in every row."""
        return scaled_rope(self.positions_, rope)

    def spec(self, rope: Rope, target_tokens: int) -> str:
        """The method trained under."""
        return frequency_spec(self.positions_)
