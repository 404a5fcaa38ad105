"""What one attention call works on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longspan.ops.quantised_decode import QuantisedKV, dequantise
from longspan.ops.rotary import Rotary
from longspan.visit import Dense, Visit

__all__ = ["Problem", "Rotary", "take_heads"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """T queries against S stored keys, the last T of which are the queries' own tokens.

    Args:
        queries: `[B, H, T, D]`.
        keys, values: `[B, K, S, D]`, K divides H.
        query_positions: int64 `[B, T]`, -1 for padding (its output is zero).
        key_positions: int64 `[B, 1 or K, S]`, increasing along S within a row but for -1 slots, which nobody visits.
        num_new: T of the own tokens.
        scale: factor on the logits.
        visit: which keys; own tokens are visited causally (and, for `Ranges`, within the window).
        rotary: None when queries and keys are rotated already.
        bias: added to the logits, `[B, H or 1, S]`, or None.
        contiguous_from: p when key positions are p, p+1, ... in every row without holes and queries are their tail
            (lets the fast path slice by arithmetic); None otherwise.
        filled: every place of the store holds a key, so that the order of places alone says what is causal; follows
            from `contiguous_from`.
        quantised: the first of the stored keys and values where they are attended to as they are held; `keys` and `values`
            are then those behind them. Only from `quantised_past`.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    query_positions: Tensor
    key_positions: Tensor
    num_new: int
    scale: float
    visit: Visit = Dense()
    rotary: Rotary | None = None
    bias: Tensor | None = None
    contiguous_from: int | None = None
    filled: bool = False
    quantised: QuantisedKV | None = None

    def decoded(self) -> Problem:
        """The same problem over keys and values of one form."""
        if self.quantised is None:
            return self
        behind = (self.keys, self.values)
        keys, values = (
            torch.cat((made.to(x.dtype), x), dim=2)
            for made, x in zip(dequantise(self.quantised), behind, strict=True)
        )
        return replace(self, keys=keys, values=values, quantised=None)

    @property
    def all_real(self) -> bool:
        """No place holds padding, as far as is known."""
        return self.filled or self.contiguous_from is not None

    @property
    def num_tokens(self) -> int:
        return self.keys.shape[2] + (0 if self.quantised is None else self.quantised.num_tokens)

    @property
    def num_groups(self) -> int:
        return self.queries.shape[1] // self.keys.shape[1]

    def for_heads(self, heads: tuple[int, ...], visit: Visit) -> Problem:
        """The sub-problem of some query heads. Whole groups keep their grouping, heads of one kv head share it, others
        get a kv head each."""
        groups = self.num_groups
        whole = [heads[i] // groups for i in range(0, len(heads), groups)]
        if len(heads) % groups == 0 and list(heads) == [
            kv * groups + g for kv in whole for g in range(groups)
        ]:
            kv_heads = whole
        elif len({head // groups for head in heads}) == 1:
            kv_heads = [heads[0] // groups]
        else:
            kv_heads = [head // groups for head in heads]
        per_head_positions = self.key_positions.shape[1] > 1
        return replace(
            self,
            queries=take_heads(self.queries, list(heads)),
            keys=take_heads(self.keys, kv_heads),
            values=take_heads(self.values, kv_heads),
            key_positions=take_heads(self.key_positions, kv_heads)
            if per_head_positions
            else self.key_positions,
            bias=take_heads(self.bias, list(heads))
            if self.bias is not None and self.bias.shape[1] > 1
            else self.bias,
            visit=visit,
        )


def take_heads(x: Tensor, heads: list[int]) -> Tensor:
    """`x[:, heads]`, as a view where the heads are consecutive."""
    if heads == list(range(heads[0], heads[0] + len(heads))):
        return x[:, heads[0] : heads[0] + len(heads)]
    return x[:, heads]
