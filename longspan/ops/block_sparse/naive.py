"""The readable twin: the whole mask, then softmax in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.ops.block_sparse.table import BlockTable


def block_table_mask(q_BHTD: Tensor, k_BKSD: Tensor, table: BlockTable) -> Tensor:
    """Boolean `[B, H, T, S]`: the pairs that are visited."""
    H, T = q_BHTD.shape[1:3]
    S, block = k_BKSD.shape[2], table.block_tokens
    device = q_BHTD.device
    place = torch.arange(S, device=device)
    query = torch.arange(S - T, S, device=device)[:, None]
    num_blocks = -(-S // block)
    used = torch.arange(table.index.shape[3], device=device) < table.counts[..., None]
    blocks = _members(torch.where(used, table.index, -1), num_blocks)
    rows = blocks.repeat_interleave(block, dim=2)[:, :, :T].repeat_interleave(block, dim=3)[..., :S]
    mask = _all_heads(rows, H)
    if table.columns is not None:
        assert table.column_query_tokens is not None
        single = _members(table.columns, S).repeat_interleave(table.column_query_tokens, dim=2)[:, :, :T]
        mask = mask | _all_heads(single, H)
    mask = mask | (place < table.sink_tokens) | (query - place < table.window_tokens)
    mask = mask & (place <= query)
    if table.first_place is not None:
        mask = mask & (place >= table.first_place[:, None, None, None])
    return mask


def naive_block_sparse_prefill(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, table: BlockTable, *, scale: float
) -> tuple[Tensor, Tensor]:
    """See `block_sparse_prefill`; differentiable, with zero gradients for rows that visit nothing."""
    groups = q_BHTD.shape[1] // k_BKSD.shape[1]
    mask = block_table_mask(q_BHTD, k_BKSD, table)
    keys = k_BKSD.float().repeat_interleave(groups, dim=1)
    values = v_BKSD.float().repeat_interleave(groups, dim=1)
    some = mask.any(dim=-1, keepdim=True)
    # A row that visits nothing gets logits of 0 in place of -inf, whose softmax has no gradient but NaN.
    logits = torch.where(
        mask, q_BHTD.float() @ keys.transpose(-1, -2) * scale, torch.where(some, -torch.inf, 0.0)
    )
    lse = torch.logsumexp(logits, dim=-1)
    weights = torch.where(mask, (logits - lse[..., None]).exp(), 0.0)
    return (weights @ values).to(q_BHTD.dtype), torch.where(some[..., 0], lse, -torch.inf)


def _members(index: Tensor, size: int) -> Tensor:
    """Boolean `[..., size]`: which of 0 .. size-1 are among the last dimension of `index`."""
    inside = (index >= 0) & (index < size)
    found = torch.zeros(*index.shape[:-1], size + 1, dtype=torch.bool, device=index.device)
    return found.scatter_(-1, torch.where(inside, index, size).long(), True)[..., :size]


def _all_heads(x: Tensor, num_heads: int) -> Tensor:
    return x.repeat_interleave(num_heads // x.shape[1], dim=1)
