"""The readable twin: build the mask of every (query, key) pair, then softmax in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.ops.attend.problem import Problem
from longspan.ops.block_sparse.naive import block_table_mask
from longspan.ops.rotary_attention.naive import naive_logits, repeats_of_positions
from longspan.visit import BlockTable, Dense, Gather, PerHead, Ranges, Visit


def naive_mask(problem: Problem, visit: Visit | None = None) -> Tensor:
    """Boolean mask `[B, H, T, S]` of the pairs that are visited."""
    p, visit = problem, problem.visit if visit is None else visit
    B, H, T, S = *p.queries.shape[:3], p.num_tokens
    at, query = p.key_positions[:, :, None, :], p.query_positions[:, None, :, None]
    allowed = (at >= 0) & (query >= 0) & (at <= query)
    allowed = allowed.repeat_interleave(
        repeats_of_positions(p.key_positions, p.keys, p.num_groups), dim=1
    ).expand(B, H, T, S)
    if isinstance(visit, Dense):
        return allowed
    if isinstance(visit, Ranges):
        near = (at < visit.sink_tokens) | (query - at < visit.window_tokens)
        return allowed & near.repeat_interleave(
            repeats_of_positions(p.key_positions, p.keys, p.num_groups), dim=1
        )
    if isinstance(visit, BlockTable):
        return allowed & block_table_mask(p.queries, p.keys, visit)
    if isinstance(visit, Gather):
        chosen = torch.zeros(
            B, visit.index.shape[1], visit.index.shape[2], S + 1, dtype=torch.bool, device=at.device
        )
        chosen.scatter_(3, torch.where(visit.index < 0, S, visit.index), True)
        chosen = chosen[..., :S].repeat_interleave(H // visit.index.shape[1], dim=1)
        block = visit.query_block_tokens or max(T, 1)
        rows = chosen.repeat_interleave(block, dim=2)[:, :, :T]
        own = torch.arange(S, device=at.device) >= S - p.num_new
        return allowed & (rows | own)
    mask = torch.zeros(B, H, T, S, dtype=torch.bool, device=at.device)
    for heads, part in visit.parts:
        mask[:, list(heads)] = naive_mask(p.for_heads(heads, part))
    return mask


def naive_attend(problem: Problem) -> Tensor:
    """Attention output `[B, H, T, D]` in the dtype of the queries; rows that visit nothing are zero."""
    p = problem.decoded()
    if isinstance(p.visit, PerHead):
        out = torch.empty_like(p.queries)
        for heads, part in p.visit.parts:
            out[:, list(heads)] = naive_attend(p.for_heads(heads, part))
        return out
    q_pos, k_pos = p.query_positions, p.key_positions
    mask = naive_mask(p)
    if isinstance(p.visit, Gather) and p.visit.compact:
        visited = mask[:, :1, -1:].any(dim=2)
        k_pos = torch.where(visited, visited.cumsum(-1) - 1, -1)
        q_pos = k_pos[:, 0, -p.num_new :]
    logits = naive_logits(p.queries, p.keys, q_pos, k_pos, p.rotary, p.scale)
    if p.bias is not None:
        logits = logits + p.bias[:, :, None].float()
    logits = logits.masked_fill(~mask, -torch.inf)
    weights = torch.softmax(logits, dim=-1).nan_to_num(0.0)
    values = p.values.repeat_interleave(p.num_groups, dim=1).float()
    return (weights @ values).to(p.queries.dtype)
