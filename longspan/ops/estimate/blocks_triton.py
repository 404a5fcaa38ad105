# mypy: disable-error-code="no-untyped-def"
"""Kernels for block scores: means of blocks, and antidiagonals as one long product.

The antidiagonal sum of two groups of `stride` tokens is a dot product of stride * D features: query rows are read backwards
within their group, key rows forwards, one row of each group per step, so nothing is rearranged in memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634


@triton.jit
def _means_kernel(
    x,
    out,
    first_place,
    sxb,
    sxh,
    sxs,
    h,
    S,
    D,
    num_blocks,
    start_place,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_FIRST: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    b, head = row // h, row % h
    first = 0
    if HAS_FIRST:
        first = tl.load(first_place + b)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, BLOCK_D)
    real = (token < S) & (token + start_place >= first)
    at = x + b * sxb + head * sxh + token.to(tl.int64)[:, None] * sxs + d[None, :]
    tokens = tl.load(at, mask=real[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
    count = tl.maximum(tl.sum(real.to(tl.int32), axis=0), 1).to(tl.float32)
    to = out + (row * num_blocks + tl.program_id(0)) * D + d
    tl.store(to, tl.sum(tokens, axis=0) / count, mask=d < D)


@triton.jit
def _group_logits(
    queries,
    keys,
    a,
    c,
    sqt,
    sks,
    T,
    S,
    D,
    first,
    scale_log2,
    STRIDE: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    d = tl.arange(0, BLOCK_D)
    logits = tl.zeros([BLOCK_A, BLOCK_C], tl.float32)
    for i in range(STRIDE):
        query = a * STRIDE + (STRIDE - 1 - i)
        key = c * STRIDE + i
        real = (query < T) & (query + S - T >= first)
        at = queries + query.to(tl.int64)[:, None] * sqt + d[None, :]
        x = tl.load(at, mask=real[:, None] & (d < D)[None, :], other=0.0)
        at = keys + key.to(tl.int64)[:, None] * sks + d[None, :]
        held = (key < S) & (key >= first)
        y = tl.load(at, mask=held[:, None] & (d < D)[None, :], other=0.0)
        logits = tl.dot(x, tl.trans(y), logits, input_precision=PRECISION)
    own = S - T + a * STRIDE
    asks = (a * STRIDE < T) & (tl.minimum(own + STRIDE, S) > first)
    start = c * STRIDE
    sees = (start[None, :] <= own[:, None]) | (start <= first)[None, :]
    held = (start < S) & (start + STRIDE > first)
    return tl.where(sees & held[None, :] & asks[:, None], logits * scale_log2, float("-inf")), asks


@triton.jit
def _group_lse_kernel(
    q,
    k,
    lse,
    first_place,
    sqb,
    sqh,
    sqt,
    skb,
    skh,
    sks,
    scale_log2,
    H,
    G,
    T,
    S,
    D,
    num_groups,
    STRIDE: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    b, head = row // H, row % H
    a0 = (tl.num_programs(1) - 1 - tl.program_id(1)) * BLOCK_A  # the longest rows first
    a = a0 + tl.arange(0, BLOCK_A)
    first = 0
    if HAS_FIRST:
        first = tl.load(first_place + b)
    queries = q + b * sqb + head * sqh
    keys = k + b * skb + (head // G) * skh
    largest = tl.full([BLOCK_A], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_A], tl.float32)
    newest = tl.maximum(S - T + (a0 + BLOCK_A - 1) * STRIDE, first) // STRIDE
    last = tl.minimum(newest, (S - 1) // STRIDE)
    for c0 in range(first // STRIDE // BLOCK_C * BLOCK_C, last + 1, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        logits, _ = _group_logits(
            *(queries, keys, a, c, sqt, sks, T, S, D, first, scale_log2),
            *(STRIDE, BLOCK_A, BLOCK_C, BLOCK_D, PRECISION),
        )
        new = tl.maximum(largest, tl.max(logits, axis=1))
        shift = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp2(largest - shift) + tl.sum(tl.exp2(logits - shift[:, None]), axis=1)
        largest = new
    found = tl.where(
        total > 0, largest + tl.log2(total), float("inf")
    )  # so that rows without keys share out 0
    tl.store(lse + row * num_groups + a, found, mask=a < num_groups)


@triton.jit
def _group_shares_kernel(
    q,
    k,
    lse,
    out,
    first_place,
    sqb,
    sqh,
    sqt,
    skb,
    skh,
    sks,
    scale_log2,
    H,
    G,
    T,
    S,
    D,
    num_groups,
    NQ,
    NK,
    PER_BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    ROWS: tl.constexpr = BLOCK_A // PER_BLOCK
    COLUMNS: tl.constexpr = BLOCK_C // PER_BLOCK
    row = tl.program_id(0).to(tl.int64)
    b, head = row // H, row % H
    a0, c0 = tl.program_id(1) * BLOCK_A, tl.program_id(2) * BLOCK_C
    a, c = a0 + tl.arange(0, BLOCK_A), c0 + tl.arange(0, BLOCK_C)
    first = 0
    if HAS_FIRST:
        first = tl.load(first_place + b)
    shares = tl.zeros([ROWS, COLUMNS], tl.float32)
    if c0 * STRIDE <= tl.maximum(S - T + (a0 + BLOCK_A - 1) * STRIDE, first):
        logits, asks = _group_logits(
            *(q + b * sqb + head * sqh, k + b * skb + (head // G) * skh, a, c, sqt, sks, T, S, D, first),
            *(scale_log2, STRIDE, BLOCK_A, BLOCK_C, BLOCK_D, PRECISION),
        )
        norm = tl.load(lse + row * num_groups + a, mask=a < num_groups, other=float("inf"))
        weights = tl.exp2(logits - norm[:, None])
        tiles = tl.reshape(weights, [ROWS, PER_BLOCK, COLUMNS, PER_BLOCK])
        count = tl.sum(tl.reshape(asks.to(tl.float32), [ROWS, PER_BLOCK]), axis=1)
        shares = tl.sum(tl.sum(tiles, axis=3), axis=1) / tl.maximum(count, 1.0)[:, None]
    n = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    to = out + (row * NQ + n)[:, None] * NK + j[None, :]
    tl.store(to, shares, mask=(n < NQ)[:, None] & (j < NK)[None, :])


def triton_block_means(
    x_BhSD: Tensor, block_tokens: int, start_place: int, first_place: Tensor | None
) -> Tensor:
    """See `naive_block_means`."""
    B, h, S, D = x_BhSD.shape
    x = x_BhSD if x_BhSD.stride(3) == 1 else x_BhSD.contiguous()
    N = -(-S // block_tokens)
    out = torch.empty(B, h, N, D, dtype=torch.float32, device=x.device)
    _means_kernel[(N, B * h)](
        *(x, out, first_place, *x.stride()[:3], h, S, D, N, start_place),
        BLOCK=block_tokens,
        BLOCK_D=triton.next_power_of_2(D),
        HAS_FIRST=first_place is not None,
        num_warps=8,
    )
    return out


def antidiagonal_config(stride: int, block_tokens: int, head_dim: int, element_bytes: int) -> dict[str, int]:
    """Groups of a tile, which holds whole blocks, and stages, which take at most 192 KiB."""
    row_bytes = head_dim * element_bytes
    side = max(block_tokens // stride, max(32, min(128, 32 * 1024 // row_bytes)))
    stages = min(3, 192 * 1024 // (2 * side * row_bytes))
    return {"BLOCK_A": side, "BLOCK_C": side, "num_warps": 8, "num_stages": max(1, stages)}


def triton_antidiagonal_scores(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    *,
    block_tokens: int,
    stride: int,
    scale: float,
    first_place: Tensor | None,
) -> Tensor:
    """See `antidiagonal_scores`."""
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    q = q_BHTD if q_BHTD.stride(3) == 1 else q_BHTD.contiguous()
    num_groups, NQ, NK = -(-T // stride), -(-T // block_tokens), -(-S // block_tokens)
    lse = torch.empty(B, H, num_groups, dtype=torch.float32, device=q.device)
    out = torch.empty(B, H, NQ, NK, dtype=torch.float32, device=q.device)
    BLOCK_D = max(16, triton.next_power_of_2(D))
    config = antidiagonal_config(stride, block_tokens, BLOCK_D, q.element_size())
    fixed = {"STRIDE": stride, "BLOCK_D": BLOCK_D, **config}
    fixed["HAS_FIRST"] = first_place is not None
    fixed["PRECISION"] = "ieee" if q.dtype == torch.float32 else "tf32"
    strides = (*q.stride()[:3], *k_BKSD.stride()[:3])
    sizes = (scale / stride * LOG2_E, H, H // K, T, S, D, num_groups)
    rows = -(-num_groups // config["BLOCK_A"])
    _group_lse_kernel[(B * H, rows)](q, k_BKSD, lse, first_place, *strides, *sizes, **fixed)
    grid = (B * H, rows, -(-S // stride // config["BLOCK_C"]))
    PER_BLOCK = block_tokens // stride
    _group_shares_kernel[grid](
        q, k_BKSD, lse, out, first_place, *strides, *sizes, NQ, NK, PER_BLOCK=PER_BLOCK, **fixed
    )
    return out
