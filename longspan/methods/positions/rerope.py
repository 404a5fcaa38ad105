"""ReRoPE: exact distances up to a window, one constant distance beyond it, or one that grows slowly; no training.

Equation: a query at position i and a key at j are rotated at the distance

    i - j                                          when i - j < w
    w                                              otherwise (ReRoPE)
    floor((i + (k - 1) w) / k) - floor(j / k)      otherwise (Leaky ReRoPE: w + (i - j - w) / k in whole positions)

with window w and k = `leak_factor`. ReRoPE never sees a distance above w, however long the text; Leaky ReRoPE
stays within the trained window L for texts of up to (L - w) * k + w tokens. With `scale_logits` the query at
position i (from 1) has its logits multiplied by max(1, log(i) / log(L)), which keeps attention as sharp over
more keys.

Paper: Transformer upgrade road 12: ReRoPE with infinite extrapolation (Su Jianlin, 2023; a blog and its code,
no paper).

Differs from the paper: Leaky ReRoPE's distances are whole numbers, where the author's grow by 1/k a token, so
the order of far tokens within k is lost (position maps are integers here); with w a multiple of k they are
Self-Extend's. The scale on the logits is from the author's code, not from the equation.

Fails when: the order of far tokens matters: beyond w all distances are equal, so that what is far is a bag of
tokens.

    model = longspan.load("reference", methods="rerope(window_tokens=1024)")
    model.read(text_of_8192_tokens).ask("Who keeps the lantern?")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from longspan.methods.positions._scaling import check_rotary, log_scale
from longspan.roles import LayerInfo, ModelInfo, Positions
from longspan.visit import Band

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "Rectified Rotary Position Embeddings",
    "year": 2023,
    "paper_id": None,
    "family": "positions",
    "roles": ["Positions"],
    "phase": "both",
    "training": "none",
    "exact": "for texts up to window_tokens",
    "frees": "no",
    "needs": ["rotary positions"],
    "claim": {
        "text": "without training, at twice the trained window, the model still finds a hidden fact",
        "spec": "rerope()",
        "task": "niah_single_1",
        "length_tokens": 8192,
        "against": "dense",
        "at_least": 0.8,
    },
    "tolerances": {},
    "example": "rerope(window_tokens=64)",
    "identity": "rerope(window_tokens=64, leak_factor=1, scale_logits=false)",
}


@dataclass(frozen=True, kw_only=True)
class ReRope(Positions):
    """Settings of ReRoPE and Leaky ReRoPE."""

    window_tokens: int | None = None  # w; by default a quarter of the trained window, 1,024 for Llama-2
    leak_factor: int | None = None  # k; none for ReRoPE, 16 in the author's code of Leaky ReRoPE
    scale_logits: bool = True  # sharpen logits beyond the trained window, as the author's code does

    def __post_init__(self) -> None:
        if self.window_tokens is not None and self.window_tokens < 1:
            raise ValueError(
                f"got window_tokens={self.window_tokens}; allowed is 1 or more, or none for a quarter of the trained window"
            )
        if self.leak_factor is not None and self.leak_factor < 1:
            raise ValueError(
                f"got leak_factor={self.leak_factor}; allowed is 1 (no change) or more, or none for ReRoPE"
            )

    def check(self, model: ModelInfo) -> None:
        """Refuse models without rotary positions, and windows that reach out of what was trained."""
        check_rotary("rerope", model)
        for layer in model.open_layers:
            if layer.rope is not None and self._window(layer) >= layer.rope.window_tokens:
                trained = layer.rope.window_tokens
                raise ValueError(
                    f"rerope: got window_tokens={self.window_tokens}, but {model.name} was trained on {trained}, and "
                    f"distances go up to window_tokens; give less, such as window_tokens={max(1, trained // 4)}"
                )

    def logit_scale(self, positions: Tensor, layer: LayerInfo) -> Tensor | None:
        """max(1, log(position + 1) / log(trained window)) `[B, T]` float32; None without `scale_logits`."""
        if not self.scale_logits or layer.rope is None:
            return None
        return log_scale(positions, layer.rope.window_tokens)

    def bands(self, layer: LayerInfo) -> tuple[Band, ...]:
        """Pairs within the window as they are; all others at w, or at a distance that grows by 1/k."""
        window, factor = self._window(layer), self.leak_factor

        def same(positions: Tensor) -> Tensor:
            return positions

        near = Band(low=lambda p: p - window + 1, high=lambda p: p + 1, query=same, key=same)
        if factor is None:
            far = Band(
                low=lambda p: p * 0,
                high=lambda p: p - window + 1,
                query=lambda p: p * 0 + window,
                key=lambda k: k * 0,
            )
        else:
            far = Band(
                low=lambda p: p * 0,
                high=lambda p: p - window + 1,
                query=lambda p: (p + (factor - 1) * window) // factor,
                key=lambda k: k // factor,
            )
        return near, far

    def _window(self, layer: LayerInfo) -> int:
        assert layer.rope is not None, "layers without rotary positions are refused earlier"
        return self.window_tokens or max(1, layer.rope.window_tokens // 4)
