"""Linear position interpolation: squeeze all positions by a factor, so that a longer text fits the trained range.

Equation: position p is rotated as p / s, that is theta_i' = theta_i / s for every frequency, with s = `factor`.
A text of s times the trained window then has no position that the model has not seen. An encoder with a learned
table E of positions looks up E(p / s), where E(i + f) = (1 - f) E(i) + f E(i + 1).

Paper: Extending Context Window of Large Language Models via Position Interpolation (2023); for encoders and learned
tables, LongEmbed: Extending Embedding Models for Long Context Retrieval (2024).

Differs from the paper: nothing in the formula (the "linear" type of transformers); the paper then fine-tunes for
1,000 steps, which is up to you: give the fine-tuned model the factor it was tuned with. With a table, as in LongEmbed,
texts within the trained window keep their positions; what lies behind the table's last row takes that row.

Fails when: the model is not fine-tuned and the factor is much above 1: neighbours come closer together than they ever
were in training, and the model loses their order. Without training, use ntk, yarn or self_extend.

    model = longspan.load("reference", methods="pi(factor=1.25)")
    model.read(text).ask("Who keeps the lantern?")
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from longspan.methods.positions._scaling import check_factor, check_positions
from longspan.roles import ModelInfo, Positions, Rope

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "Extending Context Window of Large Language Models via Position Interpolation",
    "year": 2023,
    "paper_id": None,
    "family": "positions",
    "roles": ["Positions"],
    "phase": "both",
    "training": "none",
    "exact": "at factor=1 only",
    "frees": "no",
    "needs": [
        "rotary positions that the model does not scale itself, or an encoder's learned table",
        "fine-tuning for factors much above 1",
    ],
    "claim": {
        "text": "a little past the trained window, interpolated positions find facts where extrapolated ones fail",
        "spec": "pi(factor=1.25)",
        "task": "niah_single_1",
        "length_tokens": 5120,
        "reach": {
            8192: "pi(factor=2)",
            16384: "pi(factor=4)",
            32768: "pi(factor=8)",
            65536: "pi(factor=16)",
        },
        "against": "dense",
        "margin": 0.2,
    },
    "tolerances": {},
    "example": "pi(factor=2)",
    "identity": "pi(factor=1)",
}


@dataclass(frozen=True, kw_only=True)
class PositionInterpolation(Positions):
    """Settings of linear position interpolation."""

    factor: float  # s, text length over trained window; 4 to 16 in the paper

    def __post_init__(self) -> None:
        check_factor(self.factor)

    def check(self, model: ModelInfo) -> None:
        """Refuse models without rotary positions or a table of positions."""
        check_positions("pi", model)

    def rope(self, rope: Rope) -> Rope:
        """Every frequency divided by the factor."""
        return rope if self.factor == 1 else replace(rope, inv_freq=rope.inv_freq / self.factor)

    def places(self, positions: Tensor, window_tokens: int) -> Tensor:
        """Positions divided by the factor."""
        return positions / self.factor
