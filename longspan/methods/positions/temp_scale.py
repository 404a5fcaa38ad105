"""Temperature that falls as a text grows: attention over more keys than in training stays as sharp as it was.

Equation: the logits of the query at position i (from 1) are multiplied, where i is beyond the trained window
L, by

    ln(i) / ln(L)                  form=logn: keeps the entropy of attention over i keys about that over L
    (0.1 ln(i / L) + 1)^2          form=yarn: YaRN's temperature, for s = i / L
    1 / t                          form=constant: one temperature t = `temperature`, below 1

Within the window they stay as they are, and frequencies stay everywhere; entropy_abf and yarn change both.

Paper: Length-Induced Embedding Collapse in Transformer-based Models (2024).

Differs from the paper: it divides all logits of an embedding model by one temperature, whatever the length
(here form=constant, beyond the window). For decoders, whose queries see from one to all keys, the factor
grows with each query's position; the two forms that grow are those of "Attention Scaling from the Perspective
of Entropy Invariance" (Su, 2021) and of YaRN (2023).

Fails when: it is the angles of far positions, and not the number of keys, that the model fails at, as it does
well beyond its window: then raise the base or map positions.

    model = longspan.load("reference", methods="temp_scale()")
    model.read(text_of_5632_tokens).ask("Who keeps the lantern?")
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from longspan.methods.positions._scaling import check_rotary, check_window, yarn_scale
from longspan.roles import LayerInfo, ModelInfo, Positions

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "Length-Induced Embedding Collapse in Transformer-based Models",
    "year": 2024,
    "paper_id": 139,
    "family": "positions",
    "roles": ["Positions"],
    "phase": "both",
    "training": "none",
    "exact": "within the trained window",
    "frees": "no",
    "needs": ["rotary positions"],
    "claim": {
        "text": "a little past the trained window, where the model begins to fail, sharper attention finds a hidden "
        "fact more often",
        "spec": "temp_scale()",
        "task": "niah_single_1",
        "length_tokens": 5632,
        "against": "dense",
        "margin": 0.1,
    },
    "tolerances": {},
    "example": "temp_scale(window_tokens=64)",
    "identity": "temp_scale(window_tokens=1024)",
}


MIN_TEMPERATURE = 1e-3  # logits divided by less do not fit every float


@dataclass(frozen=True, kw_only=True)
class TempScale(Positions):
    """Settings of the temperature."""

    form: Literal["logn", "yarn", "constant"] = "logn"  # ours, for decoders; the paper's is constant
    temperature: float | None = None  # t of form=constant; the paper tunes it below 1
    window_tokens: int | None = None  # L, within which nothing changes; by default the trained window

    def __post_init__(self) -> None:
        if (self.temperature is not None) != (self.form == "constant"):
            raise ValueError(
                f"got form={self.form} and temperature={self.temperature}; a temperature belongs to form=constant "
                "alone, such as temp_scale(form=constant, temperature=0.9)"
            )
        if self.temperature is not None and not MIN_TEMPERATURE <= self.temperature < math.inf:
            raise ValueError(
                f"got temperature={self.temperature:g}; allowed is {MIN_TEMPERATURE:g} or more, such as 0.9 (1: no change)"
            )
        check_window(self.window_tokens, least=2)

    def check(self, model: ModelInfo) -> None:
        """Refuse models without rotary positions, whose trained window is not known by layer."""
        check_rotary("temp_scale", model)

    def logit_scale(self, positions: Tensor, layer: LayerInfo) -> Tensor | None:
        """Factor on the logits of the queries at `positions` `[B, T]`, float32, 1 within the window."""
        assert layer.rope is not None, "layers without rotary positions are refused earlier"
        window = self.window_tokens or layer.rope.window_tokens
        if self.form == "yarn":
            return yarn_scale(positions, window)
        times = ((positions + 1).float() / window).clamp(min=1.0)
        if self.temperature is not None:
            return 1.0 + (1.0 / self.temperature - 1.0) * (times > 1)
        return 1.0 + times.log() / math.log(window)
