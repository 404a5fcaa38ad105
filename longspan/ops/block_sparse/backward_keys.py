# mypy: disable-error-code="no-untyped-def"
"""dk and dv of block-sparse attention: by key blocks, and by single keys (the sink and the columns)."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from longspan.ops.block_sparse.pairs import first_place_of, pair_kind, table_bits
from longspan.ops.block_sparse.table import BlockTable

_SINK_ROWS = 8  # rows of queries that one program takes for its keys of the sink


def add_single_keys(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, dout_BHTD: Tensor, shift_BHT: Tensor, delta_BHT: Tensor,
    sum_k: Tensor, sum_v: Tensor, bits: Tensor, table: BlockTable, *, scale: float,
) -> None:  # fmt: skip
    """Add what the sink and the columns give to dk and dv, where neither the table's blocks nor the window visit them.

    Args:
        shift_BHT, delta_BHT: float32, as `block_sparse_backward` prepares them.
        sum_k, sum_v: float32 `[B, K, summed, D]`, the first places of the store; added to by atomics.
        bits: the table's bitmap, of `Pairs`.
    """
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    block, sink, window = table.block_tokens, min(table.sink_tokens, S), min(table.window_tokens, S)
    h, num_rows = bits.shape[1:3]
    strides = [step for x in (q_BHTD, k_BKSD, v_BKSD, dout_BHTD) for step in x.stride()[:3]]
    wide = D <= 128 and q_BHTD.element_size() == 2
    precision = "ieee" if q_BHTD.element_size() == 4 else "tf32"
    jobs: list[tuple[Tensor | None, int, int, int]] = []
    if sink:
        jobs.append((None, 1, sink, _SINK_ROWS))
    if table.columns is not None:
        assert table.column_query_tokens is not None
        jobs.append(
            (table.columns.contiguous(), table.columns.shape[1], table.columns.shape[3], table.column_query_tokens // block)
        )  # fmt: skip
    for columns, heads, width, span_rows in jobs:
        lines = K if heads <= K else H
        num_keys = min(128 if wide else 32, max(16, triton.next_power_of_2(width)))
        _single_kernel[(triton.cdiv(width, num_keys), triton.cdiv(num_rows, span_rows), B * lines)](
            q_BHTD, k_BKSD, v_BKSD, dout_BHTD, shift_BHT, delta_BHT, sum_k, sum_v, bits, table.first_place, columns,
            *strides, H, K, lines, h, num_rows, -(-S // block), T, S, sink, window, heads, width, sum_k.shape[2], scale,
            GROUP=H // lines, SPAN_ROWS=span_rows, BM=min(block, 32), BN=num_keys, D=D,
            PAD=triton.next_power_of_2(D), BT=block, PRECISION=precision, num_warps=8 if num_keys >= 64 else 4, num_stages=2,
        )  # fmt: skip


@triton.jit
def _dkv_step(
    dk,
    dv,
    k,
    v,
    q,
    do,
    shift,
    delta,
    visited,
    scale_log2,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Both products start at a row of the softmax (-lse / scale, -delta), which leaves the registers to dk and dv."""
    s = tl.broadcast_to(shift[None, :], [BN, BM])
    p = tl.exp2(tl.dot(k, tl.trans(q), s, input_precision=PRECISION) * scale_log2)
    if visited is not None:
        p = tl.where(visited, p, 0.0)
    dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
    dp = tl.broadcast_to(-delta[None, :], [BN, BM])
    ds = p * tl.dot(v, tl.trans(do), dp, input_precision=PRECISION)
    if visited is not None:
        ds = tl.where(visited, ds, 0.0)
    return tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION), dv


