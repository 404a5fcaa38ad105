"""Stored keys with their logits, for storage methods that score keys outside an attention step."""

from __future__ import annotations

from torch import Tensor

from longspan.engine.store import Slab
from longspan.ops.attend import Rotary, naive_logits


class ScoredSlab:
    """A slab, read-only, with the positions in force; see `longspan.roles.ScoredKeyView`."""

    def __init__(self, slab: Slab, rotary: Rotary | None, scale: float) -> None:
        self._slab, self._rotary, self._scale = slab, rotary, scale
        self.heads = slab.heads

    @property
    def keys(self) -> Tensor:
        return self._slab.keys

    @property
    def values(self) -> Tensor:
        return self._slab.values

    @property
    def positions(self) -> Tensor:
        return self._slab.positions

    @property
    def num_tokens(self) -> int:
        return self._slab.num_tokens

    @property
    def filled(self) -> bool:
        return self._slab.filled

    def logits(self, queries: Tensor, query_positions: Tensor, start: int, stop: int) -> Tensor:
        """Scaled logits `[B, h, t, stop-start]` of queries `[B, h, t, D]` at positions `[B, t]`, without any mask."""
        slab = self._slab
        return naive_logits(
            queries,
            slab.keys[:, :, start:stop],
            query_positions,
            slab.positions[:, :, start:stop],
            self._rotary,
            self._scale,
        )
