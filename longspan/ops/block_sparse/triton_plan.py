# mypy: disable-error-code="no-untyped-def"
"""Before the Triton kernel: each row's blocks as one sorted list, those that need no mask first.

Sorting by bits of a word in memory makes neighbouring programs read neighbouring keys, drops what lies outside, and merges
the sink and the window with the table, so that no pair is visited twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan.ops.block_sparse.table import BlockTable


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sorted blocks of each row; `h`, NQ and places as in BlockTable.

    Args:
        blocks: int32 `[B, h, NQ, W]`. The first `num_full` of a row need no mask, but for causality in the last one when
            it begins at the row's first query (only if asked for); up to `num_all` follow other blocks that reach past
            that query or below first_place (block number j), or of which only the sink or the window is visited (-1 - j).
        num_full, num_all: int32 `[B, h, NQ]`.
        bits: int32 `[B, h, NQ, words]`: bit j % 32 of word j // 32 says that block j is in the table.
    """

    blocks: Tensor
    num_full: Tensor
    num_all: Tensor
    bits: Tensor


def plan_blocks(table: BlockTable, *, num_queries: int, num_keys: int, diagonal: bool) -> Plan:
    """Build the plan on the table's device, without a synchronisation.

    Args:
        table: as in `block_sparse_prefill`.
        num_queries, num_keys: T and S.
        diagonal: count a block that begins at its row's first query as full.
    """
    B, h, NQ, N = table.index.shape
    block, device = table.block_tokens, table.index.device
    num_blocks = -(-num_keys // block)
    sink, window = min(table.sink_tokens, num_keys), min(table.window_tokens, num_keys)
    extra = (-(-sink // block) if sink else 0) + (-(-window // block) + 2 if window else 0)
    width = max(1, min(num_blocks, N + extra))
    chunk = min(1024, max(32, triton.next_power_of_2(num_blocks)))
    words = -(-num_blocks // chunk) * (chunk // 32)
    first_place = None if table.first_place is None else table.first_place.contiguous()
    plan = Plan(
        blocks=torch.empty(B, h, NQ, width, dtype=torch.int32, device=device),
        num_full=torch.empty(B, h, NQ, dtype=torch.int32, device=device),
        num_all=torch.empty(B, h, NQ, dtype=torch.int32, device=device),
        bits=torch.empty(B, h, NQ, words, dtype=torch.int32, device=device),
    )
    _plan_kernel[(B * h * NQ,)](
        table.index, table.counts, first_place, plan.blocks, plan.num_full, plan.num_all, plan.bits,
        *table.index.stride(), *table.counts.stride(), h, NQ, N, num_queries, num_keys, num_blocks,
        width, words, sink, window,
        BLOCK=block, CHUNK=chunk, DIAGONAL=diagonal, num_warps=1 if chunk <= 128 else 4,
    )  # fmt: skip
    return plan


@triton.jit(
    do_not_specialize=(
        "stride_ib stride_ih stride_iq stride_in stride_cb stride_ch stride_cq num_heads num_rows most num_queries num_keys "
        "num_blocks width words sink window"
    ).split()
)
def _plan_kernel(
    index_ptr, counts_ptr, first_ptr, blocks_ptr, num_full_ptr, num_all_ptr, bits_ptr,
    stride_ib, stride_ih, stride_iq, stride_in, stride_cb, stride_ch, stride_cq, num_heads, num_rows, most,
    num_queries, num_keys, num_blocks, width, words, sink, window,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr, DIAGONAL: tl.constexpr,
):  # fmt: skip
    """One row: its table's bits, then two passes over the blocks: count those that need no mask, write the list."""
    pid = tl.program_id(0)
    row = pid % num_rows
    head = (pid // num_rows) % num_heads
    batch = (pid // num_rows // num_heads).to(tl.int64)
    low = num_keys - num_queries + row * BLOCK
    high = tl.minimum(low + BLOCK, num_keys) - 1
    first = 0
    if first_ptr is not None:
        first = tl.load(first_ptr + batch)
    bits_ptr += pid.to(tl.int64) * words
    blocks_ptr += pid.to(tl.int64) * width
    lane = tl.arange(0, CHUNK)
    for start in tl.range(0, words, CHUNK):
        tl.store(bits_ptr + start + lane, 0, mask=start + lane < words)
    tl.debug_barrier()

    index_ptr += batch * stride_ib + head.to(tl.int64) * stride_ih + row.to(tl.int64) * stride_iq
    count = tl.minimum(tl.load(counts_ptr + batch * stride_cb + head * stride_ch + row * stride_cq), most)
    for start in tl.range(0, count, CHUNK):
        used = start + lane < count
        j = tl.load(index_ptr + (start + lane) * stride_in, mask=used, other=-1)
        inside = used & (j >= 0) & (j < num_blocks)
        tl.atomic_or(bits_ptr + j // 32, 1 << (j % 32), mask=inside, sem="relaxed", scope="cta")
    tl.debug_barrier()

    last = high // BLOCK + 1
    num_full = 0
    for start in tl.range(0, last, CHUNK):
        full, masked, whole = _classes(
            bits_ptr, start + lane, low, high, first, sink, window, BLOCK, DIAGONAL
        )
        num_full += tl.sum(full.to(tl.int32), 0)
    at_full = 0
    at_masked = num_full
    for start in tl.range(0, last, CHUNK):
        j = start + lane
        full, masked, whole = _classes(bits_ptr, j, low, high, first, sink, window, BLOCK, DIAGONAL)
        ones = full.to(tl.int32)
        tl.store(blocks_ptr + at_full + tl.cumsum(ones, 0) - 1, j, mask=full)
        at_full += tl.sum(ones, 0)
        ones = masked.to(tl.int32)
        tl.store(blocks_ptr + at_masked + tl.cumsum(ones, 0) - 1, tl.where(whole, j, -1 - j), mask=masked)
        at_masked += tl.sum(ones, 0)
    tl.store(num_full_ptr + pid, num_full)
    tl.store(num_all_ptr + pid, at_masked)


@triton.jit
def _classes(bits_ptr, j, low, high, first, sink, window, BLOCK: tl.constexpr, DIAGONAL: tl.constexpr):
    """Of blocks j: needs no mask; needs one; every pair is visited but for causality and padding."""
    begin = j * BLOCK
    end = begin + BLOCK
    alive = (begin <= high) & (end > first)
    word = tl.load(bits_ptr + j // 32, mask=alive, other=0)
    whole = ((word >> (j % 32)) & 1) != 0
    whole = whole | (end <= sink) | (begin > high - window)
    part = (begin < sink) | ((window > 0) & (end > low - window + 1))
    full = alive & whole & ((end <= low + 1) | (DIAGONAL & (begin == low))) & (begin >= first)
    masked = alive & (whole | part) & (full == 0)
    return full, masked, whole
