"""Stored keys with their logits, for storage methods that score keys outside an attention step."""

from __future__ import annotations

from torch import Tensor

from longspan.engine.store import Slab
from longspan.ops.attend import Rotary, naive_logits


class ScoredSlab:
    """A slab, read-only, with the positions in force; see `longspan.roles.ScoredKeyView`. `raw`: only of the tokens that are held
    as they came."""

    def __init__(self, slab: Slab, rotary: Rotary | None, scale: float, *, raw: bool = False) -> None:
        self._slab, self._rotary, self._scale = slab, rotary, scale
        self._start = slab.coded_tokens if raw else 0
        self.heads = slab.heads

    @property
    def keys(self) -> Tensor:
        return self._slab.raw[0] if self._start else self._slab.keys

    @property
    def values(self) -> Tensor:
        return self._slab.raw[1] if self._start else self._slab.values

    @property
    def positions(self) -> Tensor:
        return self._slab.positions[:, :, self._start :]

    @property
    def num_tokens(self) -> int:
        return self._slab.num_tokens - self._start

    @property
    def filled(self) -> bool:
        return self._slab.filled

    def logits(self, queries: Tensor, query_positions: Tensor, start: int, stop: int) -> Tensor:
        """Scaled logits `[B, h, t, stop-start]` of queries `[B, h, t, D]` at positions `[B, t]`, without any mask."""
        return naive_logits(
            queries,
            self.keys[:, :, start:stop],
            query_positions,
            self.positions[:, :, start:stop],
            self._rotary,
            self._scale,
        )
