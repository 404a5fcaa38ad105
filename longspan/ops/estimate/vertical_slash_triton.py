# mypy: disable-error-code="no-untyped-def"
"""Kernels for what the last queries of a chunk attend to: two passes over the keys, then sums of few numbers.

The asked queries of several heads of a kv head are the rows of one tile, so that keys are read once per kv head. Pass 1
(queries x keys) takes the log-sum-exp of every asked query; pass 2 (keys x queries, so that sums over queries stay within
a thread) repeats the product, normalises, and writes a sum per key and, per tile of keys, what it holds of diagonals.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan.ops.estimate.diagonals_triton import diagonal_shares, offsets_kernel

LOG2_E = 1.4426950408889634
MOST_ROWS = 256  # of a tile: asked queries times heads
WANTED_PROGRAMS = 132 * 2 * 6  # some waves of two programs on each of the multiprocessors of a large GPU


@triton.jit
def _here(chunk, K, T, chunk_tokens, last_queries, TILES: tl.constexpr):
    """Batch item, kv head, tile of its heads, end of the chunk in queries, and how many of them are asked."""
    tile = tl.program_id(2) % TILES
    kv = (tl.program_id(2) // TILES) % K
    b = (tl.program_id(2) // TILES // K).to(tl.int64)
    end = tl.minimum((chunk + 1) * chunk_tokens, T)
    return b, kv, tile, end, tl.minimum(last_queries, end - chunk * chunk_tokens)


@triton.jit
def _load_queries(
    q, sqb, sqh, sqt, b, head, in_group, r, end, asked, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):
    d = tl.arange(0, BLOCK_D)
    valid = in_group & (r >= ROWS - asked)
    at = q + b * sqb + head.to(tl.int64)[:, None] * sqh + (end - ROWS + r).to(tl.int64)[:, None] * sqt
    return tl.load(at + d[None, :], mask=valid[:, None] & (d < D)[None, :], other=0.0), valid


@triton.jit
def _lse_kernel(
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
    K,
    T,
    S,
    D,
    num_chunks,
    num_splits,
    chunk_tokens,
    split_tokens,
    last_queries,
    G: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    TILES: tl.constexpr = (G + HEADS - 1) // HEADS
    split, chunk = tl.program_id(0), tl.program_id(1)
    b, kv, tile, end, asked = _here(chunk, K, T, chunk_tokens, last_queries, TILES)
    E = S - T + end
    first = 0
    if HAS_FIRST:
        first = tl.load(first_place + b)
    row = tl.arange(0, HEADS * ROWS)
    r, g = row % ROWS, tile * HEADS + row // ROWS
    head = kv * G + g
    x, valid = _load_queries(q, sqb, sqh, sqt, b, head, g < G, r, end, asked, D, ROWS, BLOCK_D)
    top = tl.where(valid, E - ROWS + r, -1)
    d = tl.arange(0, BLOCK_D)
    keys = k + b * skb + kv.to(tl.int64) * skh
    largest = tl.full([HEADS * ROWS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS * ROWS], tl.float32)
    start = split * split_tokens
    for s0 in range(start, tl.minimum(start + split_tokens, E), BLOCK_N):
        s = s0 + tl.arange(0, BLOCK_N)
        at = keys + s.to(tl.int64)[:, None] * sks + d[None, :]
        y = tl.load(at, mask=(s < E)[:, None] & (d < D)[None, :], other=0.0)
        logits = tl.dot(x, tl.trans(y), input_precision=PRECISION) * scale_log2
        if (s0 < first) | (s0 + BLOCK_N > E - asked + 1):
            seen = (s[None, :] <= top[:, None]) & (s >= first)[None, :]
            logits = tl.where(seen, logits, float("-inf"))
        new = tl.maximum(largest, tl.max(logits, axis=1))
        shift = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp2(largest - shift) + tl.sum(tl.exp2(logits - shift[:, None]), axis=1)
        largest = new
    found = tl.where(valid & (total > 0), (largest + tl.log2(total)) / 1.4426950408889634, float("-inf"))
    to = (((b * H + head) * num_chunks + chunk) * ROWS + r).to(tl.int64) * num_splits + split
    tl.store(lse + to, found, mask=g < G)


@triton.jit
def _mass_kernel(
    q,
    k,
    lse,
    columns,
    parts,
    first_place,
    sqb,
    sqh,
    sqt,
    skb,
    skh,
    sks,
    scale_log2,
    H,
    K,
    T,
    S,
    D,
    num_chunks,
    num_tiles,
    chunk_tokens,
    split_tokens,
    last_queries,
    phase,
    BLOCK: tl.constexpr,
    LAST: tl.constexpr,
    G: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    TILES: tl.constexpr = (G + HEADS - 1) // HEADS
    split, chunk = tl.program_id(0), tl.program_id(1)
    b, kv, tile, end, asked = _here(chunk, K, T, chunk_tokens, last_queries, TILES)
    E = S - T + end
    first = 0
    if HAS_FIRST:
        first = tl.load(first_place + b)
    row = tl.arange(0, HEADS * ROWS)
    r, g = row % ROWS, tile * HEADS + row // ROWS
    head = kv * G + g
    x, _ = _load_queries(q, sqb, sqh, sqt, b, head, g < G, r, end, asked, D, ROWS, BLOCK_D)
    at = ((b * H + head) * num_chunks + chunk).to(tl.int64) * ROWS + r
    norm = tl.load(lse + at, mask=g < G, other=float("-inf"))
    norm = tl.where(norm == float("-inf"), float("inf"), norm * 1.4426950408889634)  # no keys: gives 0
    in_tile = tile * HEADS + tl.arange(0, HEADS)
    out_head = (b * H + kv * G + in_tile).to(tl.int64) * num_chunks + chunk
    asked_row = tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    y_place = tl.arange(0, BLOCK_N)
    keys = k + b * skb + kv.to(tl.int64) * skh
    start = split * split_tokens
    stop = tl.minimum(start + split_tokens, S)
    # columns behind the end of the chunk; the loop below may write some of them, with the same zeros
    for s0 in range(tl.maximum(start, E // BLOCK_N * BLOCK_N), stop, BLOCK_N):
        s = s0 + y_place
        to = columns + out_head[None, :] * S + s[:, None]
        zeros = tl.zeros([BLOCK_N, HEADS], tl.float32)
        tl.store(to, zeros, mask=(s >= E)[:, None] & (s < S)[:, None] & (in_tile < G)[None, :])
    for s0 in range(start, tl.minimum(stop, E), BLOCK_N):
        s = s0 + y_place
        at_k = keys + s.to(tl.int64)[:, None] * sks + d[None, :]
        y = tl.load(at_k, mask=(s < E)[:, None] & (d < D)[None, :], other=0.0)
        p = tl.exp2(tl.dot(y, tl.trans(x), input_precision=PRECISION) * scale_log2 - norm[None, :])
        if (s0 < first) | (s0 + BLOCK_N > E - asked + 1):
            top = E - ROWS + tl.arange(0, HEADS * ROWS) % ROWS
            p = tl.where((s[:, None] <= top[None, :]) & (s >= first)[:, None], p, 0.0)
        p3 = tl.reshape(p, [BLOCK_N, HEADS, ROWS])
        mass = tl.sum(p3, axis=2)
        to = columns + out_head[None, :] * S + s[:, None]
        tl.store(to, mass, mask=(s < E)[:, None] & (in_tile < G)[None, :])
        if s0 < first + asked:
            whole = s[:, None, None] >= first + asked_row[None, None, :] - (ROWS - asked)
            p3 = tl.where(whole, p3, 0.0)
            mass = tl.sum(p3, axis=2)
        to_part = parts + (out_head * num_tiles + s0 // BLOCK_N) * (LAST + 2)
        base = E - ROWS - s0 - phase
        diagonal_shares(p3, mass, base, to_part, in_tile < G, BLOCK, LAST, HEADS, ROWS, BLOCK_N)


def slash_config(G: int, rows: int, head_dim: int, element_bytes: int) -> dict[str, int]:
    """Tiles of both passes: heads of a kv head in one (64 KiB and 256 rows of queries at most), keys, warps, stages."""
    if element_bytes == 4:  # no matrix units: tiles are small enough for the registers
        return {"HEADS": 1, "BLOCK_N": 32, "lse_warps": 8, "mass_warps": 8, "num_stages": 2}
    most = max(1, min(MOST_ROWS // rows, 64 * 1024 // (rows * head_dim * element_bytes)))
    heads = min(triton.next_power_of_2(G), 1 << (most.bit_length() - 1))
    return {
        "HEADS": heads,
        "BLOCK_N": 64,
        "lse_warps": max(4, heads * rows // 32),
        "mass_warps": max(4, heads * rows // 16),  # this pass needs twice the registers
        "num_stages": 3 if head_dim * element_bytes <= 256 else 2,
    }


def triton_vertical_slash(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    *,
    scale: float,
    chunk_tokens: int,
    block_tokens: int,
    last_queries: int,
    first_place: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `vertical_slash`."""
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    q = q_BHTD if q_BHTD.stride(3) == 1 else q_BHTD.contiguous()
    G, device = H // K, q.device
    ROWS, BLOCK_D = max(16, triton.next_power_of_2(last_queries)), max(16, triton.next_power_of_2(D))
    config = slash_config(G, ROWS, BLOCK_D, q.element_size())
    lse_warps, mass_warps, BLOCK_N = config.pop("lse_warps"), config.pop("mass_warps"), config["BLOCK_N"]
    C, num_blocks, num_tiles = -(-T // chunk_tokens), -(-S // block_tokens), -(-S // BLOCK_N)
    LAST = (BLOCK_N + block_tokens + ROWS - 3) // block_tokens
    tiles = B * K * -(-G // config["HEADS"])
    split = min(8192, max(512, triton.next_power_of_2(-(-S * C * tiles // WANTED_PROGRAMS))))
    num_splits = -(-S // split)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    lse, columns = empty(B, H, C, ROWS, num_splits), empty(B, H, C, S)
    parts, offsets = empty(B, H, C, num_tiles, LAST + 2), empty(B, H, C, num_blocks)
    strides = (*q.stride()[:3], *k_BKSD.stride()[:3])
    sizes = (scale * LOG2_E, H, K, T, S, D, C)
    fixed = {"G": G, "ROWS": ROWS, "BLOCK_D": BLOCK_D, "HAS_FIRST": first_place is not None, **config}
    fixed["PRECISION"] = "ieee" if q.dtype == torch.float32 else "tf32"
    cut = (chunk_tokens, split, last_queries)
    grid = (num_splits, C, tiles)
    _lse_kernel[grid](
        *(q, k_BKSD, lse, first_place, *strides, *sizes, num_splits, *cut), **fixed, num_warps=lse_warps
    )
    whole = torch.logsumexp(lse, dim=-1)
    phase = (S - T) % block_tokens
    shapes = {"BLOCK": block_tokens, "LAST": LAST}
    _mass_kernel[grid](
        *(q, k_BKSD, whole, columns, parts, first_place, *strides, *sizes, num_tiles, *cut, phase),
        **shapes,
        **fixed,
        num_warps=mass_warps,
    )
    shapes |= {"ROWS": ROWS, "BLOCK_N": BLOCK_N, "BLOCK_M": 256}
    offsets_kernel[(B * H * C, -(-num_blocks // 256))](
        parts, offsets, T, S, C, num_tiles, num_blocks, chunk_tokens, phase, **shapes
    )
    return columns, offsets
