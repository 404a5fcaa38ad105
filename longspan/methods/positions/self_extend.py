"""Self-Extend: exact positions for near tokens, positions floored to groups for far ones; no training.

Equation: a query at position i and a key at j are rotated at the distance

    i - j                                         when i - j < w          (neighbours)
    floor(i / G) + w - floor(w / G) - floor(j / G)    otherwise           (grouped)

with group size G and neighbour window w, so distances grow G times slower beyond w. All distances of a text stay
within the trained window L as long as it has no more than (L - w) * G + w tokens: that is the reach, 13,312 tokens
for L = 4,096, w = 1,024, G = 4. A longer text is read all the same, but its farthest pairs leave the trained range,
unless `max_distance_tokens` caps the distance of all pairs.

Beside a method that keeps the first tokens and a window, a text may have any length: what the window holds stays
within the reach, and the first tokens, which fall ever farther behind, stay at the cap.

Paper: LLM Maybe LongLM: Self-Extend LLM Context Window Without Tuning (2024).

Differs from the paper: nothing, without the cap, which is LM-Infinite's; neighbours and groups are attentions joined by
log-sum-exp, never a T x T matrix.

Fails when: the order of far tokens within a group matters, or the text is longer than the reach: a cap alone keeps
distances trained, not the number of keys.

    model = longspan.load("reference", methods="self_extend(group_size=4, window_tokens=1024)")
    model.read(text_of_12288_tokens).ask("Who keeps the lantern?")

    window = "duo_attention(retrieval_fraction=0, sink_tokens=10, recent_tokens=8192)"  # of all heads: what is kept
    model = model.with_methods(f"self_extend(max_distance_tokens=4095) + {window}")
    model.read(stream_of_a_million_tokens).ask("What happened last?")
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
    "title": "LLM Maybe LongLM: Self-Extend LLM Context Window Without Tuning",
    "year": 2024,
    "paper_id": None,
    "family": "positions",
    "roles": ["Positions"],
    "phase": "both",
    "training": "none",
    "exact": "for texts up to window_tokens, and at group_size=1",
    "frees": "no",
    "needs": ["rotary positions"],
    "claim": {
        "text": "without training, at twice the trained window, the model still finds a hidden fact",
        "spec": "self_extend(group_size=4, window_tokens=1024)",
        "task": "niah_single_1",
        "length_tokens": 8192,
        "reach": {
            16384: "self_extend(group_size=8, window_tokens=1024)",
            32768: "self_extend(group_size=16, window_tokens=1024)",
            65536: "self_extend(group_size=32, window_tokens=1024)",
        },
        "against": "dense",
        "at_least": 0.8,
    },
    "tolerances": {},
    "example": "self_extend(group_size=4, window_tokens=64)",
    "identity": "self_extend(group_size=1, window_tokens=64)",
}


@dataclass(frozen=True, kw_only=True)
class SelfExtend(Positions):
    """Settings of Self-Extend."""

    group_size: int = 4  # G; the authors' example for Llama-2 (2 to 64 are reasonable)
    window_tokens: int = 1024  # w; the authors' example for Llama-2 (512 to 1,536 are feasible)
    max_distance_tokens: int | None = None  # such as L - 1; none for no cap, as in the paper

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ValueError(f"got group_size={self.group_size}; allowed is 1 (no grouping) or more")
        if self.window_tokens < 1:
            raise ValueError(f"got window_tokens={self.window_tokens}; allowed is 1 or more")
        if self.max_distance_tokens is not None and self.max_distance_tokens <= self.window_tokens:
            raise ValueError(
                f"got max_distance_tokens={self.max_distance_tokens}; allowed is more than window_tokens="
                f"{self.window_tokens}, or none for no cap"
            )

    def check(self, model: ModelInfo) -> None:
        """Refuse models without rotary positions, and neighbour windows that leave no room for groups."""
        check_rotary("self_extend", model)
        for layer in model.open_layers:
            if layer.rope is not None and self.window_tokens >= layer.rope.window_tokens:
                raise ValueError(
                    f"self_extend: got window_tokens={self.window_tokens}, but {model.name} was trained on "
                    f"{layer.rope.window_tokens}; the reach is (trained - window_tokens) * group_size + window_tokens, "
                    f"so give less, such as window_tokens={max(1, layer.rope.window_tokens // 4)}"
                )

    def bands(self, layer: LayerInfo) -> tuple[Band, ...]:
        """Neighbours as they are, the rest in groups, as far as the cap."""
        group, window, cap = self.group_size, self.window_tokens, self.max_distance_tokens
        shift = window - window // group

        def reached(positions: Tensor) -> Tensor:
            """The first key whose distance the cap leaves alone, or less than 0."""
            return positions * 0 if cap is None else (positions // group + shift - cap) * group

        def same(positions: Tensor) -> Tensor:
            return positions

        neighbours = Band(low=lambda p: p - window + 1, high=lambda p: p + 1, query=same, key=same)
        grouped = Band(
            low=reached,
            high=lambda p: p - window + 1,
            query=lambda p: p // group + shift,
            key=lambda k: k // group,
        )
        if cap is None:
            return neighbours, grouped
        capped = Band(low=lambda p: p * 0, high=reached, query=lambda p: p * 0 + cap, key=lambda k: k * 0)
        return neighbours, grouped, capped
