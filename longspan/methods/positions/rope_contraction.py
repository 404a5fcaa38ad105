"""RoPE contraction: lower the rotary base, so that positions of a short text stand further apart.

Equation: theta_i' = (b / f)^(-2i/d) with b the model's own base and f = `factor`: every frequency but the
fastest turns faster, the slowest by f^((d - 2) / d). It is the reverse of raising the base for longer texts:
the window contracts by about that much, and within it neighbours are told apart by more of a turn.

Paper: NeedleChain: Measuring Intact Long-Context Reasoning Capability of Large Language Models (2025).

Differs from the paper: perhaps. Its abstract names the strategy and its purpose, that a model takes in the
whole of a short text; that it lowers the base at inference, without training, is from accounts of it, and
neither its values nor its code could be found (the authors' repository has none). So factor has no default.

Fails when: the text comes near the trained window divided by the factor: the slow frequencies then turn
further than they ever did in training.

    model = longspan.load("reference", methods="rope_contraction(factor=3)")
    model.read(text_of_1024_tokens).ask("Who keeps the lantern?")
"""

from __future__ import annotations

from dataclasses import dataclass

from longspan.methods.positions._scaling import check_factor, check_rotary, check_several
from longspan.roles import ModelInfo, Positions, Rope

CARD = {
    "title": "NeedleChain: Measuring Intact Long-Context Reasoning Capability of Large Language Models",
    "year": 2025,
    "paper_id": 198,
    "family": "positions",
    "roles": ["Positions"],
    "phase": "both",
    "training": "none",
    "exact": "at factor=1 only",
    "frees": "no",
    "needs": [
        "rotary positions that the model does not scale itself",
        "texts well within the trained window",
    ],
    "claim": {
        "text": "in a text of a quarter of the window, positions set further apart help to follow all of a chain "
        "of variables",
        "spec": "rope_contraction(factor=3)",
        "task": "vt",
        "length_tokens": 1024,
        "against": "dense",
        "margin": 0.03,
        "samples": 30,
    },
    "tolerances": {},
    "example": "rope_contraction(factor=4)",
    "identity": "rope_contraction(factor=1)",
}


@dataclass(frozen=True, kw_only=True)
class RopeContraction(Positions):
    """Settings of RoPE contraction."""

    factor: float  # f, what the base is divided by; the paper's values are not known to us

    def __post_init__(self) -> None:
        check_factor(self.factor)

    def check(self, model: ModelInfo) -> None:
        """Refuse models without rotary positions, and factors that leave no base."""
        check_rotary("rope_contraction", model)
        check_several("rope_contraction", model)
        for layer in model.open_layers:
            if layer.rope is not None and layer.rope.theta / self.factor <= 1:
                raise ValueError(
                    f"rope_contraction divides the rotary base: got factor={self.factor:g}, but {model.name} has a "
                    f"base of {layer.rope.theta:g} in layer {layer.index}; give less than that, such as factor=3"
                )

    def rope(self, rope: Rope) -> Rope:
        """The embedding with the lowered base."""
        return rope if self.factor == 1 else rope.with_theta(rope.theta / self.factor)
