"""Entropy-aware ABF: raise the rotary base, and sharpen attention with the length so that its entropy stays put.

Equation: theta' = `theta`, and the logits of the query at position i (from 1) are multiplied by

    max(1, log(i) / log(c)),    c the trained window, in all layers but the first two

so that attention over more keys than in training is no more spread out than it was. The first two layers, whose
attention behaves otherwise as texts grow, are left out.

Paper: Extending LLMs' Context Window with 100 Samples (2024).

Differs from the paper: nothing in the formula; the paper trains for 6 steps on 100 samples afterwards, which is up to
you. A base of 500,000 is for models that are then trained; without training, stay near what ntk would give
(theta * s^(d / (d - 2)), about 30,000 for twice the window of a model of base 10,000).

Fails when: the base is raised far above the need without training.

    model = longspan.load("reference", methods="entropy_abf(theta=30000)")
    model.read(text_of_8192_tokens).ask("Who keeps the lantern?")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from longspan.methods.positions._scaling import (
    check_raised,
    check_rotary,
    check_several,
    check_theta,
    check_window,
    log_scale,
    raised,
)
from longspan.roles import LayerInfo, ModelInfo, Positions, Rope

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "Extending LLMs' Context Window with 100 Samples",
    "year": 2024,
    "paper_id": 184,
    "family": "positions",
    "roles": ["Positions"],
    "phase": "both",
    "training": "none",
    "exact": "within the trained window, with the model's own base",
    "frees": "no",
    "needs": [
        "rotary positions that the model does not scale itself",
        "a few training steps for bases far above the model's",
    ],
    "claim": {
        "text": "raised base and scaled logits find facts at twice the trained window, where the model as it is fails",
        "spec": "entropy_abf(theta=30000)",
        "task": "niah_single_1",
        "length_tokens": 8192,
        "reach": {
            16384: "entropy_abf(theta=80000)",
            32768: "entropy_abf(theta=180000)",
            65536: "entropy_abf(theta=360000)",
        },
        "against": "dense",
        "margin": 0.5,
    },
    "tolerances": {},
    "example": "entropy_abf(theta=30000, window_tokens=64, unscaled_layers=1)",
    "identity": "entropy_abf(theta=none, window_tokens=1024)",
}


@dataclass(frozen=True, kw_only=True)
class EntropyAbf(Positions):
    """Settings of entropy-aware ABF."""

    theta: float | None = 500_000.0  # the paper's, for Llama-2 with its 10,000; none keeps the model's own
    window_tokens: int | None = None  # c; by default the trained window, the paper's 4,096
    unscaled_layers: int = 2  # first layers whose logits are left alone; the paper's

    def __post_init__(self) -> None:
        check_theta(self.theta)
        check_window(self.window_tokens, least=2)
        if self.unscaled_layers < 0:
            raise ValueError(
                f"got unscaled_layers={self.unscaled_layers}; allowed is 0 or more (the paper: 2)"
            )

    def check(self, model: ModelInfo) -> None:
        """Refuse models without rotary positions, and bases below the model's own."""
        check_rotary("entropy_abf", model)
        check_several("entropy_abf", model)
        check_raised("entropy_abf", self.theta, model)

    def rope(self, rope: Rope) -> Rope:
        """The embedding with the raised base."""
        return raised(rope, self.theta)

    def logit_scale(self, positions: Tensor, layer: LayerInfo) -> Tensor | None:
        """max(1, log(position + 1) / log(window)) `[B, T]` float32; None in the first layers."""
        if layer.index < self.unscaled_layers or layer.rope is None:
            return None
        return log_scale(positions, self.window_tokens or layer.rope.window_tokens)
