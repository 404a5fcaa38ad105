"""`ragged_decode` on the CPU: head by head, the past and the own tokens through PyTorch's fused attention."""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.ops.attend.partial import partial_attend
from longspan.ops.decode.naive import ragged_rows
from longspan.ops.decode.ragged import Ragged
from longspan.ops.merge_states import naive_merge_states


def cpu_ragged_decode(
    q_BHTD: Tensor, store: Ragged, *, scale: float, tree_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See `ragged_decode`."""
    B, H, T, _ = q_BHTD.shape
    K = store.lengths.shape[1]
    groups = H // K
    out = torch.zeros_like(q_BHTD, memory_format=torch.contiguous_format)
    lse = torch.full((B, H, T), -torch.inf)
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    for b in range(B):
        own_mask = causal if tree_mask is None else tree_mask[b % tree_mask.shape[0]]
        for k in range(K):
            keys, values, there = ragged_rows(store, b, k)
            heads = slice(k * groups, (k + 1) * groups)
            queries = q_BHTD[b : b + 1, heads]
            held = min(T, len(there))
            past = len(there) - held
            seen = own_mask[:, T - held :] & there[past:]
            parts = [
                _attend(queries, keys[rows], values[rows], mask, scale)
                for rows, mask in ((slice(0, past), there[:past]), (slice(past, None), seen))
                if mask.shape[-1]
            ]
            if parts:
                out[b : b + 1, heads], lse[b : b + 1, heads] = naive_merge_states(parts)
    return out, lse


def _attend(
    queries: Tensor, keys_LD: Tensor, values_LD: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    keys, values = keys_LD[None, None], values_LD[None, None]
    if bool(mask.all()):
        return partial_attend(queries, keys, values, scale=scale)
    # a page that is not there may hold anything, and 0 * NaN is NaN
    unseen = ~(mask if mask.dim() == 1 else mask.any(dim=0))[:, None]
    keys, values = keys.masked_fill(unseen, 0.0), values.masked_fill(unseen, 0.0)
    return partial_attend(queries, keys, values, scale=scale, mask=mask.expand(queries.shape[2], -1))
