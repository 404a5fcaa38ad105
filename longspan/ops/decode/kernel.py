# mypy: disable-error-code="no-untyped-def"
"""The kernel: the key tiles of every head are cut into runs of one length, a program takes a run.

The length is the least for which the runs of all heads are no more than the programs. Run i of the list (head 0's first)
leaves its partial result in slot i, so the slots of a head lie side by side. A program keeps to one head: with a loop over
heads around the pipelined loop, programs that crossed from one to the next were wrong under triton 3.6 on a GPU, and right
in the interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longspan.ops.decode.tile import PAGED, POOL, absorb, held_tokens, load_tile, locate
from longspan.ops.overlap import follow

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
MOST_QUERIES = tl.constexpr(16)


@triton.jit
def _runs(heads, tiles, num_heads, num_programs, first, count, WAVE: tl.constexpr, LEAST_TILES: tl.constexpr):
    """Tiles of a run, and the number of runs up to the end of each head; the first program also says which slots each
    head has."""
    total = tl.sum(tiles, 0)
    # whole waves of programs, more than one only where each program keeps enough to do
    waves = tl.maximum(total // (WAVE * LEAST_TILES), 1)
    active = tl.minimum(waves * WAVE, num_programs)
    most = tl.maximum(active - num_heads, 1)  # rounding up costs every head less than one run
    size = tl.maximum((total + most - 1) // most, 1)
    runs = (tiles + size - 1) // size
    ends = tl.cumsum(runs, 0)
    if tl.program_id(0) == 0:
        inside = heads < num_heads
        tl.store(first + heads, ends - runs, mask=inside)
        tl.store(count + heads, runs, mask=inside)
    return size, ends


@triton.jit
def _own_bits(tree, query, num_queries, TREE: tl.constexpr):
    """Bit u: the query sees own token u."""
    bits = (2 << query) - 1
    if TREE:
        bit = tl.arange(0, MOST_QUERIES)
        pairs = tree + query[:, None] * num_queries + bit[None, :]
        marks = tl.load(pairs, mask=(bit < num_queries)[None, :], other=0) != 0
        bits = tl.sum(marks.to(tl.int32) << bit[None, :], 1)
    return bits


@triton.jit
def _visit(
    q, own_bits, begin, stop, k, v, k_tma, v_tma, k_strides, v_strides, batch, kv_head, length, start, entries,
    num_entries, limit, num_queries, scale_log2, D: tl.constexpr, D_POW2: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr, FORM: tl.constexpr, PAGE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """The tiles `begin .. stop - 1` of a head: accumulator, greatest logit (base 2) and sum of weights."""
    # rows of a tile that lie behind each other need no table lookup of their own
    RUN: tl.constexpr = FORM < PAGED or PAGE % BLOCK == 0
    CHECKED: tl.constexpr = FORM >= PAGED
    lanes = tl.arange(0, BLOCK)
    columns = tl.arange(0, D_POW2)
    acc = tl.zeros([ROWS, D_POW2], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    weights = tl.zeros([ROWS], tl.float32)
    past = length - num_queries
    whole = tl.maximum(past, 0) // BLOCK
    for tile in tl.range(begin, tl.minimum(stop, whole), num_stages=STAGES):
        second, third, there = locate(
            tile, lanes, length, num_queries, kv_head, start, entries, num_entries, limit, FORM, PAGE, BLOCK, RUN
        )  # fmt: skip
        if TMA:
            corner = [batch.to(tl.int32), second.to(tl.int32), third.to(tl.int32), 0]
            keys = k_tma.load(corner).reshape(BLOCK, D_POW2)
            values = v_tma.load(corner).reshape(BLOCK, D_POW2)
        else:
            keys = load_tile(k, batch, second, third, k_strides, there, lanes, columns, D, RUN, CHECKED)
            values = load_tile(v, batch, second, third, v_strides, there, lanes, columns, D, RUN, CHECKED)
        acc, top, weights = absorb(acc, top, weights, q, keys, values, there[None, :], scale_log2, CHECKED)
    # the own tokens and the end: at most two tiles
    for tile in tl.range(tl.maximum(begin, whole), stop, num_stages=2):
        second, third, there = locate(
            tile, lanes, length, num_queries, kv_head, start, entries, num_entries, limit, FORM, PAGE, BLOCK, False
        )  # fmt: skip
        own = tile * BLOCK + lanes - past
        allowed = (own_bits[:, None] >> tl.maximum(own, 0)[None, :]) & 1
        seen = there[None, :] & ((own < 0)[None, :] | (allowed != 0))
        keys = load_tile(k, batch, second, third, k_strides, there, lanes, columns, D, False, True)
        values = load_tile(v, batch, second, third, v_strides, there, lanes, columns, D, False, True)
        acc, top, weights = absorb(acc, top, weights, q, keys, values, seen, scale_log2, True)
    return acc, top, weights


@triton.jit(do_not_specialize=["capacity", "num_entries", "limit", "num_programs"])
def decode_kernel(
    q, k, v, k_tma, v_tma, lengths, starts, table, tree, part_out, part_lse, first, count,
    num_heads, kv_heads, num_queries, capacity, num_entries, limit, num_programs, scale_log2,
    q_0, q_1, q_2, k_0, k_1, k_2, v_0, v_1, v_2, table_0, table_1, tree_0,
    G: tl.constexpr, D: tl.constexpr, D_POW2: tl.constexpr, ROWS: tl.constexpr, ROW_TILES: tl.constexpr,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, FORM: tl.constexpr, PAGE: tl.constexpr,
    TMA: tl.constexpr, TREE: tl.constexpr, ALIKE: tl.constexpr, WAVE: tl.constexpr, LEAST_TILES: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    follow(OVERLAP)
    if ALIKE:  # keys and values with equal strides share their offsets: fewer registers
        v_0, v_1, v_2 = k_0, k_1, k_2
    SHARED: tl.constexpr = (FORM == POOL) | (FORM == PAGED)  # one store for all rows of the batch
    program = tl.program_id(0) // ROW_TILES
    heads = tl.arange(0, HEADS)
    tiles = (held_tokens(lengths, starts, heads, num_heads, capacity, FORM) + BLOCK - 1) // BLOCK
    size, ends = _runs(heads, tiles, num_heads, num_programs, first, count, WAVE, LEAST_TILES)
    head = tl.sum((ends <= program).to(tl.int32), 0)
    if head < num_heads:
        runs_before = tl.max(tl.where(heads < head, ends, 0), 0)
        at = (program - runs_before) * size
        row = (tl.program_id(0) - program * ROW_TILES) * ROWS + tl.arange(0, ROWS)
        query = row % num_queries
        columns = tl.arange(0, D_POW2)
        there = (row < G * num_queries)[:, None] & (columns < D)[None, :]
        b = (head // kv_heads).to(tl.int64)
        kv_head = head % kv_heads
        length = held_tokens(lengths, starts, head, num_heads, capacity, FORM)
        start = 0
        if FORM == POOL:
            start = tl.load(starts + head)
        entries = table
        if FORM >= PAGED:
            entries = table + b * table_0 + kv_head * table_1
        batch = b * (1 - SHARED)
        own_tree = tree
        if TREE:
            own_tree = tree + b * tree_0
        q_head = (kv_head * G + row // num_queries).to(tl.int64)
        q_row = q + b * q_0 + q_head * q_1 + query * q_2
        queries = tl.load(q_row[:, None] + columns[None, :], mask=there, other=0.0)
        head_tiles = (length + BLOCK - 1) // BLOCK
        stop = tl.minimum(at + size, head_tiles)
        acc, top, weights = _visit(
            queries, _own_bits(own_tree, query, num_queries, TREE), at, stop, k, v, k_tma, v_tma,
            (k_0, k_1, k_2), (v_0, v_1, v_2), batch, kv_head, length, start, entries, num_entries, limit,
            num_queries, scale_log2, D, D_POW2, ROWS, BLOCK, STAGES, FORM, PAGE, TMA,
        )  # fmt: skip
        safe = tl.where(weights > 0, weights, 1.0)
        lse = tl.where(weights > 0, (top + tl.log2(safe)) * LN2, float("-inf"))
        slot = program.to(tl.int64) * (G * num_queries) + row
        tl.store(part_lse + slot, lse, mask=row < G * num_queries)
        tl.store(part_out + slot[:, None] * D + columns[None, :], acc / safe[:, None], mask=there)
