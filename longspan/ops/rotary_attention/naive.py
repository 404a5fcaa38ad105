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
        return _dot(queries, keys, scale)
    q_pos, k_pos = query_positions.clamp(min=0)[:, None], key_positions.clamp(min=0)
    if not rotary.bands:
        return _dot(_turn(queries, q_pos, rotary), _turn(keys, k_pos, rotary), scale)
    logits = queries.new_zeros((*queries.shape[:3], keys.shape[2]), dtype=torch.float32)
    for band in rotary.bands:
        part = _dot(_turn(queries, band.query(q_pos), rotary), _turn(keys, band.key(k_pos), rotary), scale)
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


def _dot(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Scaled products `[B, H, T, S]`."""
    if _multiplies_as_is(queries, keys):  # queries times scale would have to be rounded
        return products(queries, keys).mul_(scale)
    return products(queries.float() * scale, keys)


def products(queries: Tensor, keys: Tensor) -> Tensor:
    """Products `[B, H, T, S]` of queries `[B, H, T, D]` and keys `[B, K, S, D]`, float32, without scale; the query heads
    of a group share one matrix product with their keys. On CUDA half precision is not copied to float32 first."""
    B, H, T, D = queries.shape
    K = keys.shape[1]
    grouped = queries.reshape(B, K, H // K * T, D)
    if _multiplies_as_is(queries, keys):
        out = torch.bmm(grouped.flatten(0, 1), keys.flatten(0, 1).mT, out_dtype=torch.float32)
    else:
        out = grouped.float() @ keys.float().mT
    return out.view(B, H, T, -1)


def _multiplies_as_is(queries: Tensor, keys: Tensor) -> bool:
    """Does a product of half precision come out in float32? On CUDA, where no gradients are wanted."""
    half = queries.dtype == keys.dtype and keys.dtype in (torch.float16, torch.bfloat16)
    return keys.is_cuda and half and not (queries.requires_grad or keys.requires_grad)


def repeats_of_positions(key_positions: Tensor, keys: Tensor, groups: int) -> int:
    """How often a row of positions `[B, 1 or K, S]` is repeated for the query heads."""
    return 1 if key_positions.shape[1] == 1 and keys.shape[1] > 1 else groups
