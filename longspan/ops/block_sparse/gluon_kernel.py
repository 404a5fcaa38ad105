# mypy: disable-error-code="no-untyped-def"
"""Block-sparse forward for Hopper GPUs in Gluon: a warp that copies and two groups of four warps that compute.

A row of 128 queries is one tile, 64 queries a group. The first warp lets the copy engine (TMA) bring blocks of keys and
values into a ring of slots, and barriers in shared memory say which slots are full and which are free. A group starts
the product of its queries with block j, then that of the weights of block j - 1 with its values, and computes the softmax
of block j while the second runs. The two groups start their products in turns, so that the softmax of one also runs under
the products of the other. Programs stay: the queries and first blocks of the next tile arrive while the last one ends.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from longspan.ops.block_sparse.gluon_tile import (
    edge_of,
    entry_of,
    mask_pairs,
    num_rounds,
    pack,
    place_of,
    row_of,
    softmax_step,
    tile_of,
    unpack,
)

# Registers a thread: 3 * 168 at launch are moved from the four warps of which one copies to the two groups.
PREFILL_REGISTERS = 168
CONSUMER_REGISTERS = gl.constexpr(240)
PRODUCER_REGISTERS = gl.constexpr(24)
GROUP_ROWS = gl.constexpr(64)  # queries of one group of four warps: the rows of one wgmma instruction


@gluon.jit
def _fill(desc, batch, head, token, count, ring, full, empty, SLOTS: gl.constexpr):
    slot, parity = place_of(count, SLOTS)
    mbarrier.wait(empty.index(slot), parity ^ 1)
    mbarrier.expect(full.index(slot), desc.block_type.nbytes)
    tma.async_copy_global_to_shared(desc, [batch, head, token, 0], full.index(slot), ring.index(slot))


@gluon.jit
def _produce(descs, plan, geometry, num_tiles, buffers, barriers, BLOCK: gl.constexpr, SLOTS: gl.constexpr):
    """One warp: queries of each tile, then K0 K1 V0 K2 V1 .. V(n-1), the order in which the slots become free."""
    q_desc, k_desc, v_desc = descs
    q_smem, ring = buffers
    q_full, q_empty, full, empty = barriers
    groups = geometry[2]
    count = 0
    for i in range(num_rounds(num_tiles)):
        batch, head, row, line = tile_of(i, geometry)
        kv_head = head // groups
        blocks, num_full, num_all = row_of(plan, line)
        for w in gl.static_range(2):
            mbarrier.wait(q_empty.index(w), (i & 1) ^ 1)
            mbarrier.expect(q_full.index(w), q_desc.block_type.nbytes)
            token = row * BLOCK + w * GROUP_ROWS
            tma.async_copy_global_to_shared(q_desc, [batch, head, token, 0], q_full.index(w), q_smem.index(w))
        last = 0
        for j in range(gl.maximum(num_all, 1)):
            block, whole = entry_of(blocks, j, num_full, num_all)
            _fill(k_desc, batch, kv_head, block * BLOCK, count, ring, full, empty, SLOTS)
            count += 1
            if j > 0:
                _fill(v_desc, batch, kv_head, last * BLOCK, count, ring, full, empty, SLOTS)
                count += 1
            last = block
        _fill(v_desc, batch, kv_head, last * BLOCK, count, ring, full, empty, SLOTS)
        count += 1


@gluon.jit
def _step(
    j, n, base, state, q, ring, bars, blocks, counts, places, scale,
    W: gl.constexpr, MASKED: gl.constexpr, BLOCK: gl.constexpr, D: gl.constexpr, SLOTS: gl.constexpr,
    PING_PONG: gl.constexpr, EDGES: gl.constexpr,
):  # fmt: skip
    """Products of block j with the queries, and of the weights of block j - 1 with its values, while its softmax runs."""
    acc, p, highest, total, turns = state
    full, empty, turn = bars
    k_slot, k_parity = place_of(base + 2 * j - 1, SLOTS)
    v_slot, v_parity = place_of(base + 2 * j, SLOTS)
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, acc.type.layout, 2)
    if MASKED:
        begin, lowest, whole = edge_of(j, n, base, ring, full, blocks, counts, places, BLOCK, D, SLOTS)
    if PING_PONG:
        mbarrier.wait(turn.index(W), (turns & 1) ^ (1 - W))
    k = ring.index(k_slot).reshape([BLOCK, D]).permute((1, 0))
    zero = gl.zeros([GROUP_ROWS, BLOCK], gl.float32, layout)
    s = warpgroup_mma(q, k, zero, use_acc=False, is_async=True)
    mbarrier.wait(full.index(v_slot), v_parity)
    v = ring.index(v_slot).reshape([BLOCK, D])
    acc = warpgroup_mma(unpack(p, ring.dtype, p_layout), v, acc, is_async=True)
    if PING_PONG:
        mbarrier.arrive(turn.index(1 - W), count=1)
    s = warpgroup_mma_wait(1, deps=(s,))
    mbarrier.arrive(empty.index(k_slot), count=1)
    if MASKED:
        s = mask_pairs(s, begin, lowest, whole, places, EDGES)
    weights, factor, highest, total = softmax_step(s, highest, total, scale, MASKED)
    # The next block is waited for here, before the second product is: the assembler moves that wait up to the last
    # branch, and without this one it would come before the softmax, and nothing would overlap.
    slot, parity = place_of(base + 2 * j + 1, SLOTS)
    mbarrier.wait(full.index(slot), parity)
    acc = warpgroup_mma_wait(0, deps=(acc,))
    mbarrier.arrive(empty.index(v_slot), count=1)
    acc = acc * gl.convert_layout(factor, gl.SliceLayout(1, acc.type.layout))[:, None]
    p = pack(weights, ring.dtype)
    return acc, p, highest, total, turns + 1


@gluon.jit
def _consume(
    plan, geometry, sizes, first_ptr, scale, num_tiles, out_desc, lse_ptr, buffers, barriers,
    W: gl.constexpr, BLOCK: gl.constexpr, D: gl.constexpr, SLOTS: gl.constexpr, PING_PONG: gl.constexpr,
    EDGES: gl.constexpr,
):  # fmt: skip
    """Group W of four warps: half W of the queries of each tile."""
    q_smem, ring, out_smem = buffers
    q_full, q_empty, full, empty, turn = barriers
    num_queries, num_keys, sink, window = sizes
    bars = (full, empty, turn)
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    q = q_smem.index(W).reshape([GROUP_ROWS, D])
    base = 0
    turns = 0
    for i in range(num_rounds(num_tiles)):
        batch, head, row, line = tile_of(i, geometry)
        blocks, num_full, num_all = row_of(plan, line)
        counts = (num_full, num_all)
        n = gl.maximum(num_all, 1)
        first = 0
        if first_ptr is not None:
            first = gl.load(first_ptr + batch)
        low = num_keys - num_queries + row * BLOCK
        places = (low, gl.minimum(low + BLOCK, num_keys) - 1, W * GROUP_ROWS, first, sink, window)

        begin, lowest, whole = edge_of(0, n, base, ring, full, blocks, counts, places, BLOCK, D, SLOTS)
        mbarrier.wait(q_full.index(W), i & 1)
        slot, parity = place_of(base, SLOTS)
        mbarrier.wait(full.index(slot), parity)
        k = ring.index(slot).reshape([BLOCK, D]).permute((1, 0))
        zero = gl.zeros([GROUP_ROWS, BLOCK], gl.float32, s_layout)
        s = warpgroup_mma(q, k, zero, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=(s,))
        mbarrier.arrive(empty.index(slot), count=1)
        s = mask_pairs(s, begin, lowest, whole, places, EDGES)
        highest = gl.full([GROUP_ROWS], float("-inf"), gl.float32, rows)
        total = gl.zeros([GROUP_ROWS], gl.float32, rows)
        weights, factor, highest, total = softmax_step(s, highest, total, scale, True)
        p = pack(weights, ring.dtype)
        acc = gl.zeros([GROUP_ROWS, D], gl.float32, o_layout)

        slot, parity = place_of(base + 1, SLOTS)
        mbarrier.wait(full.index(slot), parity)
        state = (acc, p, highest, total, turns)
        for j in range(1, num_all - num_full):
            state = _step(j, n, base, state, q, ring, bars, blocks, counts, places, scale,
                          W, True, BLOCK, D, SLOTS, PING_PONG, EDGES)  # fmt: skip
        for j in range(gl.maximum(num_all - num_full, 1), n):
            state = _step(j, n, base, state, q, ring, bars, blocks, counts, places, scale,
                          W, False, BLOCK, D, SLOTS, PING_PONG, EDGES)  # fmt: skip
        acc, p, highest, total, turns = state
        mbarrier.arrive(q_empty.index(W), count=1)
        base += 2 * n
        slot, parity = place_of(base - 1, SLOTS)
        v = ring.index(slot).reshape([BLOCK, D])
        acc = warpgroup_mma(unpack(p, ring.dtype, p_layout), v, acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(empty.index(slot), count=1)

        share = 1.0 / gl.where(total > 0, total, 1.0)
        acc = acc * gl.convert_layout(share, gl.SliceLayout(1, o_layout))[:, None]
        tma.store_wait(0)
        gl.thread_barrier()
        out_smem.index(W).reshape([GROUP_ROWS, D]).store(acc.to(out_smem.dtype))
        fence_async_shared()
        gl.thread_barrier()
        query = row * BLOCK + W * GROUP_ROWS
        tma.async_copy_shared_to_global(out_desc, [batch, head, query, 0], out_smem.index(W))
        query = query + gl.arange(0, GROUP_ROWS, rows)
        lse = (highest + gl.log2(total)) * 0.6931471805599453
        lse_row = lse_ptr + (batch * geometry[1] + head).to(gl.int64) * num_queries
        gl.store(lse_row + query, lse, mask=query < num_queries)
    tma.store_wait(0)


@gluon.jit(
    do_not_specialize=(
        "num_tiles num_rows num_heads groups table_heads width num_queries num_keys sink window".split()
    )
)
def prefill_kernel(
    q_desc, k_desc, v_desc, out_desc, lse_ptr, blocks_ptr, num_full_ptr, num_all_ptr, first_ptr, scale,
    num_tiles, num_rows, num_heads, groups, table_heads, width, num_queries, num_keys, sink, window,
    BLOCK: gl.constexpr, D: gl.constexpr, SLOTS: gl.constexpr, PING_PONG: gl.constexpr, EDGES: gl.constexpr,
):  # fmt: skip
    """Descriptors of `[B, H, T, D]` and `[B, K, S, D]` tensors; lse `[B, H, T]`; the fields of a Plan; scale * log2(e)."""
    dtype: gl.constexpr = q_desc.dtype
    q_smem = gl.allocate_shared_memory(dtype, [2, 1, 1, GROUP_ROWS, D], q_desc.layout)
    out_smem = gl.allocate_shared_memory(dtype, [2, 1, 1, GROUP_ROWS, D], out_desc.layout)
    ring = gl.allocate_shared_memory(dtype, [SLOTS, 1, 1, BLOCK, D], k_desc.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for w in gl.static_range(2):
        mbarrier.init(q_full.index(w), count=1)
        mbarrier.init(q_empty.index(w), count=1)
        mbarrier.init(turn.index(w), count=1)
    for slot in gl.static_range(SLOTS):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=2)

    plan = (blocks_ptr, num_full_ptr, num_all_ptr, width)
    geometry = (num_rows, num_heads, groups, table_heads)
    sizes = (num_queries, num_keys, sink, window)
    buffers = (q_smem, ring, out_smem)
    barriers = (q_full, q_empty, full, empty, turn)
    gl.warp_specialize(
        [
            (_consume, (plan, geometry, sizes, first_ptr, scale, num_tiles, out_desc, lse_ptr, buffers,
                        barriers, 0, BLOCK, D, SLOTS, PING_PONG, EDGES)),
            (_consume, (plan, geometry, sizes, first_ptr, scale, num_tiles, out_desc, lse_ptr, buffers,
                        barriers, 1, BLOCK, D, SLOTS, PING_PONG, EDGES)),
            (_produce, ((q_desc, k_desc, v_desc), plan, geometry, num_tiles, (q_smem, ring),
                        (q_full, q_empty, full, empty), BLOCK, SLOTS)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
