"""What a method says about attention: which keys a query visits (`Visit`) and how distance is expressed (`Band`).

These are plain values. Methods build them, `longspan.ops.attend` executes them, and no method sees the execution.

Axis legend: B batch, T query tokens, S stored tokens, H query heads, K kv heads, D head dim, N indices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Every stored key up to the query."""


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Keys at positions `< sink_tokens` and keys less than `window_tokens` back, the query's own key included."""

    sink_tokens: int
    window_tokens: int

    def __post_init__(self) -> None:
        if self.sink_tokens < 0 or self.window_tokens < 1:
            raise ValueError(
                f"got sink_tokens={self.sink_tokens}, window_tokens={self.window_tokens}; "
                "sink_tokens must be 0 or more and window_tokens 1 or more"
            )


@dataclass(frozen=True, kw_only=True)
class Gather:
    """Chosen past tokens; the tokens of the running chunk are visited causally on top.

    Args:
        index: int64 `[B, heads, NQ, N]`, places in the store's past (`0 <= index < S - T`), ascending, distinct;
            -1 marks an unused slot. `heads` is H (each query head its own), K (each kv head) or 1 (all share).
        query_block_tokens: queries `[i * query_block_tokens, ...)` of the chunk use row i; None when NQ is 1.
        compact: renumber: the n chosen keys of a row take the positions 0..n-1 and the chunk follows at n
            (needs pre-rotary keys; only with NQ = 1 and heads = 1).
    """

    index: Tensor
    query_block_tokens: int | None = None
    compact: bool = False


@dataclass(frozen=True, kw_only=True)
class PerHead:
    """Different visits for different query heads: `(query heads within the slab, visit)`, every head exactly once."""

    parts: tuple[tuple[tuple[int, ...], Visit], ...]


Visit = Dense | Ranges | Gather | PerHead


@dataclass(frozen=True, kw_only=True)
class Band:
    """One region of (query, key) pairs with its own map of positions; the bands of a method partition the past.

    A query at position p sees, in this band, the keys at positions `low(p) <= k < high(p)`; attention there is
    rotated as if the query stood at `query(p)` and the key at `key(k)`. All maps take and return integer tensors
    element by element, and `low`, `high` must not decrease with p.
    """

    low: Callable[[Tensor], Tensor]
    high: Callable[[Tensor], Tensor]
    query: Callable[[Tensor], Tensor]
    key: Callable[[Tensor], Tensor]
