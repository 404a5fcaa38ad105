# mypy: disable-error-code="no-untyped-def"
"""One tile of keys: where its rows lie in each form of store, how they are loaded, and the running softmax."""

from __future__ import annotations

import triton
import triton.language as tl

CONTIGUOUS = tl.constexpr(0)
POOL = tl.constexpr(1)
PAGED = tl.constexpr(2)  # from here on a table says where rows lie
GATHER = tl.constexpr(3)


@triton.jit
def held_tokens(lengths, starts, head, num_heads, capacity, FORM: tl.constexpr):
    """Tokens of a head, or of a vector of heads, cut off where the store ends."""
    room = capacity
    if FORM == POOL:
        start = tl.load(starts + head, mask=head < num_heads, other=0)
        room = tl.where(start >= 0, tl.maximum(capacity - start, 0), 0).to(tl.int32)
    held = tl.where(head < num_heads, capacity, 0)
    if FORM != GATHER:
        held = tl.load(lengths + head, mask=head < num_heads, other=0)
    return tl.minimum(tl.maximum(held, 0), room)


@triton.jit
def locate(
    tile, lanes, length, num_queries, kv_head, start, entries, num_entries, limit,
    FORM: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Second and third coordinate of the rows of a tile (with RUN of its first row), and which of them are there."""
    token = tile * BLOCK
    if not RUN:
        token = token + lanes
    there = token + lanes * 0 < length
    if FORM == CONTIGUOUS:
        return kv_head, token.to(tl.int64), there
    elif FORM == POOL:
        return kv_head * 0, start + token, there
    else:
        at = token // PAGE
        entry = tl.load(entries + at, mask=at < num_entries, other=-1).to(tl.int64)
        offset = token - at * PAGE
        if FORM == PAGED:
            there = there & (entry >= 0) & (entry < limit)
            return tl.where(entry < 0, 0, entry), offset.to(tl.int64), there
        else:
            row = entry * PAGE + offset
            own = token - (length - num_queries)
            if RUN:
                there = there & (entry >= 0) & (row + lanes < limit)
            else:
                there = there & (((entry >= 0) & (row < limit)) | (own >= 0))
                row = tl.where(own >= 0, limit + own, row)
            return kv_head, row, there


@triton.jit
def load_tile(
    x, batch, second, third, strides, there, lanes, columns, D: tl.constexpr, RUN: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """Rows `[BLOCK, D_POW2]`; what is not there is 0 and not read."""
    rows = x + (batch * strides[0] + second * strides[1] + third * strides[2])
    # with RUN one base and small offsets, which take fewer registers than a base for each row
    rows = rows + lanes[:, None] * strides[2] if RUN else rows[:, None]
    inside = (columns < D)[None, :]
    if MASKED:
        tile = tl.load(rows + columns[None, :], mask=there[:, None] & inside, other=0.0)
    elif columns.shape[0] != D:
        tile = tl.load(rows + columns[None, :], mask=inside, other=0.0)
    else:
        tile = tl.load(rows + columns[None, :])
    return tile


@triton.jit
def absorb(acc, top, weights, q, keys, values, seen, scale_log2, MASKED: tl.constexpr):
    """One tile of keys into the running softmax: accumulator, greatest logit (base 2), sum of weights."""
    logits = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale_log2
    if MASKED:
        logits = tl.where(seen, logits, float("-inf"))
    new_top = tl.maximum(top, tl.max(logits, 1))
    base = new_top
    if MASKED:
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
    weight = tl.exp2(logits - base[:, None])
    fade = tl.exp2(top - base)
    weights = weights * fade + tl.sum(weight, 1)
    acc = tl.dot(weight.to(values.dtype), values, acc * fade[:, None], input_precision="ieee")
    return acc, new_top, weights
