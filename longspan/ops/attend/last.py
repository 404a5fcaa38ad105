"""The attention of the last query alone, over the keys it visits: where a model looked when it produced a token."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from longspan.ops.attend.naive import naive_mask
from longspan.ops.attend.problem import Problem
from longspan.ops.block_sparse.table import table_row
from longspan.ops.rotary_attention.naive import naive_logits
from longspan.visit import BlockTable, Dense, Gather, PerHead


def last_attention(p: Problem) -> tuple[Tensor, Tensor]:
    """Attention weights `[B, H, n]`, float32, of each head's last query, and the places in the store, -1 where unused.

    Keys that a `Gather` leaves out are not touched, so this costs what the step's visit costs.
    """
    if isinstance(p.visit, PerHead):
        return _joined(p, p.visit)
    last, places = _last_query(p)
    logits = naive_logits(
        last.queries, last.keys, last.query_positions, last.key_positions, last.rotary, last.scale
    )
    if last.bias is not None:
        logits = logits + last.bias[:, :, None].float()
    weights = torch.softmax(logits.masked_fill(~naive_mask(last), -torch.inf), dim=-1).nan_to_num(0.0)
    H = p.queries.shape[1]
    return weights[:, :, 0], places.repeat_interleave(H // places.shape[1], dim=1)


def _last_query(p: Problem) -> tuple[Problem, Tensor]:
    """A dense (or ranges) problem of the last query, and the places `[B, h, n]` of its keys in the store of `p`.

    Weights need no values, so these are left as they stand and fit only where nothing was gathered.
    """
    B, K, S, _ = p.keys.shape
    last = replace(p, queries=p.queries[:, :, -1:], query_positions=p.query_positions[:, -1:], num_new=1)
    if isinstance(p.visit, BlockTable):
        last = replace(last, visit=table_row(p.visit, p.visit.index.shape[2] - 1))
    if not isinstance(p.visit, Gather):
        return last, torch.arange(S, device=p.keys.device).expand(B, 1, S)
    row = p.visit.index[:, :, -1]
    own = torch.arange(S - p.num_new, S, device=row.device).expand(*row.shape[:2], -1)
    places = torch.cat([row, own], dim=-1)
    heads = max(K, places.shape[1])
    places = places.repeat_interleave(heads // places.shape[1], dim=1)
    batch = torch.arange(B, device=row.device)[:, None, None]
    kv = (torch.arange(heads, device=row.device) // (heads // K))[None, :, None]
    used, at = places >= 0, places.clamp(min=0)
    positions = p.key_positions.expand(B, K, S)[batch, kv, at]
    positions = torch.where(used, positions, -1)
    query = last.query_positions
    if p.visit.compact:  # renumbered over the chosen tokens and the step's own real ones, in order
        real = used & (positions >= 0)
        positions = torch.where(real, real.cumsum(-1) - 1, -1)
        query = torch.where(query >= 0, positions[:, 0, -1:], -1)
    bias = p.bias
    if bias is not None:
        H = p.queries.shape[1]
        bias = bias.expand(B, H, S).gather(2, at.repeat_interleave(H // heads, dim=1))
    chosen = replace(
        last,
        keys=p.keys[batch, kv, at],
        query_positions=query,
        key_positions=positions,
        visit=Dense(),
        bias=bias,
        contiguous_from=None,
    )
    return chosen, torch.where(used, places, -1)


def _joined(p: Problem, visit: PerHead) -> tuple[Tensor, Tensor]:
    parts = [(list(heads), *last_attention(p.for_heads(heads, part))) for heads, part in visit.parts]
    B, H = p.queries.shape[:2]
    widest = max(weights.shape[-1] for _, weights, _ in parts)
    joined = torch.zeros(B, H, widest, device=p.keys.device)
    places = torch.full((B, H, widest), -1, device=p.keys.device)
    for heads, weights, at in parts:
        joined[:, heads, : weights.shape[-1]] = weights
        places[:, heads, : at.shape[-1]] = at
    return joined, places
