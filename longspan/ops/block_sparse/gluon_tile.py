# mypy: disable-error-code="no-untyped-def"
"""Parts of the Hopper kernel that neither copy nor multiply: which tile and which blocks, masks, and the softmax."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

FAR = gl.constexpr(2**30)  # past every place


@gluon.jit
def num_rounds(num_tiles):
    """Tiles that this program computes; round i holds the tiles [i * P, (i + 1) * P) of P programs."""
    program, programs = gl.program_id(0), gl.num_programs(0)
    whole = num_tiles // programs
    place = gl.where(whole % 2 == 1, programs - 1 - program, program)
    return whole + gl.where(place < num_tiles - whole * programs, 1, 0)


@gluon.jit
def tile_of(i, geometry):
    """Batch entry, head and row of this program's tile of round i, and where its row of the table starts.

    Long rows first, the heads of one key head next to each other (they share keys in the L2 cache), and every other
    round in reverse, so that no program gets the longer tile each time.
    """
    num_rows, num_heads, groups, table_heads = geometry
    program, programs = gl.program_id(0), gl.num_programs(0)
    tile = i * programs + gl.where(i % 2 == 1, programs - 1 - program, program)
    group = tile % groups
    rest = tile // groups
    row = num_rows - 1 - rest % num_rows
    rest = rest // num_rows
    num_kv = num_heads // groups
    head = (rest % num_kv) * groups + group
    batch = rest // num_kv
    line = (batch * table_heads + head * table_heads // num_heads) * num_rows + row
    return batch, head, row, line


@gluon.jit
def row_of(plan, line):
    """Where the blocks of a row of the plan start, how many need no mask, and how many there are."""
    blocks, num_full, num_all, width = plan
    return blocks + line.to(gl.int64) * width, gl.load(num_full + line), gl.load(num_all + line)


@gluon.jit
def entry_of(blocks, j, num_full, num_all):
    """Block j of a row in the order of visits, masked ones first, and whether the table (not the window or sink) has it.

    A row without blocks visits block 0, with every pair masked.
    """
    at = j + num_full
    at = gl.where(at < num_all, at, at - num_all)
    entry = gl.load(blocks + at, mask=num_all > 0, other=0)
    return gl.where(entry < 0, -1 - entry, entry), entry >= 0


@gluon.jit
def place_of(count, SLOTS: gl.constexpr):
    """Slot of the ring and parity of its use number `count // SLOTS`."""
    return count % SLOTS, (count // SLOTS) & 1


@gluon.jit
def _clean(
    v, first_key, lowest, highest, query, selected, sink, window, BLOCK: gl.constexpr, D: gl.constexpr
):
    """Set to 0 the values of keys that no query of the tile visits: 0 * NaN would reach the sum."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // (D // 8), D // 8], [4, 1], [1, 0])
    STEP: gl.constexpr = 32
    for part in gl.static_range(BLOCK // STEP):
        rows = v.slice(part * STEP, STEP)
        key = first_key + part * STEP + gl.arange(0, STEP, gl.SliceLayout(1, layout))
        keep = (key >= lowest) & (key <= highest)
        keep = keep & (selected | (key < sink) | ((window > 0) & (key + window > query)))
        x = rows.load(layout)
        rows.store(gl.where(keep[:, None], x, gl.zeros_like(x)))
    fence_async_shared()
    gl.thread_barrier()


@gluon.jit
def edge_of(
    j, n, base, ring, full, blocks, counts, places, BLOCK: gl.constexpr, D: gl.constexpr, SLOTS: gl.constexpr
):
    """First key of masked block j, the lowest visible place, and whether the table has it; its values made clean."""
    num_full, num_all = counts
    low, high, offset, lowest, sink, window = places
    block, whole = entry_of(blocks, j, num_full, num_all)
    begin = block * BLOCK
    lowest = gl.where(num_all > 0, lowest, FAR)
    covered = whole | (begin + BLOCK <= sink) | ((window > 0) & (begin + window > low))
    if (begin < lowest) | (begin + BLOCK - 1 > high) | (not covered):
        slot, parity = place_of(base + gl.where(j < n - 1, 2 * j + 2, 2 * n - 1), SLOTS)
        mbarrier.wait(full.index(slot), parity)
        _clean(ring.index(slot).reshape([BLOCK, D]), begin, lowest, high, low, whole, sink, window, BLOCK, D)
    return begin, lowest, whole


@gluon.jit
def mask_pairs(s, begin, lowest, whole, places, EDGES: gl.constexpr):
    """Logits of a block at an edge, -inf where a pair is not visited."""
    low, high, offset, first, sink, window = places
    layout: gl.constexpr = s.type.layout
    key = begin + gl.arange(0, s.shape[1], gl.SliceLayout(0, layout))[None, :]
    query = low + offset + gl.arange(0, s.shape[0], gl.SliceLayout(1, layout))[:, None]
    seen = (key <= query) & (key >= lowest)
    if EDGES:
        # A block of the table is visited like a sink that ends past it.
        seen = seen & ((key < gl.where(whole, FAR, sink)) | (key > query - window))
    return gl.where(seen, s, float("-inf"))


@gluon.jit
def softmax_step(s, highest, total, scale, MASKED: gl.constexpr):
    """Weights of one block under the new running maximum, and the factor for what was summed before."""
    new = gl.maximum(highest, gl.max(s, 1) * scale)
    shift = gl.where(new == float("-inf"), 0.0, new) if MASKED else new
    p = gl.exp2(s * scale - shift[:, None])
    factor = gl.exp2(highest - shift)
    return p, factor, new, total * factor + gl.sum(p, 1)


@gluon.jit
def pack(weights, dtype: gl.constexpr):
    """Two neighbours of 16 bits in one word: a loop carries words, but would carry halves one by one and join them again."""
    rows: gl.constexpr = weights.shape[0]
    even, odd = gl.split(weights.reshape([rows, weights.shape[1] // 2, 2]))
    if dtype == gl.bfloat16:
        word = gl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [even, odd], gl.int32, is_pure=True, pack=1
        )
    else:
        word = gl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [even, odd], gl.int32, is_pure=True, pack=1
        )
    return word


@gluon.jit
def unpack(word, dtype: gl.constexpr, layout: gl.constexpr):
    """The first factor of a product, from `pack`."""
    even = (word & 0xFFFF).to(gl.uint16).to(dtype, bitcast=True)
    odd = (word >> 16).to(gl.uint16).to(dtype, bitcast=True)
    return gl.convert_layout(
        gl.join(even, odd).reshape([word.shape[0], 2 * word.shape[1]]), layout, assert_trivial=True
    )
