# mypy: disable-error-code="no-untyped-def"
"""The kernel: one balanced list of key tiles over all heads, an even share of it for each program.

The tiles of head 0, then of head 1 and so on are numbered through. Program p of P takes the p-th of P
equal parts of this list, whatever heads it crosses, and leaves one partial result per head in slot `p + head`: from one piece to the next
the program, the head or both go up, so no two pieces share a slot, and the slots of a head lie side by side.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longspan.ops.decode.tile import PAGED, POOL, absorb, held_tokens, load_tile, locate

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
MOST_QUERIES = tl.constexpr(16)


@triton.jit
def _program_of(tile, share, extra):
    """Who takes a tile when the first `extra` programs have one more than `share`."""
    inside = tile < extra * (share + 1)
    return tl.where(inside, tile // (share + 1), extra + (tile - extra * (share + 1)) // tl.maximum(share, 1))


@triton.jit
def _share_of_list(
    program, heads, tiles, num_heads, num_programs, first, count, WAVE: tl.constexpr, LEAST_TILES: tl.constexpr
):  # fmt: skip
    """First tile of a program and the one behind its last; the first program also says which slots each head has."""
    total = tl.sum(tiles, 0)
    ends = tl.cumsum(tiles, 0)
    # whole waves of programs, more than one only where each program keeps enough to do
    waves = tl.maximum(total // (WAVE * LEAST_TILES), 1)
    active = tl.minimum(waves * WAVE, num_programs)
    share = total // active
    extra = total - share * active
    if tl.program_id(0) == 0:
        first_program = _program_of(ends - tiles, share, extra)
        last_program = _program_of(ends - 1, share, extra)
        inside = heads < num_heads
        tl.store(first + heads, first_program + heads, mask=inside)
        tl.store(count + heads, tl.where(tiles > 0, last_program - first_program + 1, 0), mask=inside)
    begin = program * share + tl.minimum(program, extra)
    end = begin + share + (program < extra).to(tl.int32)
    return begin, tl.where(program < active, end, begin)


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
):  # fmt: skip
    if ALIKE:  # keys and values with equal strides share their offsets: fewer registers
        v_0, v_1, v_2 = k_0, k_1, k_2
    SHARED: tl.constexpr = (FORM == POOL) | (FORM == PAGED)  # one store for all rows of the batch
    program = tl.program_id(0) // ROW_TILES
    heads = tl.arange(0, HEADS)
    tiles = (held_tokens(lengths, starts, heads, num_heads, capacity, FORM) + BLOCK - 1) // BLOCK
    at, end = _share_of_list(program, heads, tiles, num_heads, num_programs, first, count, WAVE, LEAST_TILES)
    if at < end:
        ends = tl.cumsum(tiles, 0)
        first_head = tl.sum((ends <= at).to(tl.int32), 0)
        last_head = tl.sum((ends < end).to(tl.int32), 0)
        head_begin = tl.sum(tl.where(heads < first_head, tiles, 0), 0)
        row = (tl.program_id(0) - program * ROW_TILES) * ROWS + tl.arange(0, ROWS)
        query = row % num_queries
        columns = tl.arange(0, D_POW2)
        there = (row < G * num_queries)[:, None] & (columns < D)[None, :]
        for head in tl.range(first_head, last_head + 1, num_stages=1):
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
            stop = tl.minimum(end - head_begin, head_tiles)
            acc, top, weights = _visit(
                queries, _own_bits(own_tree, query, num_queries, TREE), at - head_begin, stop, k, v, k_tma, v_tma,
                (k_0, k_1, k_2), (v_0, v_1, v_2), batch, kv_head, length, start, entries, num_entries, limit,
                num_queries, scale_log2, D, D_POW2, ROWS, BLOCK, STAGES, FORM, PAGE, TMA,
            )  # fmt: skip
            safe = tl.where(weights > 0, weights, 1.0)
            lse = tl.where(weights > 0, (top + tl.log2(safe)) * LN2, float("-inf"))
            slot = (program + head).to(tl.int64) * (G * num_queries) + row
            tl.store(part_lse + slot, lse, mask=row < G * num_queries)
            tl.store(part_out + slot[:, None] * D + columns[None, :], acc / safe[:, None], mask=there)
            at = head_begin + stop
            head_begin += head_tiles
