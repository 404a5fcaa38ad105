"""STRING: small distances, which training saw often, in place of the large ones, which it hardly saw; no training.

Equation: a query at position i and a key at j are rotated at the distance

    i - j                when i - j < S
    i - j - S + W        otherwise

with shift S and local window W, W much smaller than S. Distances beyond S start again at W, so that the S - W
largest of the trained window L never occur in a text of L tokens, and far keys still come in their order. A
text may have up to L + S - W tokens before a distance leaves the trained window.

Paper: Why Does the Effective Context Length of LLMs Fall Short? (2024).

Differs from the paper: a pair at the distance S is counted once; the authors' code counts it in both parts.
That code also multiplies cos and sin by 0.1 ln 2 + 1, which is no part of the equation and is not here.

Fails when: two places at the distances d and d + S - W from a query must be told apart, or the text is longer
than L + S - W.

    model = longspan.load("reference", methods="string()")
    model.read(text_of_5120_tokens).ask("Who keeps the lantern?")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from longspan.methods.positions._scaling import check_rotary
from longspan.roles import LayerInfo, ModelInfo, Positions
from longspan.visit import Band

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "Why Does the Effective Context Length of LLMs Fall Short?",
    "year": 2024,
    "paper_id": None,
    "family": "positions",
    "roles": ["Positions"],
    "phase": "both",
    "training": "none",
    "exact": "for texts up to shift_tokens",
    "frees": "no",
    "needs": ["rotary positions"],
    "claim": {
        "text": "at the end of the trained window, the model finds a value among many alike more often than as it is",
        "spec": "string()",
        "task": "niah_multikey_3",
        "length_tokens": 4096,
        "against": "dense",
        "margin": 0.1,
    },
    "tolerances": {},
    "example": "string(shift_tokens=100, local_tokens=16)",
    "identity": "string(shift_tokens=64, local_tokens=64)",
}


@dataclass(frozen=True, kw_only=True)
class String(Positions):
    """Settings of STRING."""

    shift_tokens: int | None = None  # S; by default a third of the trained window, the authors' 0.33 L
    local_tokens: int = 128  # W; the authors' default (they suggest 128, 256 or 512)

    def __post_init__(self) -> None:
        if self.shift_tokens is not None and self.shift_tokens < 1:
            raise ValueError(
                f"got shift_tokens={self.shift_tokens}; allowed is 1 or more, or none for a third of the trained window"
            )
        if self.local_tokens < 0:
            raise ValueError(f"got local_tokens={self.local_tokens}; allowed is 0 or more (the authors: 128)")

    def check(self, model: ModelInfo) -> None:
        """Refuse models without rotary positions, and shifts that lie outside the local and the trained window."""
        check_rotary("string", model)
        for layer in model.open_layers:
            if layer.rope is None:
                continue
            shift, trained = self._shift(layer), layer.rope.window_tokens
            if not self.local_tokens <= shift <= trained:
                raise ValueError(
                    f"string: got shift_tokens={shift} and local_tokens={self.local_tokens}, but {model.name} was "
                    f"trained on {trained}, and allowed is local_tokens <= shift_tokens <= {trained}; give for example "
                    f"shift_tokens={trained // 3}, local_tokens={min(128, trained // 12)}"
                )

    def bands(self, layer: LayerInfo) -> tuple[Band, ...]:
        """Pairs nearer than the shift as they are, the others nearer by the shift less the local window."""
        shift = self._shift(layer)
        back = shift - self.local_tokens

        def same(positions: Tensor) -> Tensor:
            return positions

        near = Band(low=lambda p: p - shift + 1, high=lambda p: p + 1, query=same, key=same)
        far = Band(low=lambda p: p * 0, high=lambda p: p - shift + 1, query=lambda p: p - back, key=same)
        return near, far

    def _shift(self, layer: LayerInfo) -> int:
        assert layer.rope is not None, "layers without rotary positions are refused earlier"
        return self.shift_tokens or max(1, layer.rope.window_tokens // 3)
