"""Dual Chunk Attention: three maps of positions, within a chunk, to the chunk before and to all others; no training.

Equation: the text is cut into chunks of s tokens. A key at j stands at j mod s. A query at i stands, for the
keys

    of its own chunk,         at i mod s                                          (intra-chunk)
    of the chunk before,      at s + i mod s  if i mod s < w,  else at c - 1      (successive-chunk)
    of all earlier chunks,    at c - 1                                            (inter-chunk)

with c the trained window and w <= c - s the local window, within which distances across the border of two
chunks are exact. Every distance lies between 0 and c - 1, however long the text. With `scale_logits` the
logits of a query at position i (from 1) are multiplied by (0.1 ln(i / c) + 1)^2 once i > c, YaRN's 1/t, so
that attention over more keys stays as sharp.

Paper: Qwen2.5-1M Technical Report (2025); Training-Free Long-Context Scaling of Large Language Models (2024).

Differs from the paper: the scale on the logits follows each query's own position, not the length of the whole
text, which a reader of chunks cannot know yet. Chunks are three attentions joined by log-sum-exp, whatever
chunks a text is read in.

Fails when: the order of tokens two chunks back or more matters: their distances say where in its chunk a
token stands, not in which chunk.

    model = longspan.load("reference", methods="dual_chunk()")
    model.read(text_of_8192_tokens).ask("Who keeps the lantern?")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from longspan.methods.positions._scaling import check_rotary, yarn_scale
from longspan.roles import LayerInfo, ModelInfo, Positions
from longspan.visit import Band

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "Qwen2.5-1M Technical Report",
    "year": 2025,
    "paper_id": 57,
    "family": "positions",
    "roles": ["Positions"],
    "phase": "both",
    "training": "none",
    "exact": "for texts up to chunk_tokens + local_tokens (by default the trained window)",
    "frees": "no",
    "needs": ["rotary positions"],
    "claim": {
        "text": "without training, at twice the trained window, the model still finds a hidden fact",
        "spec": "dual_chunk()",
        "task": "niah_single_1",
        "length_tokens": 8192,
        "against": "dense",
        "at_least": 0.8,
    },
    "tolerances": {},
    "example": "dual_chunk(chunk_tokens=64, local_tokens=16, window_tokens=96)",
    "identity": "dual_chunk(chunk_tokens=768, window_tokens=1024)",
}


@dataclass(frozen=True, kw_only=True)
class DualChunk(Positions):
    """Settings of Dual Chunk Attention."""

    chunk_tokens: int | None = None  # s; by default 3/4 of c, as its authors use (Qwen2.5-1M: 31/32 of c)
    local_tokens: int | None = None  # w; by default c - s, as in both papers
    window_tokens: int | None = None  # c; by default the trained window (for Qwen2.5-1M give 262144)
    scale_logits: bool = True  # YaRN's scale on the logits, as in Qwen2.5-1M; the first paper is without

    def __post_init__(self) -> None:
        for name in ("chunk_tokens", "local_tokens", "window_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(
                    f"got {name}={value}; allowed is 1 or more, or none for a share of the trained window"
                )

    def check(self, model: ModelInfo) -> None:
        """Refuse models without rotary positions, and chunks that do not fit the window."""
        check_rotary("dual_chunk", model)
        for layer in model.open_layers:
            if layer.rope is None:
                continue
            chunk, local, window = self.sizes(layer)
            if local < 1 or chunk + local > window:
                raise ValueError(
                    f"dual_chunk: got chunk_tokens={chunk} and local_tokens={local} in a window of {window} tokens; "
                    "allowed are 1 or more of each, and both together must fit into the window, so give less, such as "
                    f"chunk_tokens={max(1, 3 * window // 4)}"
                )

    def sizes(self, layer: LayerInfo) -> tuple[int, int, int]:
        """Tokens of a chunk, of the local window and of the whole window, for a layer."""
        assert layer.rope is not None, "layers without rotary positions are refused earlier"
        window = self.window_tokens or layer.rope.window_tokens
        chunk = self.chunk_tokens or max(1, 3 * window // 4)
        return chunk, self.local_tokens or window - chunk, window

    def logit_scale(self, positions: Tensor, layer: LayerInfo) -> Tensor | None:
        """(0.1 ln(max(1, (position + 1) / window)) + 1)^2 `[B, T]` float32; None without `scale_logits`."""
        if not self.scale_logits or layer.rope is None:
            return None
        return yarn_scale(positions, self.sizes(layer)[2])

    def bands(self, layer: LayerInfo) -> tuple[Band, ...]:
        """The query's own chunk, the one before, and all earlier ones."""
        chunk, local, window = self.sizes(layer)
        last = window - 1

        def key(positions: Tensor) -> Tensor:
            return positions % chunk

        def successive(positions: Tensor) -> Tensor:
            inside = positions % chunk
            return (inside + chunk).where(inside < local, last)

        return (
            Band(low=lambda p: p // chunk * chunk, high=lambda p: p + 1, query=key, key=key),
            Band(
                low=lambda p: (p // chunk - 1) * chunk,
                high=lambda p: p // chunk * chunk,
                query=successive,
                key=key,
            ),
            Band(
                low=lambda p: p * 0,
                high=lambda p: (p // chunk - 1) * chunk,
                query=lambda p: p * 0 + last,
                key=key,
            ),
        )
