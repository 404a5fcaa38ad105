"""YaRN: interpolate slow frequencies, keep fast ones, blend between, and sharpen attention a little.

Equation: with r_i = L_trained * theta_i / (2 pi) the turns that frequency i makes within the trained window, and
g(r) rising from 0 at r = `beta_slow` to 1 at r = `beta_fast`,

    theta_i' = (1 - g(r_i)) * theta_i / s + g(r_i) * theta_i,    cos and sin times 0.1 ln(s) + 1

so frequencies that turn more than 32 times are left alone and those that turn less than once are interpolated by
s = `factor`.

Paper: YaRN: Efficient Context Window Extension of Large Language Models (2023).

Differs from the paper: the formula is transformers' own ("yarn"); like the authors' code, it rounds the ends of the
ramp to whole dims, and g is linear in the dim, not in r. The paper fine-tunes for 400 steps, which is up to you: give
the fine-tuned model the factor it was tuned with.

Fails when: the factor is far above the need (short texts get worse too), or the text is longer than factor times the
trained window.

    model = longspan.load("reference", methods="yarn(factor=2)")
    model.read(text_of_8192_tokens).ask("Who keeps the lantern?")
"""

from __future__ import annotations

from dataclasses import dataclass

from longspan.methods.positions._scaling import MAX_FACTOR, check_factor, check_rotary
from longspan.roles import ModelInfo, Positions, Rope

CARD = {
    "title": "YaRN: Efficient Context Window Extension of Large Language Models",
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
        "text": "without training, at twice the trained window, the model finds facts that it cannot find as it is",
        "spec": "yarn(factor=2)",
        "task": "niah_single_1",
        "length_tokens": 8192,
        "reach": {16384: "yarn(factor=4)", 32768: "yarn(factor=8)", 65536: "yarn(factor=16)"},
        "against": "dense",
        "margin": 0.4,
    },
    "tolerances": {},
    "example": "yarn(factor=4)",
    "identity": "yarn(factor=1)",
}


@dataclass(frozen=True, kw_only=True)
class Yarn(Positions):
    """Settings of YaRN."""

    factor: float  # s, text length over trained window; 16 and 32 in the paper
    beta_fast: float = 32.0  # turns in the window above which a frequency is kept; the paper's beta
    beta_slow: float = 1.0  # turns below which it is interpolated fully; the paper's alpha

    def __post_init__(self) -> None:
        check_factor(self.factor)
        if not 0 < self.beta_slow < self.beta_fast <= MAX_FACTOR:
            raise ValueError(
                f"got beta_slow={self.beta_slow:g} and beta_fast={self.beta_fast:g}; both count turns within the "
                f"trained window, and allowed is 0 < beta_slow < beta_fast (1 and 32 in the paper), up to {MAX_FACTOR:,.0f}"
            )

    def check(self, model: ModelInfo) -> None:
        """Refuse models without rotary positions."""
        check_rotary("yarn", model)

    def rope(self, rope: Rope) -> Rope:
        """transformers' own YaRN frequencies and scaling for this model."""
        if self.factor == 1:
            return rope
        return rope.with_parameters(
            rope_type="yarn", factor=self.factor, beta_fast=self.beta_fast, beta_slow=self.beta_slow
        )
