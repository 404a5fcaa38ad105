"""What a method says about attention: which keys a query visits (`Visit`) and how distance is expressed (`Band`).

These are plain values. Methods build them, `longspan.ops.attend` executes them, and no method sees the execution.

Axis legend: B batch, T query tokens, S stored tokens, H query heads, K kv heads, D head dim, N indices, NQ and NC rows
of queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
class BlockTable:
    """Chosen key blocks and single keys, per block of queries; of the whole store, the running chunk included.

    T queries stand at the places S-T .. S-1 of S stored keys. Row i serves the queries `[i * block_tokens, (i + 1) *
    block_tokens)` of the T; key block j holds the places `[j * block_tokens, (j + 1) * block_tokens)` of the S. A query at
    place p visits key s, `first_place <= s <= p`, when at least one of these holds (and once, if several do):

    - block `s // block_tokens` is among the used entries of its row,
    - s is in its row of columns,
    - `s < sink_tokens`,
    - `p - s < window_tokens`.

    Args:
        index: int32 `[B, h, NQ, N]`, NQ = ceil(T / block_tokens), h in {1 (all heads share), K (each kv head), H}:
            block numbers, distinct within a row, in any order, the first `counts` of each row used; entries outside
            `[0, ceil(S / block_tokens))` visit nothing.
        counts: int32 `[B, h, NQ]`, 0 to N.
        block_tokens: a power of two from 16 to 128.
        columns: int32 `[B, h, NC, C]` places of single keys, or None; distinct within a row; entries outside `[0, S)` visit
            nothing. Row c serves the queries `[c * column_query_tokens, (c + 1) * column_query_tokens)`,
            NC = ceil(T / column_query_tokens).
        column_query_tokens: a multiple of block_tokens; None without columns.
        sink_tokens: first places of the store that every query visits.
        window_tokens: places before each query that it visits, its own included; 0 for none.
        first_place: int32 `[B]`, places before it hold padding and nobody visits them; None for 0. A query at such a place
            visits nothing.
    """

    index: Tensor
    counts: Tensor
    block_tokens: int = 128
    columns: Tensor | None = None
    column_query_tokens: int | None = None
    sink_tokens: int = 0
    window_tokens: int = 0
    first_place: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class PerHead:
    """Different visits for different query heads: `(query heads within the slab, visit)`, every head exactly once."""

    parts: tuple[tuple[tuple[int, ...], Visit], ...]


Visit = Dense | Ranges | Gather | BlockTable | PerHead


def visit_of_heads(visit: Visit, heads: Sequence[int], num_heads: int) -> Visit:
    """A visit of `num_heads` query heads, for some of them. `visit` is not a `PerHead`."""
    assert not isinstance(visit, PerHead), "a part of PerHead is never a PerHead itself"
    if list(heads) == list(range(num_heads)):  # indexing by a list would wait for a GPU
        return visit

    def take(x: Tensor) -> Tensor:
        groups = num_heads // x.shape[1]
        return x if x.shape[1] == 1 else x[:, [head // groups for head in heads]]

    if isinstance(visit, Gather):
        return replace(visit, index=take(visit.index))
    if isinstance(visit, BlockTable):
        columns = None if visit.columns is None else take(visit.columns)
        return replace(visit, index=take(visit.index), counts=take(visit.counts), columns=columns)
    return visit


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
