"""Recurrent positions: the trained positions are used over and over, so that a text of any length fits them.

Equation: position p becomes p mod W, with W = `window_tokens`, in a learned table of positions as well as for rotary
distances: (i mod W) - (j mod W) for a query at i and a key at j. All tokens attend to all others as before.

Paper: LongEmbed: Extending Embedding Models for Long Context Retrieval (2024).

Differs from the paper: it does so with learned tables only; with rotary positions distances may then become negative,
which a causal model has never seen.

Fails when: distance matters beyond W: tokens W apart cannot be told apart.

    with longspan.applied(encoder, "recurrent_positions()"):
        states = encoder(**tokenizer(texts_of_2048_tokens, padding=True, return_tensors="pt")).last_hidden_state
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from longspan.methods.positions._scaling import check_positions, check_window
from longspan.roles import LayerInfo, ModelInfo, Positions
from longspan.visit import Band

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "LongEmbed: Extending Embedding Models for Long Context Retrieval",
    "year": 2024,
    "paper_id": 48,
    "family": "positions",
    "roles": ["Positions"],
    "phase": "both",
    "training": "none",
    "exact": "for texts up to window_tokens; with a learned table within the trained window",
    "frees": "no",
    "needs": ["rotary positions, or an encoder's learned table"],
    "claim": {},
    "tolerances": {},
    "example": "recurrent_positions(window_tokens=64)",
    "identity": "recurrent_positions(window_tokens=1024)",
}


@dataclass(frozen=True, kw_only=True)
class RecurrentPositions(Positions):
    """Settings of recurrent positions."""

    window_tokens: int | None = None  # W; by default the trained window, as in the paper

    def __post_init__(self) -> None:
        check_window(self.window_tokens)

    def check(self, model: ModelInfo) -> None:
        """Refuse models without positions to change, and more positions than a learned table has."""
        check_positions("recurrent_positions", model)
        if model.learned_positions and (self.window_tokens or 0) > model.window_tokens:
            raise ValueError(
                f"recurrent_positions: got window_tokens={self.window_tokens}, but {model.name} has a table of "
                f"{model.window_tokens} positions; give that many at most, or none for all of them"
            )

    def bands(self, layer: LayerInfo) -> tuple[Band, ...]:
        """All pairs, at the distance of their positions in the window."""
        assert layer.rope is not None, "layers without rotary positions are refused earlier"
        window = self.window_tokens or layer.rope.window_tokens

        def inside(positions: Tensor) -> Tensor:
            return positions % window

        return (Band(low=lambda p: p * 0, high=lambda p: p + 1, query=inside, key=inside),)

    def places(self, positions: Tensor, window_tokens: int) -> Tensor:
        """Positions counted anew in every window."""
        return positions % (self.window_tokens or window_tokens)
