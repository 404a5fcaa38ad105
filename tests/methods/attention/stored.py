"""Stored keys for tests of what a query visits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Store:
    """Stored keys without an engine."""

    keys: Tensor
    positions: Tensor

    @property
    def values(self) -> Tensor:
        return self.keys

    @property
    def heads(self) -> tuple[int, ...]:
        return tuple(range(self.keys.shape[1]))

    @property
    def num_tokens(self) -> int:
        return self.keys.shape[2]

    @property
    def filled(self) -> bool:
        return bool((self.positions >= 0).all())
