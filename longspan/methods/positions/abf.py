"""ABF, adjusted base frequency: raise the rotary base, so that attention to distant tokens decays less.

Equation: theta_i' = b'^(-2i/d) with b' = `theta` in place of the model's own base b, for i = 0 .. d/2 - 1.
Every frequency but the fastest slows down, the slowest by (b' / b)^((d - 2) / d): a distance turns by less,
and keys far away are scored more like keys close by.

Paper: Effective Long-Context Scaling of Foundation Models (2023).

Differs from the paper: nothing in the formula. The paper goes on training Llama 2 with it, on 400 billion
tokens of texts of up to 32,768 tokens, which is up to you. The default of 500,000 is for models that are then
trained; without training, stay near what ntk would give (b * s^(d / (d - 2)), about 30,000 for twice the
window of a base of 10,000).

Fails when: the base is raised far above the need without training.

    model = longspan.load("reference", methods="abf(theta=30000)")
    model.read(text_of_8192_tokens).ask("Who keeps the lantern?")
"""

from __future__ import annotations

from dataclasses import dataclass

from longspan.methods.positions._scaling import check_raised, check_rotary, check_several, check_theta, raised
from longspan.roles import ModelInfo, Positions, Rope

CARD = {
    "title": "Effective Long-Context Scaling of Foundation Models",
    "year": 2023,
    "paper_id": 21,
    "family": "positions",
    "roles": ["Positions"],
    "phase": "both",
    "training": "none",
    "exact": "at the model's own base only",
    "frees": "no",
    "needs": [
        "rotary positions that the model does not scale itself",
        "further training for bases far above the model's",
    ],
    "claim": {
        "text": "with a raised base the model finds a hidden fact at twice its window, where as it is it fails",
        "spec": "abf(theta=30000)",
        "task": "niah_single_1",
        "length_tokens": 8192,
        "reach": {16384: "abf(theta=80000)", 32768: "abf(theta=180000)", 65536: "abf(theta=360000)"},
        "against": "dense",
        "margin": 0.5,
    },
    "tolerances": {},
    "example": "abf(theta=50000)",
    "identity": "abf(theta=none)",
}


@dataclass(frozen=True, kw_only=True)
class AdjustedBase(Positions):
    """Settings of ABF."""

    theta: float | None = 500_000.0  # b', the paper's for Llama 2; none keeps the model's own

    def __post_init__(self) -> None:
        check_theta(self.theta)

    def check(self, model: ModelInfo) -> None:
        """Refuse models without rotary positions, and bases below the model's own."""
        check_rotary("abf", model)
        check_several("abf", model)
        check_raised("abf", self.theta, model)

    def rope(self, rope: Rope) -> Rope:
        """The embedding with the raised base."""
        return raised(rope, self.theta)
