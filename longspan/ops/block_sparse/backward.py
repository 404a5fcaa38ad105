# mypy: disable-error-code="no-untyped-def"
"""Gradients of block-sparse attention.

With `P = exp(q k^T * scale - lse)` over the visited pairs: `dv = P^T dout`, `dS = P * (dout v^T - delta)`, `delta =
rowsum(dout * out) - dlse`, `dq = scale * dS k`, `dk = scale * dS^T q`. The first kernel walks each row of queries over its
key blocks (dq), the second each key block over the rows that visit it (dk, dv); `pairs.py` finds both lists,
and `backward_keys.py` has the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan.ops.block_sparse.backward_keys import add_single_keys, dkv_kernel
from longspan.ops.block_sparse.pairs import find_pairs, first_place_of, pair_kind, table_bits
from longspan.ops.block_sparse.table import BlockTable

SPLIT_BLOCKS = 4  # the first key blocks, which tables tend to give to every row, are divided among
SPLIT_PARTS = 8  # this many programs each


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Tile sizes (at most block_tokens), warps and pipeline stages of the two kernels."""

    dq_queries: int
    dq_keys: int
    dq_warps: int
    dq_stages: int
    dkv_queries: int
    dkv_keys: int
    dkv_warps: int
    dkv_stages: int


def backward_tiles(head_dim: int, num_bytes: int, block_tokens: int) -> Tiles:
    """Tiles that fit a Hopper GPU's registers and shared memory.

    Args:
        head_dim, num_bytes, block_tokens: D, bytes of an element, and that of the table.
    """
    if num_bytes == 4:
        tiles = (32, 32, 4, 1, 16, 32, 4, 1)
    elif head_dim <= 128:
        tiles = (128, 64, 8, 3, 64, 128, 8, 3)
    else:
        tiles = (128, 32, 8, 2, 64, 32, 8, 2)
    q1, k1, w1, s1, q2, k2, w2, s2 = tiles
    q1, k1, q2, k2 = (min(size, block_tokens) for size in (q1, k1, q2, k2))
    return Tiles(
        dq_queries=q1, dq_keys=k1, dq_warps=w1 if q1 >= 64 else 4, dq_stages=s1,
        dkv_queries=q2, dkv_keys=k2, dkv_warps=w2 if k2 * q2 >= 2048 else 4, dkv_stages=s2,
    )  # fmt: skip


