"""NTK-aware scaling: raise the rotary base, so that slow frequencies are interpolated and fast ones hardly change.

Equation: theta' = theta * s^(d / (d - 2)) with s = `factor` and d rotary dims. The slowest frequency is then divided
by exactly s, the fastest by 1: nearby tokens stay told apart, distant ones stay within the trained range of angles.

Which factor for which length: s = L / L_trained holds only for the slowest frequency; those in between are
interpolated less and leave their trained range. So take s a half or so above the ratio: factor=3 for twice the
trained window, 6 for four times. (transformers' "dynamic" type at its factor f and length L uses
s = f * L / L_trained - (f - 1): 3 at twice the window with f = 2.)

Paper: NTK-Aware Scaled RoPE allows LLaMA models to have extended (8k+) context size without any fine-tuning (2023).

Differs from the paper: nothing; the factor is fixed for a whole text, since keys are stored rotated.

Fails when: the factor is far above the need (distances blur) or below it (the text runs out of the trained range).

    model = longspan.load("reference", methods="ntk(factor=3)")
    model.read(text_of_8192_tokens).ask("Who keeps the lantern?")
"""

from __future__ import annotations

from dataclasses import dataclass

from longspan.methods.positions._scaling import check_factor, check_rotary, check_several
from longspan.roles import ModelInfo, Positions, Rope

CARD = {
    "title": "NTK-Aware Scaled RoPE allows LLaMA models to have extended (8k+) context size without any fine-tuning",
    "year": 2023,
    "paper_id": None,
    "family": "positions",
    "roles": ["Positions"],
    "phase": "both",
    "training": "none",
    "exact": "at factor=1 only",
    "frees": "no",
    "needs": ["rotary positions that the model does not scale itself"],
    "claim": {
        "text": "without training, at twice the trained window, the model still finds a hidden fact (factor=3)",
        "spec": "ntk(factor=3)",
        "task": "niah_single_1",
        "length_tokens": 8192,
        "reach": {16384: "ntk(factor=8)", 32768: "ntk(factor=16)", 65536: "ntk(factor=32)"},
        "against": "dense",
        "at_least": 0.8,
    },
    "tolerances": {},
    "example": "ntk(factor=3)",
    "identity": "ntk(factor=1)",
}


@dataclass(frozen=True, kw_only=True)
class NtkAware(Positions):
    """Settings of NTK-aware scaling."""

    factor: float  # s, about 1.5 times text length over trained window; the post's alpha

    def __post_init__(self) -> None:
        check_factor(self.factor)

    def check(self, model: ModelInfo) -> None:
        """Refuse models without rotary positions."""
        check_rotary("ntk", model)
        check_several("ntk", model)

    def rope(self, rope: Rope) -> Rope:
        """The embedding with its base raised."""
        if self.factor == 1:
            return rope
        dims = rope.rotary_dims
        return rope.with_theta(rope.theta * self.factor ** (dims / (dims - 2)))
