# mypy: disable-error-code="no-untyped-def"
"""Kernels for 4-bit logits: quantise each token, then 8-bit products whose tiles are reduced before they leave the chip."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634


@triton.jit
def _quantise_kernel(x, numbers, steps, sxb, sxh, sxs, h, S, D, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    d = tl.arange(0, BLOCK_D)
    mask = (s < S)[:, None] & (d < D)[None, :]
    at = x + row // h * sxb + row % h * sxh + s.to(tl.int64)[:, None] * sxs + d[None, :]
    values = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    step = tl.div_rn(tl.max(tl.abs(values), axis=1), 7.0)
    scaled = tl.floor(tl.div_rn(values, tl.where(step > 0, step, 1.0)[:, None]) + 0.5)
    scaled = tl.where(scaled == scaled, scaled, 0.0)  # the integer of a NaN is anything
    rounded = tl.minimum(tl.maximum(scaled, -7.0), 7.0).to(tl.int8)
    to = row * S + s
    tl.store(numbers + to[:, None] * D + d[None, :], rounded, mask=mask)
    tl.store(steps + to, step, mask=s < S)


@triton.jit
def _scores_kernel(
    q,
    q_steps,
    k,
    k_steps,
    out,
    first_place,
    scale_log2,
    H,
    G,
    T,
    S,
    D,
    NQ,
    NK,
    BLOCK: tl.constexpr,
    PER_QUERY: tl.constexpr,
    LOGSUMEXP: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_FIRST: tl.constexpr,
):
    ROWS: tl.constexpr = BLOCK_T // BLOCK
    COLUMNS: tl.constexpr = BLOCK_S // BLOCK
    row = tl.program_id(0).to(tl.int64)
    b, head = row // H, row % H
    kv = b * (H // G) + head // G
    first = 0
    if HAS_FIRST:
        first = tl.load(first_place + b)
    t0 = (tl.num_programs(1) - 1 - tl.program_id(1)) * BLOCK_T  # the longest rows first
    t = t0 + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    at = q + (row * T + t)[:, None] * D + d[None, :]
    x = tl.load(at, mask=(t < T)[:, None] & (d < D)[None, :], other=0)
    x_step = tl.load(q_steps + row * T + t, mask=t < T, other=0.0) * scale_log2
    top = tl.where(t < T, S - T + t, -1)
    end = tl.minimum(S, S - T + t0 + BLOCK_T)
    for s0 in range(tl.cdiv(end, BLOCK_S) * BLOCK_S, S, BLOCK_S):  # nobody here sees these keys
        j = s0 // BLOCK + tl.arange(0, COLUMNS)
        if PER_QUERY:
            to = out + (row * T + t)[:, None] * NK + j[None, :]
            nothing = tl.full([BLOCK_T, COLUMNS], float("-inf"), tl.float32)
            tl.store(to, nothing, mask=(t < T)[:, None] & (j < NK)[None, :])
        else:
            n = t0 // BLOCK + tl.arange(0, ROWS)
            to = out + (row * NQ + n)[:, None] * NK + j[None, :]
            nothing = tl.full([ROWS, COLUMNS], float("-inf"), tl.float32)
            tl.store(to, nothing, mask=(n < NQ)[:, None] & (j < NK)[None, :])
    for s0 in range(0, end, BLOCK_S):
        s = s0 + tl.arange(0, BLOCK_S)
        held = s < end
        at_k = k + (kv * S + s)[:, None] * D + d[None, :]
        y = tl.load(at_k, mask=held[:, None] & (d < D)[None, :], other=0)
        y_step = tl.load(k_steps + kv * S + s, mask=held, other=0.0)
        logits = tl.dot(x, tl.trans(y), out_dtype=tl.int32).to(tl.float32) * x_step[:, None] * y_step[None, :]
        if (s0 < first) | (s0 + BLOCK_S > S - T + t0 + 1) | (t0 + BLOCK_T > T):
            seen = (s[None, :] <= top[:, None]) & (s >= first)[None, :]
            logits = tl.where(seen, logits, float("-inf"))
        j = s0 // BLOCK + tl.arange(0, COLUMNS)
        best = tl.max(tl.reshape(logits, [BLOCK_T, COLUMNS, BLOCK]), axis=2)
        if PER_QUERY:
            if LOGSUMEXP:
                shift = tl.where(best == float("-inf"), 0.0, best)
                tiles = tl.reshape(logits, [BLOCK_T, COLUMNS, BLOCK])
                best = shift + tl.log2(tl.sum(tl.exp2(tiles - shift[:, :, None]), axis=2))
            to = out + (row * T + t)[:, None] * NK + j[None, :]
            mask = (t < T)[:, None] & (j < NK)[None, :]
            tl.store(to, best * 0.6931471805599453, mask=mask)
        else:
            best = tl.max(tl.reshape(best, [ROWS, BLOCK, COLUMNS]), axis=1)
            if LOGSUMEXP:
                shift = tl.where(best == float("-inf"), 0.0, best)
                tiles = tl.reshape(logits, [ROWS, BLOCK, COLUMNS, BLOCK])
                mass = tl.sum(tl.sum(tl.exp2(tiles - shift[:, None, :, None]), axis=3), axis=1)
                best = shift + tl.log2(mass)
            n = t0 // BLOCK + tl.arange(0, ROWS)
            to = out + (row * NQ + n)[:, None] * NK + j[None, :]
            tl.store(to, best * 0.6931471805599453, mask=(n < NQ)[:, None] & (j < NK)[None, :])


def triton_quantise_low_bit(x_BhSD: Tensor) -> tuple[Tensor, Tensor]:
    """See `quantise_low_bit`."""
    x = x_BhSD if x_BhSD.stride(3) == 1 else x_BhSD.contiguous()
    B, h, S, D = x.shape
    numbers = torch.empty(B, h, S, D, dtype=torch.int8, device=x.device)
    steps = torch.empty(B, h, S, dtype=torch.float32, device=x.device)
    BLOCK_D = triton.next_power_of_2(D)
    BLOCK_S = max(1, 4096 // BLOCK_D)
    _quantise_kernel[(-(-S // BLOCK_S), B * h)](
        *(x, numbers, steps, *x.stride()[:3], h, S, D), BLOCK_S=BLOCK_S, BLOCK_D=BLOCK_D, num_warps=4
    )
    return numbers, steps


def scores_config() -> dict[str, int]:
    """Queries and keys of a tile, multiples of any block."""
    return {"BLOCK_T": 128, "BLOCK_S": 128, "num_warps": 8, "num_stages": 3}


def triton_low_bit_scores(
    queries: tuple[Tensor, Tensor],
    keys: tuple[Tensor, Tensor],
    *,
    scale: float,
    block_tokens: int,
    reduce: str,
    per_query: bool,
    first_place: Tensor | None,
) -> Tensor:
    """See `low_bit_block_scores`."""
    B, H, T, D = queries[0].shape
    K, S = keys[0].shape[1:3]
    NQ, NK = -(-T // block_tokens), -(-S // block_tokens)
    out = torch.empty(B, H, T if per_query else NQ, NK, dtype=torch.float32, device=queries[0].device)
    config = scores_config()
    _scores_kernel[(B * H, -(-T // config["BLOCK_T"]))](
        *(*queries, *(x.contiguous() for x in keys), out, first_place),
        *(scale * LOG2_E, H, H // K, T, S, D, NQ, NK),
        BLOCK=block_tokens,
        PER_QUERY=per_query,
        LOGSUMEXP=reduce == "logsumexp",
        BLOCK_D=max(32, triton.next_power_of_2(D)),
        HAS_FIRST=first_place is not None,
        **config,
    )
    return out
