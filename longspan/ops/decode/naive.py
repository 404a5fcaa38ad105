"""The readable twins: head by head, the rows that are visited and then softmax in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.ops.decode.ragged import Ragged


def naive_ragged_decode(
    q_BHTD: Tensor, store: Ragged, *, scale: float, tree_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See `ragged_decode`; differentiable."""
    B, H, T, _ = q_BHTD.shape
    K = store.lengths.shape[1]
    heads = []
    for b in range(B):
        own = _own_mask(T, q_BHTD.device) if tree_mask is None else tree_mask[b % tree_mask.shape[0]]
        for k in range(K):
            keys, values, there = ragged_rows(store, b, k)
            seen = there.expand(T, -1).clone()
            held = min(T, len(there))
            seen[:, len(there) - held :] &= own[:, T - held :]
            heads.append(_attend(_queries(q_BHTD, b, k, K), keys, values, seen, scale))
    return _gathered_heads(heads, q_BHTD)


def ragged_rows(store: Ragged, b: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values `[L, D]` of one head and which of them are there, boolean `[L]`; views where the form allows it."""
    length = min(max(int(store.lengths[b, k]), 0), store.capacity_tokens)
    if store.page_table is not None:
        num_pages, page_tokens = store.keys.shape[:2]
        pages = store.page_table[b, k % store.page_table.shape[1]].long()
        token = torch.arange(length, device=pages.device)
        page, offset = pages[token // page_tokens], token % page_tokens
        there = (page >= 0) & (page < num_pages)
        page = torch.where(there, page, 0)
        return store.keys[page, offset], store.values[page, offset], there
    start = 0 if store.starts is None else int(store.starts[b, k])
    rows = slice(start, start + length)
    keys, values = (x if x.dim() == 2 else x[b, k] for x in (store.keys, store.values))
    return keys[rows], values[rows], torch.ones(length, dtype=torch.bool, device=keys.device)


def naive_gather_decode(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, index: Tensor, *, scale: float, page_tokens: int = 1
) -> tuple[Tensor, Tensor]:
    """See `gather_decode`; differentiable in q, k and v."""
    B, H, T, _ = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    offset = torch.arange(page_tokens, device=index.device)
    place = (index.long()[..., None] * page_tokens + offset).flatten(2)
    chosen = (place >= 0) & (place < S - T)
    own = torch.arange(S - T, S, device=index.device)
    heads = []
    for b in range(B):
        for k in range(K):
            h = k % index.shape[1]
            rows = torch.cat([place[b, h][chosen[b, h]], own])
            seen = torch.ones(T, len(rows), dtype=torch.bool, device=index.device)
            seen[:, len(rows) - T :] = _own_mask(T, index.device)
            queries = _queries(q_BHTD, b, k, K)
            heads.append(_attend(queries, k_BKSD[b, k, rows], v_BKSD[b, k, rows], seen, scale))
    return _gathered_heads(heads, q_BHTD)


def _own_mask(num_queries: int, device: torch.device) -> Tensor:
    return torch.ones(num_queries, num_queries, dtype=torch.bool, device=device).tril()


def _queries(q_BHTD: Tensor, b: int, k: int, num_kv_heads: int) -> Tensor:
    groups = q_BHTD.shape[1] // num_kv_heads
    return q_BHTD[b, k * groups : (k + 1) * groups]


def _attend(
    q_GTD: Tensor, k_LD: Tensor, v_LD: Tensor, seen_TL: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    logits = (q_GTD.float() @ k_LD.float().T * scale).masked_fill(~seen_TL, -torch.inf)
    lse = torch.logsumexp(logits, dim=-1)
    weights = (logits - torch.where(lse == -torch.inf, 0.0, lse)[..., None]).exp()
    # what nobody sees may be anything, and 0 * NaN is NaN
    values = v_LD.float().masked_fill(~seen_TL.any(dim=0)[:, None], 0.0)
    return weights @ values, lse


def _gathered_heads(heads: list[tuple[Tensor, Tensor]], q_BHTD: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.stack([out for out, _ in heads]).reshape(q_BHTD.shape).to(q_BHTD.dtype)
    return out, torch.stack([lse for _, lse in heads]).reshape(q_BHTD.shape[:3])
