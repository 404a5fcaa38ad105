# mypy: disable-error-code="no-untyped-def"
"""Which rows meet which key blocks, seen from both sides, for the backward pass.

A row (of queries) and a key block are a *full* pair when every query of the row visits every key of the block; such pairs
need no mask and are listed. All other pairs that meet (at the diagonal, at an edge, in part through the sink or the window)
are found again by the kernels with `pair_kind`, which reads the bitmap. Everything is built on the device, with sizes that
do not depend on the table's values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan.ops.block_sparse.table import BlockTable


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The pairs of one table, all int32; NQ rows, NB key blocks, h heads of the table.

    Args:
        bits: `[B, h, NQ, ceil(NB / 32)]`, bit j % 32 of word j // 32 is set when block j is in the row's table entry.
        row_list: `[B, h, NQ, capacity]`, the key blocks of each row's full pairs, ascending.
        row_counts: `[B, h, NQ]`, how many of them.
        key_list: `(head within the group << 24) + row`, the rows of each key block's full pairs, one list after another;
            full through the table or the window only.
        key_starts, key_counts: `[B, K, NB]`, where the list of a key block starts (int64) and how long it is.
    """

    bits: Tensor
    row_list: Tensor
    row_counts: Tensor
    key_list: Tensor
    key_starts: Tensor
    key_counts: Tensor


