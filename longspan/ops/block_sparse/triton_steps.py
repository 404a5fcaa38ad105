# mypy: disable-error-code="no-untyped-def"
"""Steps of the forward kernel: whole blocks in a pipelined loop, masked tiles, loads of keys and values."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def full_blocks(
    q, k_ptr, v_ptr, keys, values, batch, kv_head, blocks_ptr, num_tiles, low, stride_ks, stride_vs, scale,
    D: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, PACK: tl.constexpr, DIAGONAL: tl.constexpr,
    TILE: tl.constexpr, COPY_ENGINE: tl.constexpr,
):  # fmt: skip
    """The blocks that need no mask, or causality alone: the weighted values, the largest logits, the sums of the weights.

    The next block's number is read a tile ahead, so that no load waits for it.
    """
    top = tl.full([PACK * BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([PACK * BLOCK], tl.float32)
    acc = tl.zeros([PACK * BLOCK, PADDED], tl.float32)
    if TILE <= BLOCK:
        here = _tile_begin(blocks_ptr, 0, num_tiles, BLOCK, TILE)
        for i in tl.range(0, num_tiles):
            k = _load_tile(keys, k_ptr, batch, kv_head, here, stride_ks, D, PADDED, TILE, COPY_ENGINE)
            v = _load_tile(values, v_ptr, batch, kv_head, here, stride_vs, D, PADDED, TILE, COPY_ENGINE)
            logits = _causal(_product(q, k.T), here, low, BLOCK, PACK, DIAGONAL, TILE)
            p, alpha, top, total = _soften(logits, top, total, scale)
            acc = _product(p.to(q.dtype), v, acc * alpha[:, None])
            here = _tile_begin(blocks_ptr, i + 1, num_tiles, BLOCK, TILE)
    else:
        for i in tl.range(0, num_tiles):
            n = tl.arange(0, TILE)
            s = tl.load(blocks_ptr + i * (TILE // BLOCK) + n // BLOCK) * BLOCK + n % BLOCK
            k = _load_rows(k_ptr, s, stride_ks, None, D, PADDED)
            v = _load_rows(v_ptr, s, stride_vs, None, D, PADDED)
            p, alpha, top, total = _soften(_product(q, k.T), top, total, scale)
            acc = _product(p.to(q.dtype), v, acc * alpha[:, None])
    return acc, top, total


@triton.jit
def _causal(
    logits, begin, low, BLOCK: tl.constexpr, PACK: tl.constexpr, DIAGONAL: tl.constexpr, TILE: tl.constexpr
):
    """Hide later keys in the tile or tiles of the diagonal block; the others only pay for a comparison."""
    if DIAGONAL:  # noqa: SIM102 (decided when it is compiled, the other when it runs)
        if begin >= low:
            query = low + tl.arange(0, PACK * BLOCK) % BLOCK
            key = begin + tl.arange(0, TILE)
            logits = tl.where(query[:, None] >= key[None, :], logits, -float("inf"))
    return logits


@triton.jit
def _soften(logits, top, total, scale):
    """Softmax step where every logit counts: weights, what earlier sums shrink by, new maximum, new sum."""
    new_top = tl.maximum(top, tl.max(logits, 1) * scale)
    p = tl.exp2(logits * scale - new_top[:, None])
    alpha = tl.exp2(top - new_top)
    return p, alpha, new_top, total * alpha + tl.sum(p, 1)


@triton.jit
def masked_step(
    q, k_ptr, v_ptr, s, live, mask, acc, top, total, scale, stride_ks, stride_vs,
    D: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """One tile of keys at places `s`, of which those not `live` are not read."""
    k = _load_rows(k_ptr, s, stride_ks, live, D, PADDED)
    v = _load_rows(v_ptr, s, stride_vs, live, D, PADDED)
    logits = tl.where(mask, _product(q, k.T) * scale, -float("inf"))
    new_top = tl.maximum(top, tl.max(logits, 1))
    shift = tl.where(new_top == -float("inf"), 0.0, new_top)
    p = tl.exp2(logits - shift[:, None])
    alpha = tl.exp2(top - shift)
    return _product(p.to(v.dtype), v, acc * alpha[:, None]), new_top, total * alpha + tl.sum(p, 1)


@triton.jit
def _tile_begin(blocks_ptr, i, num_tiles, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """First place of tile i of the blocks of a row; past the last tile, any place."""
    j = tl.load(blocks_ptr + i // (BLOCK // TILE), mask=i < num_tiles, other=0)
    return j * BLOCK + i % (BLOCK // TILE) * TILE


@triton.jit
def _load_tile(
    described, ptr, batch, kv_head, begin, stride,
    D: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr, COPY_ENGINE: tl.constexpr,
):  # fmt: skip
    """Keys or values `[TILE, PADDED]` from place `begin` on."""
    if COPY_ENGINE:
        return described.load([batch, kv_head, begin, 0]).reshape(TILE, PADDED)
    return _load_rows(ptr + begin.to(tl.int64) * stride, tl.arange(0, TILE), stride, None, D, PADDED)


@triton.jit
def _load_rows(ptr, s, stride, live, D: tl.constexpr, PADDED: tl.constexpr):
    """Rows `[len(s), PADDED]` at places s; those not live (where it is given) are 0."""
    d = tl.arange(0, PADDED)
    ptrs = ptr + s.to(tl.int64)[:, None] * stride + d[None, :]
    if live is not None:
        return tl.load(ptrs, mask=live[:, None] & (d[None, :] < D), other=0.0)
    if D < PADDED:
        return tl.load(ptrs, mask=d[None, :] < D, other=0.0)
    return tl.load(ptrs)


@triton.jit
def _product(a, b, acc=None):
    return tl.dot(a, b, acc, input_precision="ieee")
