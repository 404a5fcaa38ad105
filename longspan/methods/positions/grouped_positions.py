"""Grouped positions: several neighbours share a position, so that a longer text fits the trained range.

Equation: position p becomes floor(p / G), with G = `group_size`, in a learned table of positions as well as for rotary
distances: floor(i / G) - floor(j / G) for a query at i and a key at j. The reach is G times the trained window.

Paper: LongEmbed: Extending Embedding Models for Long Context Retrieval (2024).

Differs from the paper: it takes G = ceil(text length / window) for each text; here it is given, and texts within the window
keep their positions only where these come from a learned table. With rotary positions the paper goes on to self_extend.

Fails when: the order of neighbours matters, which nothing tells apart within a group; self_extend keeps it for near tokens.

    with longspan.applied(encoder, "grouped_positions(group_size=4)"):
        states = encoder(**tokenizer(texts_of_2048_tokens, padding=True, return_tensors="pt")).last_hidden_state
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from longspan.methods.positions._scaling import check_positions
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
    "exact": "at group_size=1; with a learned table also within the trained window",
    "frees": "no",
    "needs": ["rotary positions, or an encoder's learned table"],
    "claim": {},
    "tolerances": {},
    "example": "grouped_positions(group_size=4)",
    "identity": "grouped_positions(group_size=1)",
}


@dataclass(frozen=True, kw_only=True)
class GroupedPositions(Positions):
    """Settings of grouped positions."""

    group_size: int  # G, text length over trained window, rounded up (as in the paper)

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ValueError(
                f"got group_size={self.group_size}; allowed is 1 (no grouping) or more: group_size=2 is for texts of "
                "twice the trained window"
            )

    def check(self, model: ModelInfo) -> None:
        """Refuse models without rotary positions or a table of positions."""
        check_positions("grouped_positions", model)

    def bands(self, layer: LayerInfo) -> tuple[Band, ...]:
        """All pairs, at the distance of their groups."""
        size = self.group_size
        if size == 1:
            return ()

        def group(positions: Tensor) -> Tensor:
            return positions // size

        return (Band(low=lambda p: p * 0, high=lambda p: p + 1, query=group, key=group),)

    def places(self, positions: Tensor, window_tokens: int) -> Tensor:
        """The number of each position's group."""
        return positions // self.group_size