def block_sparse_backward(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, out_BHTD: Tensor, lse_BHT: Tensor, dout_BHTD: Tensor,
    dlse_BHT: Tensor | None, table: BlockTable, *, scale: float, tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk and dv, in the dtype of q; rows that visit nothing give and get zero.

    The dk and dv of the first `SPLIT_BLOCKS` key blocks, of the sink and of single keys are sums of float32 atomics: their
    last bits can differ from run to run.

    Args:
        out_BHTD, lse_BHT: what the forward pass gave.
        dout_BHTD, dlse_BHT: gradients of the loss by them; None for zero (only dlse).
        tiles: None for `backward_tiles`.
    """
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    block = table.block_tokens
    if dout_BHTD.stride(-1) != 1:
        dout_BHTD = dout_BHTD.contiguous()
    tiles = tiles or backward_tiles(D, q_BHTD.element_size(), block)
    dq, dk, dv = (torch.empty_like(x) for x in (q_BHTD, k_BKSD, v_BKSD))
    shift, delta = (torch.empty(B, H, T, dtype=torch.float32, device=q_BHTD.device) for _ in range(2))
    pad = triton.next_power_of_2(D)
    _prepare[(triton.cdiv(T, 64), B * H)](
        out_BHTD, dout_BHTD, lse_BHT.contiguous(), None if dlse_BHT is None else dlse_BHT.contiguous(), shift, delta,
        *out_BHTD.stride()[:3], *dout_BHTD.stride()[:3], H, T, scale, D=D, PAD=pad, BM=64, num_warps=4,
    )  # fmt: skip
    pairs = find_pairs(table, num_heads=H, num_kv_heads=K, T=T, S=S)
    h, num_rows = table.index.shape[1:3]
    num_blocks = triton.cdiv(S, block)
    sizes = (h, num_rows, num_blocks, T, S)
    sink, window = min(table.sink_tokens, S), min(table.window_tokens, S)
    strides = [step for x in (q_BHTD, k_BKSD, v_BKSD, dout_BHTD) for step in x.stride()[:3]]
    columns = None if table.columns is None else table.columns.contiguous()
    precision = "ieee" if q_BHTD.dtype == torch.float32 else "tf32"
    shared = {"D": D, "PAD": pad, "BT": block, "PRECISION": precision}
    _dq_kernel[(triton.cdiv(T, tiles.dq_queries), B * H)](
        q_BHTD, k_BKSD, v_BKSD, dout_BHTD, shift, delta, dq,
        pairs.bits, pairs.row_list, pairs.row_counts, table.first_place, columns,
        *strides, *dq.stride()[:3], H, K, pairs.row_list.shape[3], *sizes, sink, window,
        1 if columns is None else columns.shape[1], 1 if columns is None else columns.shape[3], scale,
        SPAN_ROWS=(table.column_query_tokens or block) // block, BM=tiles.dq_queries, BN=tiles.dq_keys, **shared,
        num_warps=tiles.dq_warps, num_stages=tiles.dq_stages,
    )  # fmt: skip
    split = min(SPLIT_BLOCKS * block, S)
    summed = S if columns is not None else max(split, sink)
    sum_k, sum_v = torch.zeros(2, B, K, summed, D, dtype=torch.float32, device=q_BHTD.device).unbind()
    add_single_keys(
        q_BHTD, k_BKSD, v_BKSD, dout_BHTD, shift, delta, sum_k, sum_v, pairs.bits, table, scale=scale
    )
    per_block = block // tiles.dkv_keys
    parts = triton.cdiv(split, block) * per_block
    dkv_kernel[(num_blocks * per_block + parts * (SPLIT_PARTS - 1), B * K)](
        q_BHTD, k_BKSD, v_BKSD, dout_BHTD, shift, delta, dk, dv, sum_k, sum_v,
        pairs.bits, pairs.key_list, pairs.key_starts, pairs.key_counts, table.first_place,
        *strides, *dk.stride()[:3], *dv.stride()[:3], K, *sizes, window, summed, parts, scale,
        GROUP=H // K, PARTS=SPLIT_PARTS, BM=tiles.dkv_queries, BN=tiles.dkv_keys, **shared,
        num_warps=tiles.dkv_warps, num_stages=tiles.dkv_stages,
    )  # fmt: skip
    for sums, x in ((sum_k, dk), (sum_v, dv)):
        x[:, :, :split].copy_(sums[:, :, :split])
    return dq, dk, dv


@triton.jit
def _prepare(
    Out, DO, LSE, DLSE, Shift, Delta, so_b, so_h, so_t, sd_b, sd_h, sd_t, num_heads, num_queries, scale,
    D: tl.constexpr, PAD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """-lse / scale, -inf (which makes P zero) for rows that visit nothing; delta, zero there."""
    query = tl.program_id(0) * BM + tl.arange(0, BM)
    bh = tl.program_id(1).to(tl.int64)
    b, head = bh // num_heads, bh % num_heads
    d = tl.arange(0, PAD)[None, :]
    inside = query < num_queries
    rows = query.to(tl.int64)[:, None]
    mask = inside[:, None] & (d < D)
    out = tl.load(Out + b * so_b + head * so_h + rows * so_t + d, mask=mask, other=0.0).to(tl.float32)
    do = tl.load(DO + b * sd_b + head * sd_h + rows * sd_t + d, mask=mask, other=0.0).to(tl.float32)
    lse = tl.load(LSE + bh * num_queries + query, mask=inside, other=0.0)
    delta = tl.sum(out * do, axis=1)
    if DLSE is not None:
        delta -= tl.load(DLSE + bh * num_queries + query, mask=inside, other=0.0)
    alive = lse > -float("inf")
    tl.store(Shift + bh * num_queries + query, tl.where(alive, -lse / scale, -float("inf")), mask=inside)
    tl.store(Delta + bh * num_queries + query, tl.where(alive, delta, 0.0), mask=inside)


@triton.jit
def _dq_step(dq, q, do, k, v, shift, delta, visited, scale_log2, PRECISION: tl.constexpr):
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
    ds = tl.exp2(s * scale_log2 + shift[:, None]) * (dp - delta[:, None])
    if visited is not None:
        ds = tl.where(visited, ds, 0.0)
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit
def _dq_masked(
    dq, q, do, K, V, key, some, visited, sk_t, sv_t, shift, delta, scale_log2, D: tl.constexpr, PAD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of any keys; those that nobody of the row visits (not `some`) are not read."""
    d = tl.arange(0, PAD)[None, :]
    wanted = some[:, None] & (d < D)
    rows = key.to(tl.int64)[:, None]
    k = tl.load(K + rows * sk_t + d, mask=wanted, other=0.0)
    v = tl.load(V + rows * sv_t + d, mask=wanted, other=0.0)
    return _dq_step(dq, q, do, k, v, shift, delta, visited, scale_log2, PRECISION)


@triton.jit
def _dq_edges(
    dq, q, do, K, V, bits, row, first, place, offset, num_queries, num_keys, sink, window, sk_t, sv_t,
    shift, delta, scale_log2, BN: tl.constexpr, D: tl.constexpr, PAD: tl.constexpr, BT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Pairs that need a mask: the sink and the block that first_place cuts, then the window and the diagonal."""
    low_place = offset + row * BT
    last_place = tl.minimum(low_place + BT, num_keys) - 1
    end = last_place // BT + 1
    left = first // BT
    left_end = tl.minimum(tl.maximum(tl.cdiv(sink, BT), tl.cdiv(first, BT)), end)
    right = tl.minimum((low_place + 1) // BT, tl.maximum(low_place - window + 1, 0) // BT)
    right = tl.maximum(right, tl.maximum(left, left_end))
    num_left = tl.maximum(left_end - left, 0)
    for at in tl.range(0, num_left + tl.maximum(end - right, 0), num_stages=1):
        block = tl.where(at < num_left, left + at, right + at - num_left)
        member, full, meets = pair_kind(bits, row, block, first, offset, num_queries, sink, window, BT, True)
        if meets & (full == 0):
            for start in tl.range(block * BT, block * BT + BT, BN, num_stages=1):
                key = start + tl.arange(0, BN)
                near = member | (key < sink)
                visited = near[None, :] | (place[:, None] - key[None, :] < window)
                visited &= (key[None, :] <= place[:, None]) & (key >= first)[None, :]
                some = (near | (low_place - key < window)) & (key >= first) & (key <= last_place)
                dq = _dq_masked(
                    dq,
                    q,
                    do,
                    K,
                    V,
                    key,
                    some,
                    visited,
                    sk_t,
                    sv_t,
                    shift,
                    delta,
                    scale_log2,
                    D,
                    PAD,
                    PRECISION,
                )
    return dq


@triton.jit
def _dq_columns(
    dq, q, do, K, V, Columns, num_columns, bits, lowest, last_place, place, window, sk_t, sv_t, shift, delta, scale_log2,
    BN: tl.constexpr, D: tl.constexpr, PAD: tl.constexpr, BT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The single keys of the row, without those that its blocks, the sink or the window visit."""
    n = tl.arange(0, BN)
    for start in tl.range(0, num_columns, BN):
        key = tl.load(Columns + start + n, mask=start + n < num_columns, other=-1)
        some = (key >= lowest) & (key <= last_place)
        key = tl.where(some, key, 0)
        some &= ((tl.load(bits + key // BT // 32) >> (key // BT % 32)) & 1) == 0
        visited = some[None, :] & (key[None, :] <= place[:, None]) & (place[:, None] - key[None, :] >= window)
        dq = _dq_masked(
            dq, q, do, K, V, key, some, visited, sk_t, sv_t, shift, delta, scale_log2, D, PAD, PRECISION
        )
    return dq


@triton.jit
def _dq_kernel(
    Q, K, V, DO, Shift, Delta, DQ, Bits, List, Counts, First, Columns,
    sq_b, sq_h, sq_t, sk_b, sk_h, sk_t, sv_b, sv_h, sv_t, sd_b, sd_h, sd_t, so_b, so_h, so_t,
    num_heads, num_kv, capacity, num_table_heads, num_rows, num_blocks, num_queries, num_keys, sink, window,
    num_column_heads, num_columns, scale,
    SPAN_ROWS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, PAD: tl.constexpr, BT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    begin = (tl.num_programs(0) - 1 - tl.program_id(0)) * BM  # the longest rows first
    bh = tl.program_id(1).to(tl.int64)
    b, head = bh // num_heads, bh % num_heads
    kv = head * num_kv // num_heads
    row = begin // BT
    offset = num_keys - num_queries
    m, n, d = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, PAD)
    in_head = d[None, :] < D
    query = begin + m
    rows = (query < num_queries)[:, None] & in_head
    q = tl.load(
        Q + b * sq_b + head * sq_h + query.to(tl.int64)[:, None] * sq_t + d[None, :], mask=rows, other=0.0
    )
    do = tl.load(
        DO + b * sd_b + head * sd_h + query.to(tl.int64)[:, None] * sd_t + d[None, :], mask=rows, other=0.0
    )
    shift = tl.load(Shift + bh * num_queries + query, mask=query < num_queries, other=-float("inf"))
    delta = tl.load(Delta + bh * num_queries + query, mask=query < num_queries, other=0.0)
    K += b * sk_b + kv * sk_h
    V += b * sv_b + kv * sv_h
    k_tile = K + n[:, None] * sk_t + d[None, :]
    v_tile = V + n[:, None] * sv_t + d[None, :]
    scale_log2 = scale * 1.4426950408889634
    shift *= scale_log2
    dq = tl.zeros([BM, PAD], tl.float32)

    line = (b * num_table_heads + head * num_table_heads // num_heads) * num_rows + row
    per_block: tl.constexpr = BT // BN
    for step in tl.range(0, tl.load(Counts + line) * per_block):
        block = tl.load(List + line * capacity + step // per_block)
        key = (block * BT + step % per_block * BN).to(tl.int64)
        k = tl.load(k_tile + key * sk_t, mask=None if D == PAD else in_head, other=None if D == PAD else 0.0)
        v = tl.load(v_tile + key * sv_t, mask=None if D == PAD else in_head, other=None if D == PAD else 0.0)
        dq = _dq_step(dq, q, do, k, v, shift, delta, None, scale_log2, PRECISION)

    first = first_place_of(First, b)
    words = tl.cdiv(num_blocks, 32)
    bits = table_bits(Bits, b, head, num_table_heads, num_heads, num_rows, words) + row.to(tl.int64) * words
    dq = _dq_edges(
        dq, q, do, K, V, bits, row, first, offset + query, offset, num_queries, num_keys, sink, window, sk_t, sv_t,
        shift, delta, scale_log2, BN, D, PAD, BT, PRECISION,
    )  # fmt: skip
    if Columns is not None:
        line = b * num_column_heads + head * num_column_heads // num_heads
        Columns += (line * tl.cdiv(num_rows, SPAN_ROWS) + row // SPAN_ROWS) * num_columns
        last_place = tl.minimum(offset + row * BT + BT, num_keys) - 1
        dq = _dq_columns(
            dq, q, do, K, V, Columns, num_columns, bits, tl.maximum(first, sink), last_place, offset + query, window, sk_t,
            sv_t, shift, delta, scale_log2, BN, D, PAD, BT, PRECISION,
        )  # fmt: skip
    target = DQ + b * so_b + head * so_h + query.to(tl.int64)[:, None] * so_t + d[None, :]
    tl.store(target, (dq * scale).to(DQ.dtype.element_ty), mask=rows)