def find_pairs(table: BlockTable, *, num_heads: int, num_kv_heads: int, T: int, S: int) -> Pairs:
    """List the full pairs of a table from both sides, without waiting for the device.

    Args:
        table: as in `block_sparse_prefill`; entries out of range are left out.
        num_heads, num_kv_heads: H and K.
        T, S: query tokens and stored tokens.
    """
    B, h, NQ, N = table.index.shape
    block = table.block_tokens
    NB = -(-S // block)
    device = table.index.device
    capacity = max(1, min(NB, N + table.sink_tokens // block + table.window_tokens // block))
    groups = num_heads // num_kv_heads

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    found = Pairs(
        bits=torch.zeros((B, h, NQ, -(-NB // 32)), dtype=torch.int32, device=device),
        row_list=empty(B, h, NQ, capacity),
        row_counts=empty(B, h, NQ),
        key_list=empty(B * num_heads * NQ * capacity),
        key_starts=empty(B, num_kv_heads, NB, dtype=torch.int64),
        key_counts=empty(B, num_kv_heads, NB),
    )
    cursor = torch.zeros(1, dtype=torch.int64, device=device)
    sizes = (S - T, T, NQ, NB)
    sink, window = min(table.sink_tokens, S), min(table.window_tokens, S)
    _mark[(NQ, B * h)](
        table.index.contiguous(), table.counts.contiguous(), found.bits, NQ, NB, N, CHUNK=256, num_warps=2
    )  # fmt: skip
    chunk = min(1024, triton.next_power_of_2(max(NQ, NB)))
    shared = {"BT": block, "CHUNK": chunk, "num_warps": 4}
    _list_row[(NQ, B * h)](
        found.bits,
        table.first_place,
        found.row_list,
        found.row_counts,
        h,
        capacity,
        *sizes,
        sink,
        window,
        **shared,
    )
    _list_key_block[(NB, B * num_kv_heads)](
        found.bits, table.first_place, found.key_list, found.key_starts, found.key_counts, cursor,
        h, num_kv_heads, *sizes, window, GROUP=groups, **shared
    )  # fmt: skip
    return found


@triton.jit
def first_place_of(First, b):
    """The first place of the batch entry that is not padding, 0 without padding."""
    first = 0
    if First is not None:
        first = tl.maximum(tl.load(First + b), 0)
    return first


@triton.jit
def pair_kind(
    bits_row, row, block, first, offset, num_queries, sink, window, BT: tl.constexpr, SHORT_ROW: tl.constexpr
):
    """Whether (row, block) is in the table, is a full pair, and meets at all; scalars or tensors of int1.

    `bits_row` points to the words of the row; the caller sees to it that row and block are in range. The last row may have
    fewer than BT queries: `SHORT_ROW` says whether its pairs can be full.
    """
    low = block * BT
    high = low + BT - 1
    query = offset + row * BT
    last = tl.minimum(query + BT, offset + num_queries) - 1
    member = ((tl.load(bits_row + block // 32) >> (block % 32)) & 1) != 0
    covered = member | (high < sink) | (query + BT - 1 - low < window)
    inside = (high <= query) & (low >= first)
    if not SHORT_ROW:
        inside = inside & (query + BT <= offset + num_queries)
    near = member | (low < sink) | ((window > 0) & (query - high < window))
    meets = near & (low <= last) & (high >= first)
    return member, covered & inside, meets


@triton.jit
def _mark(Index, Counts, Bits, num_rows, num_blocks, entries, CHUNK: tl.constexpr):
    line = tl.program_id(1).to(tl.int64) * num_rows + tl.program_id(0)
    used = tl.minimum(tl.load(Counts + line), entries)
    words = Bits + line * tl.cdiv(num_blocks, 32)
    for start in range(0, used, CHUNK):
        at = start + tl.arange(0, CHUNK)
        block = tl.load(Index + line * entries + at, mask=at < used, other=-1)
        inside = (block >= 0) & (block < num_blocks)
        tl.atomic_or(words + block // 32, 1 << (block % 32), mask=inside)


@triton.jit
def _list_row(
    Bits, First, List, Counts, num_table_heads, capacity, offset, num_queries, num_rows, num_blocks, sink, window,
    BT: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    line = tl.program_id(1).to(tl.int64) * num_rows + row
    first = first_place_of(First, tl.program_id(1) // num_table_heads)
    bits = Bits + line * tl.cdiv(num_blocks, 32)
    found = 0
    for start in range(0, num_blocks, CHUNK):
        at = start + tl.arange(0, CHUNK)
        block = tl.minimum(at, num_blocks - 1)
        _, full, _ = pair_kind(bits, row, block, first, offset, num_queries, sink, window, BT, SHORT_ROW=True)
        one = (full & (at < num_blocks)).to(tl.int32)
        tl.store(List + line * capacity + found + tl.cumsum(one) - one, at, mask=one != 0)
        found += tl.sum(one)
    tl.store(Counts + line, found)


@triton.jit
def _full_rows(
    bits,
    start,
    block,
    first,
    offset,
    num_queries,
    num_rows,
    words,
    window,
    BT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The rows start .. start + CHUNK - 1 and, as 0 or 1, which of them are full pairs with the block.

    The sink does not count: every row visits it, and `backward_keys.py` spreads that work over many programs.
    """
    at = start + tl.arange(0, CHUNK)
    row = tl.minimum(at, num_rows - 1)
    _, full, _ = pair_kind(
        bits + row * words, row, block, first, offset, num_queries, 0, window, BT, SHORT_ROW=False
    )
    return at, (full & (at < num_rows)).to(tl.int32)


@triton.jit
def _list_key_block(
    Bits, First, List, Starts, Counts, Cursor, num_table_heads, num_kv, offset, num_queries, num_rows, num_blocks,
    window, GROUP: tl.constexpr, BT: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    b = tl.program_id(1) // num_kv
    kv = tl.program_id(1) % num_kv
    first = first_place_of(First, b)
    words = tl.cdiv(num_blocks, 32)
    # Rows before this one end before the block starts, or cross it.
    lowest = tl.maximum(block * BT - offset, 0) // BT // CHUNK * CHUNK
    found = 0
    for g in range(GROUP):
        bits = table_bits(Bits, b, kv * GROUP + g, num_table_heads, num_kv * GROUP, num_rows, words)
        for start in range(lowest, num_rows, CHUNK):
            _, one = _full_rows(
                bits, start, block, first, offset, num_queries, num_rows, words, window, BT, CHUNK
            )
            found += tl.sum(one)
    # Where a list stands depends on the order of arrival; what it holds does not.
    begin = tl.atomic_add(Cursor, tl.cast(found, tl.int64))
    line = tl.program_id(1).to(tl.int64) * num_blocks + block
    tl.store(Starts + line, begin)
    tl.store(Counts + line, found)
    done = begin
    for g in range(GROUP):
        bits = table_bits(Bits, b, kv * GROUP + g, num_table_heads, num_kv * GROUP, num_rows, words)
        for start in range(lowest, num_rows, CHUNK):
            at, one = _full_rows(
                bits, start, block, first, offset, num_queries, num_rows, words, window, BT, CHUNK
            )
            tl.store(List + done + tl.cumsum(one) - one, at + (g << 24), mask=one != 0)
            done += tl.sum(one)


@triton.jit
def table_bits(Bits, b, head, num_table_heads, num_heads, num_rows, words):
    """Where the bitmap of a query head starts; the heads of a table are shared by equal numbers of query heads."""
    line = b.to(tl.int64) * num_table_heads + head * num_table_heads // num_heads
    return Bits + line * num_rows * words
