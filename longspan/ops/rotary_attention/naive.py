"""The readable twin: every pair's logits under its band, then softmax in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.ops.rotary import Rotary, angles, rotate


def naive_logits(
    queries: Tensor,
    keys: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    rotary: Rotary | None,
    scale: float,
) -> Tensor:
    """Scaled logits `[B, H, T, S]` of every pair, float32, without mask.

    queries `[B, H, T, D]`, keys `[B, K, S, D]`, query_positions `[B, T]`, key_positions `[B, 1 or K, S]`.
    """
    groups = queries.shape[1] // keys.shape[1]
    if rotary is None:
        return _dot(queries, keys, groups, scale)
    q_pos, k_pos = query_positions.clamp(min=0)[:, None], key_positions.clamp(min=0)
    if not rotary.bands:
        return _dot(_turn(queries, q_pos, rotary), _turn(keys, k_pos, rotary), groups, scale)
    logits = queries.new_zeros((*queries.shape[:3], keys.shape[2]), dtype=torch.float32)
    for band in rotary.bands:
        part = _dot(
            _turn(queries, band.query(q_pos), rotary), _turn(keys, band.key(k_pos), rotary), groups, scale
        )
        low, high = band.low(query_positions)[:, None, :, None], band.high(query_positions)[:, None, :, None]
        at = key_positions[:, :, None, :]
        inside = ((at >= low) & (at < high)).repeat_interleave(
            repeats_of_positions(key_positions, keys, groups), dim=1
        )
        logits = torch.where(inside, part, logits)
    return logits


def naive_rotary_attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, *, rotary: Rotary, first: int, scale: float
) -> tuple[Tensor, Tensor]:
    """See `rotary_attention`."""
    (B, H, T, _), S = q_BHTD.shape, k_BKSD.shape[2]
    at = torch.arange(first, first + S, device=q_BHTD.device).expand(B, 1, S)
    query = at[:, 0, S - T :]
    logits = naive_logits(q_BHTD, k_BKSD, query, at, rotary, scale)
    mask = at[:, :, None] <= query[:, None, :, None]
    if rotary.bands:
        inside = torch.zeros_like(mask)
        for band in rotary.bands:
            low, high = band.low(query)[:, None, :, None], band.high(query)[:, None, :, None]
            inside |= (at[:, :, None] >= low) & (at[:, :, None] < high)
        mask = mask & inside
    logits = logits.masked_fill(~mask, -torch.inf)
    lse = torch.logsumexp(logits, dim=-1)
    weights = (logits - torch.where(lse == -torch.inf, 0.0, lse)[..., None]).exp()
    values = v_BKSD.float().repeat_interleave(H // v_BKSD.shape[1], dim=1)
    return (weights @ values).to(q_BHTD.dtype), lse


def _turn(x: Tensor, positions: Tensor, rotary: Rotary) -> Tensor:
    return rotate(x, *angles(positions, rotary.inv_freq, rotary.scaling, x.dtype))


def _dot(queries: Tensor, keys: Tensor, groups: int, scale: float) -> Tensor:
    """Scaled products `[B, H, T, S]`; the query heads of a group share one matrix product with their keys."""
    B, H, T, D = queries.shape
    grouped = (queries.float() * scale).reshape(B, H // groups, groups * T, D)
    return (grouped @ keys.float().transpose(-1, -2)).view(B, H, T, -1)


def repeats_of_positions(key_positions: Tensor, keys: Tensor, groups: int) -> int:
    """How often a row of positions `[B, 1 or K, S]` is repeated for the query heads."""
    return 1 if key_positions.shape[1] == 1 and keys.shape[1] > 1 else groups
