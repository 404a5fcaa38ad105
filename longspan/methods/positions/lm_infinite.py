"""LM-Infinite: a Lambda-shaped mask (first tokens and a window) and a cap on distance; no training.

Equation: the query at position i visits the keys j < n_global and i - j < n_local, and each pair is rotated at the
distance min(i - j, L), with L the trained window. So the model never sees a distance, nor a number of keys, that it
was not trained on, and time and memory stay linear and constant in the text's length.

Paper: LM-Infinite: Simple On-the-Fly Length Generalization for Large Language Models (2023).

Differs from the paper: the optional step for retrieval, which lets deep layers also attend to a few top keys of the
middle, is not here.

Fails when: the answer lies in the middle: beyond the window, and not among the first tokens, nothing is visited.
With `evict` it is freed as well; `evict=false` keeps it stored, where other methods can still find it.

    model = longspan.load("reference", methods="lm_infinite()")
    model.read(text_of_32768_tokens).ask("How does the last chapter end?")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from longspan.methods.positions._scaling import check_rotary
from longspan.roles import KeyView, LayerInfo, ModelInfo, Positions, Selection, Step, Storage
from longspan.visit import Band, Ranges

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "LM-Infinite: Simple On-the-Fly Length Generalization for Large Language Models",
    "year": 2023,
    "paper_id": 162,
    "family": "positions",
    "roles": ["Positions", "Selection", "Storage"],
    "phase": "both",
    "training": "none",
    "exact": "for texts up to window_tokens",
    "frees": "frees",
    "needs": ["rotary positions"],
    "claim": {
        "text": "at twice the trained window the model still answers from its window, where as it is it fails",
        "spec": "lm_infinite()",
        "task": "niah_single_1",
        "length_tokens": 8192,
        "against": "dense",
        "margin": 0.25,
    },
    "tolerances": {},
    "example": "lm_infinite(global_tokens=4, window_tokens=64)",
    "identity": "lm_infinite(window_tokens=1024, max_distance_tokens=1024)",
}

SPARE_TOKENS = 256
"""While tokens come one by one, the window is cut only when this many are over, and half of them stay: a cut copies
the layer, and rejected guesses of assisted decoding must not leave the window short."""


@dataclass(frozen=True, kw_only=True)
class LmInfinite(Positions, Selection, Storage):
    """Settings of LM-Infinite."""

    global_tokens: int = 10  # n_global, always visible; the authors' default (10 to 100 do alike)
    window_tokens: int | None = None  # n_local; by default the trained window, as in the paper
    max_distance_tokens: int | None = None  # L; by default the trained window, as in the paper
    evict: bool = True  # free what is no longer visited, as the paper does; false keeps it stored

    def __post_init__(self) -> None:
        if self.global_tokens < 0:
            raise ValueError(
                f"got global_tokens={self.global_tokens}; allowed is 0 or more (the paper: 10 to 100)"
            )
        for name in ("window_tokens", "max_distance_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"got {name}={value}; allowed is 1 or more, or none for the trained window")

    def check(self, model: ModelInfo) -> None:
        """Refuse models without rotary positions."""
        check_rotary("lm_infinite", model)

    def claims(self) -> frozenset[str]:
        """Positions and Selection; Storage only with `evict`."""
        return super().claims() if self.evict else super().claims() - {"Storage"}

    def bands(self, layer: LayerInfo) -> tuple[Band, ...]:
        """Pairs nearer than the cap as they are, all others at the cap."""
        cap = self.max_distance_tokens or _trained_tokens(layer)

        def same(positions: Tensor) -> Tensor:
            return positions

        near = Band(low=lambda p: p - cap + 1, high=lambda p: p + 1, query=same, key=same)
        far = Band(
            low=lambda p: p * 0, high=lambda p: p - cap + 1, query=lambda p: p * 0 + cap, key=lambda k: k * 0
        )
        return near, far

    def visit(self, step: Step) -> Ranges:
        """The first tokens and the window."""
        return Ranges(sink_tokens=self.global_tokens, window_tokens=self._window(step.layer))

    def compact(
        self,
        layer: LayerInfo,
        store: KeyView,
        state: dict[str, Any],
        *,
        event: Literal["chunk", "read", "token"],
    ) -> Tensor | None:
        """Places of the first tokens and the window `[B, 1, n]`; after reading, exactly that many tokens."""
        window, spare = self._window(layer), 0
        if event == "token":
            spare = SPARE_TOKENS // 2
            if store.num_tokens < self.global_tokens + window + SPARE_TOKENS:
                return None
        positions = store.positions
        last = positions.amax(dim=-1, keepdim=True)
        wanted = (positions >= 0) & ((positions < self.global_tokens) | (positions > last - window - spare))
        count = int(wanted.sum(-1).max())
        if count == store.num_tokens:
            return None
        places = torch.arange(store.num_tokens, device=positions.device).expand_as(positions)
        return places.where(wanted, -1).sort(dim=-1).values[..., -count:]

    def _window(self, layer: LayerInfo) -> int:
        return self.window_tokens or _trained_tokens(layer)


def _trained_tokens(layer: LayerInfo) -> int:
    assert layer.rope is not None, "layers without rotary positions are refused earlier"
    return layer.rope.window_tokens