@triton.jit
def _masked_rows(
    Q, DO, Shift, Delta, begin, b, head, num_heads, num_queries, sq_b, sq_h, sq_t, sd_b, sd_h, sd_t,
    BM: tl.constexpr, D: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """q, dout, -lse / scale and delta of BM queries; zero for those past the end and those that visit nothing."""
    query = begin + tl.arange(0, BM)
    d = tl.arange(0, PAD)[None, :]
    line = (b.to(tl.int64) * num_heads + head) * num_queries
    shift = tl.load(Shift + line + query, mask=query < num_queries, other=-float("inf"))
    delta = tl.load(Delta + line + query, mask=query < num_queries, other=0.0)
    mask = (shift > -float("inf"))[:, None] & (d < D)
    rows = query.to(tl.int64)[:, None]
    q = tl.load(Q + b * sq_b + head * sq_h + rows * sq_t + d, mask=mask, other=0.0)
    do = tl.load(DO + b * sd_b + head * sd_h + rows * sd_t + d, mask=mask, other=0.0)
    return q, do, shift, delta


@triton.jit
def dkv_kernel(
    Q, K, V, DO, Shift, Delta, DK, DV, SumK, SumV, Bits, List, Starts, Counts, First,
    sq_b, sq_h, sq_t, sk_b, sk_h, sk_t, sv_b, sv_h, sv_t, sd_b, sd_h, sd_t, so_b, so_h, so_t, sp_b, sp_h, sp_t,
    num_kv, num_table_heads, num_rows, num_blocks, num_queries, num_keys, window, summed, num_split, scale,
    GROUP: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, PAD: tl.constexpr,
    BT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys; the first `num_split` tiles are divided among PARTS programs, which add to SumK and SumV."""
    pid = tl.program_id(0)
    split = pid < num_split * PARTS
    tile = tl.where(split, pid // PARTS, pid - num_split * (PARTS - 1))
    part = tl.where(split, pid % PARTS, 0)
    b = (tl.program_id(1) // num_kv).to(tl.int64)
    kv = (tl.program_id(1) % num_kv).to(tl.int64)
    num_heads = num_kv * GROUP
    block = tile * BN // BT
    m, n, d = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, PAD)
    in_head = d[None, :] < D
    first = first_place_of(First, b)
    key = tile * BN + n
    wanted = ((key < num_keys) & (key >= first))[:, None] & in_head
    rows = key.to(tl.int64)[:, None]
    k = tl.load(K + b * sk_b + kv * sk_h + rows * sk_t + d[None, :], mask=wanted, other=0.0)
    v = tl.load(V + b * sv_b + kv * sv_h + rows * sv_t + d[None, :], mask=wanted, other=0.0)
    scale_log2 = scale * 1.4426950408889634
    dk = tl.zeros([BN, PAD], tl.float32)
    dv = tl.zeros([BN, PAD], tl.float32)

    line = tl.program_id(1).to(tl.int64) * num_blocks + block
    count = tl.load(Counts + line)
    List += tl.load(Starts + line)
    per_row: tl.constexpr = BT // BM
    parts = tl.where(split, PARTS, 1)
    if (part > 0) & (count * part // parts == count * (part + 1) // parts):
        return
    q_tile = Q + b * sq_b + m[:, None] * sq_t + d[None, :]
    do_tile = DO + b * sd_b + m[:, None] * sd_t + d[None, :]
    for step in tl.range(count * part // parts * per_row, count * (part + 1) // parts * per_row):
        code = tl.load(List + step // per_row)
        head = kv * GROUP + (code >> 24)
        begin = (code & 0xFFFFFF) * BT + step % per_row * BM
        at = (b * num_heads + head) * num_queries + begin
        mask = None if D == PAD else in_head
        other = None if D == PAD else 0.0
        q = tl.load(q_tile + head * sq_h + begin.to(tl.int64) * sq_t, mask=mask, other=other)
        do = tl.load(do_tile + head * sd_h + begin.to(tl.int64) * sd_t, mask=mask, other=other)
        shift = tl.load(Shift + at + m)
        delta = tl.load(Delta + at + m)
        dk, dv = _dkv_step(dk, dv, k, v, q, do, shift, delta, None, scale_log2, BM, BN, PRECISION)

    offset = num_keys - num_queries
    HALF: tl.constexpr = BM // 2 if BM > 16 else BM  # the masks need registers too
    lowest, num_diagonal, num_masked = _masked_span(block, first, offset, num_queries, num_rows, window, BT)
    for at in tl.range(0, tl.where(part == 0, num_masked, 0) * GROUP, num_stages=1):
        head = kv * GROUP + at // num_masked
        row = at % num_masked
        row = tl.where(row < num_diagonal, lowest + row, num_rows - 1)
        words = tl.cdiv(num_blocks, 32)
        bits = table_bits(Bits, b, head, num_table_heads, num_heads, num_rows, words)
        bits += row.to(tl.int64) * words
        member, full, meets = pair_kind(bits, row, block, first, offset, num_queries, 0, window, BT, False)
        if meets & (full == 0):
            for begin in tl.range(row * BT, row * BT + BT, HALF, num_stages=1):
                q, do, shift, delta = _masked_rows(
                    Q, DO, Shift, Delta, begin, b, head, num_heads, num_queries, sq_b, sq_h, sq_t, sd_b, sd_h, sd_t, HALF, D, PAD
                )  # fmt: skip
                place = (offset + begin + tl.arange(0, HALF))[None, :]
                visited = (member | (place - key[:, None] < window)) & (key[:, None] <= place)
                visited &= (key >= first)[:, None] & (shift > -float("inf"))[None, :]
                dk, dv = _dkv_step(
                    dk, dv, k, v, q, do, shift, delta, visited, scale_log2, HALF, BN, PRECISION
                )
    _store_sums(
        dk * scale, dv, DK + b * so_b + kv * so_h, DV + b * sp_b + kv * sp_h, SumK, SumV, so_t, sp_t,
        tl.program_id(1).to(tl.int64) * summed, key, num_keys, summed, split, D, PAD,
    )  # fmt: skip


@triton.jit
def _masked_span(block, first, offset, num_queries, num_rows, window, BT: tl.constexpr):
    """Rows that may meet the block without being full: the lowest, how many follow one another, how many there are.

    Where there is one more, it is the last row, which has fewer than BT queries.
    """
    low = block * BT
    high = low + BT - 1
    lowest = tl.maximum(low - offset, 0) // BT
    end = tl.cdiv(tl.maximum(high - offset, 0), BT)
    end = tl.maximum(end, tl.cdiv(tl.maximum(high + window - offset, 0), BT) * (window > 0))
    end = tl.minimum(tl.where(first > low, num_rows, end), num_rows)
    num_diagonal = tl.maximum(end - lowest, 0)
    short = ((num_queries % BT) != 0) & (end < num_rows)
    return lowest, num_diagonal, tl.where(high < first, 0, num_diagonal + short.to(tl.int32))


@triton.jit
def _store_sums(
    dk, dv, DK, DV, SumK, SumV, so_t, sp_t, base, key, num_keys, summed, split, D: tl.constexpr, PAD: tl.constexpr
):  # fmt: skip
    """Write one tile of dk and dv with what other programs added before; a divided tile is added to their sums."""
    d = tl.arange(0, PAD)[None, :]
    sums = (base + key)[:, None] * D + d
    in_sums = (key < summed)[:, None] & (d < D)
    if split:
        tl.atomic_add(SumK + sums, dk, mask=in_sums, sem="relaxed")
        tl.atomic_add(SumV + sums, dv, mask=in_sums, sem="relaxed")
    else:
        mask = (key < num_keys)[:, None] & (d < D)
        rows = key.to(tl.int64)[:, None]
        dk += tl.load(SumK + sums, mask=in_sums, other=0.0)
        tl.store(DK + rows * so_t + d, dk.to(DK.dtype.element_ty), mask=mask)
        dv += tl.load(SumV + sums, mask=in_sums, other=0.0)
        tl.store(DV + rows * sp_t + d, dv.to(DV.dtype.element_ty), mask=mask)


@triton.jit
def _single_kernel(
    Q, K, V, DO, Shift, Delta, SumK, SumV, Bits, First, Columns,
    sq_b, sq_h, sq_t, sk_b, sk_h, sk_t, sv_b, sv_h, sv_t, sd_b, sd_h, sd_t,
    num_heads, num_kv, num_lines, num_table_heads, num_rows, num_blocks, num_queries, num_keys, sink, window,
    num_column_heads, width, summed, scale,
    GROUP: tl.constexpr, SPAN_ROWS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, PAD: tl.constexpr,
    BT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BN single keys of one span of rows: columns, or without `Columns` the sink itself."""
    span = tl.program_id(1)
    b = (tl.program_id(2) // num_lines).to(tl.int64)
    head0 = (tl.program_id(2) % num_lines).to(tl.int64) * GROUP
    kv = head0 * num_kv // num_heads
    offset = num_keys - num_queries
    m, d = tl.arange(0, BM), tl.arange(0, PAD)[None, :]
    at = tl.program_id(0) * BN + tl.arange(0, BN)
    first = first_place_of(First, b)
    if Columns is not None:
        line = (b * num_column_heads + head0 * num_column_heads // num_heads) * tl.num_programs(1) + span
        key = tl.load(Columns + line * width + at, mask=at < width, other=-1)
        some = (key >= tl.maximum(first, sink)) & (key < num_keys)
    else:
        key = at
        some = (key >= first) & (key < sink)
    key = tl.where(some, key, 0)
    wanted = some[:, None] & (d < D)
    rows = key.to(tl.int64)[:, None]
    k = tl.load(K + b * sk_b + kv * sk_h + rows * sk_t + d, mask=wanted, other=0.0)
    v = tl.load(V + b * sv_b + kv * sv_h + rows * sv_t + d, mask=wanted, other=0.0)
    scale_log2 = scale * 1.4426950408889634
    dk = tl.zeros([BN, PAD], tl.float32)
    dv = tl.zeros([BN, PAD], tl.float32)
    words = tl.cdiv(num_blocks, 32)
    span_rows = tl.minimum(num_rows - span * SPAN_ROWS, SPAN_ROWS)
    for step in tl.range(0, GROUP * span_rows, num_stages=1):
        head = head0 + step // span_rows
        row = span * SPAN_ROWS + step % span_rows
        last_place = tl.minimum(offset + row * BT + BT, num_keys) - 1
        bits = (
            table_bits(Bits, b, head, num_table_heads, num_heads, num_rows, words) + row.to(tl.int64) * words
        )
        live = some & (((tl.load(bits + key // BT // 32) >> (key // BT % 32)) & 1) == 0)
        live &= (key <= last_place) & (last_place - key >= window)
        if tl.max(live.to(tl.int32), 0) > 0:
            for begin in tl.range(row * BT, row * BT + BT, BM, num_stages=1):
                q, do, shift, delta = _masked_rows(
                    Q, DO, Shift, Delta, begin, b, head, num_heads, num_queries, sq_b, sq_h, sq_t, sd_b, sd_h, sd_t, BM, D, PAD
                )  # fmt: skip
                place = (offset + begin + m)[None, :]
                visited = live[:, None] & (key[:, None] <= place) & (place - key[:, None] >= window)
                visited &= (shift > -float("inf"))[None, :]
                dk, dv = _dkv_step(dk, dv, k, v, q, do, shift, delta, visited, scale_log2, BM, BN, PRECISION)
    sums = ((b * num_kv + kv) * summed + key)[:, None] * D + d
    tl.atomic_add(SumK + sums, dk * scale, mask=wanted, sem="relaxed")
    tl.atomic_add(SumV + sums, dv, mask=wanted, sem="relaxed")
