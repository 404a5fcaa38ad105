# mypy: disable-error-code="no-untyped-def"
"""Few queries: the keys are read once and turned in registers.

The query heads of a kv head share a tile, and slices of the keys fill the GPU. The angles of a key come from a table by its
mapped position, and the two halves of a head dim are two products, so that no element changes place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan.ops.merge_states import merge_stacked
from longspan.ops.overlap import follow, overlap
from longspan.ops.rotary_attention.tables import Tables
from longspan.ops.rotary_attention.triton_steps import LOG2_E, soften, split_keys, store_result, turn

STAGES = 3  # two tiles of keys and values are under way: with 4 warps two programs fit a multiprocessor


@dataclass(frozen=True, kw_only=True)
class Config:
    """How the kernel is launched.

    Args:
        rows: of a program: queries times query heads of a kv head.
        tile_queries: of these, queries.
        tile_keys: keys a tile.
        num_warps: of a program.
    """

    rows: int
    tile_queries: int
    tile_keys: int
    num_warps: int


@triton.jit(do_not_specialize="B H G T S first first_query key_stop query_stop split_tokens q_t".split())
def decode_kernel(
    queries, keys, values, out, lse, cos, sin, key_rows, query_rows, low, high,
    q_b, q_h, q_t, k_b, k_h, k_s, v_b, v_h, v_s,
    B, H, G, T, S, first, first_query, key_stop, query_stop, split_tokens, scale,
    HALF: tl.constexpr, HALF_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr, NUM_BANDS: tl.constexpr,
    ROWS: tl.constexpr, TILE_QUERIES: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Program (tile of queries, kv head of a batch row, split of the keys)."""
    follow(OVERLAP)
    D: tl.constexpr = 2 * HALF
    row = tl.arange(0, ROWS)
    query = tl.program_id(0) * TILE_QUERIES + row % TILE_QUERIES
    group = row // TILE_QUERIES
    kv_heads = H // G
    b, kv = tl.program_id(1) // kv_heads, tl.program_id(1) % kv_heads
    head = kv * G + group
    real = (query < T) & (group < G)
    split = tl.program_id(2)
    split_start, split_stop = split * split_tokens, tl.minimum(S, (split + 1) * split_tokens)
    half, dim, place = tl.arange(0, HALF_BLOCK), tl.arange(0, D_BLOCK), tl.arange(0, BLOCK)
    half_real, dim_real = half < HALF, dim < D
    k_base = keys + b.to(tl.int64) * k_b + kv.to(tl.int64) * k_h
    v_base = values + b.to(tl.int64) * v_b + kv.to(tl.int64) * v_h
    q_row = queries + b.to(tl.int64) * q_b + head.to(tl.int64) * q_h + query.to(tl.int64) * q_t
    q_mask = real[:, None] & half_real[None]
    q_first = tl.load(q_row[:, None] + half[None], mask=q_mask, other=0.0)
    q_second = tl.load(q_row[:, None] + HALF + half[None], mask=q_mask, other=0.0)
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D_BLOCK], tl.float32)
    for band in tl.static_range(NUM_BANDS):
        at = band * query_stop + first_query + query
        from_place = tl.load(low + at, mask=real, other=0) - first
        to_place = tl.load(high + at, mask=real, other=0) - first
        from_place = tl.where(real, from_place, S)
        start = tl.maximum(tl.min(from_place, 0), split_start) // BLOCK * BLOCK
        stop = tl.minimum(tl.max(to_place, 0), split_stop)
        q_angle = tl.load(query_rows + at, mask=real, other=0)
        turned_first, turned_second = turn(q_first, q_second, cos, sin, q_angle, real, HALF, HALF_BLOCK)
        row_base = key_rows + band * key_stop + first
        k_angle = tl.load(row_base + start + place, mask=start + place < stop, other=0)
        for begin in tl.range(start, stop, BLOCK):
            s = begin + place
            inside = s < stop
            k_row = k_base + s.to(tl.int64)[:, None] * k_s + half[None]
            k_mask = inside[:, None] & half_real[None]
            k_first = tl.load(k_row, mask=k_mask, other=0.0)
            k_second = tl.load(k_row + HALF, mask=k_mask, other=0.0)
            k_first, k_second = turn(k_first, k_second, cos, sin, k_angle, inside, HALF, HALF_BLOCK)
            logits = tl.dot(turned_first, tl.trans(k_first), input_precision="ieee")
            logits = tl.dot(turned_second, tl.trans(k_second), logits, input_precision="ieee")
            seen = (s[None] >= from_place[:, None]) & (s[None] < to_place[:, None]) & inside[None]
            weights, fade, top, total = soften(logits, seen, top, total, scale)
            v_row = v_base + s.to(tl.int64)[:, None] * v_s + dim[None]
            v_tile = tl.load(v_row, mask=inside[:, None] & dim_real[None], other=0.0)
            acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc * fade[:, None], input_precision="ieee")
            s += BLOCK
            k_angle = tl.load(row_base + s, mask=s < stop, other=0)
    target = ((split * B + b) * H + head).to(tl.int64) * T + query
    store_result(out, lse, target, real, acc, top, total, D, D_BLOCK)


def config_for(num_queries: int, groups: int, head_dim: int, element_bytes: int) -> Config:
    """Tiles for `num_queries` queries of `groups` query heads a kv head."""
    width, group = max(16, triton.next_power_of_2(head_dim)), triton.next_power_of_2(groups)
    room = 2**14 if element_bytes == 2 else 2**12  # elements of a tile of queries
    most = min(128, room // width)
    rows = max(16, min(triton.next_power_of_2(num_queries), max(1, most // group)) * group)
    if rows == 32 and width > 128:
        rows = 64  # 32 would spill registers
    return Config(
        rows=rows,
        tile_queries=rows // group,
        tile_keys=min(64, 2**14 // (width * element_bytes)),
        num_warps=8 if 2 * rows * width >= room else 4,
    )


def triton_decode(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, tables: Tables, *, first: int, scale: float
) -> tuple[Tensor, Tensor]:
    """See `rotary_attention`; `tables` reach over its queries and keys."""
    (B, H, T, D), (K, S) = q_BHTD.shape, k_BKSD.shape[1:3]
    config = config_for(T, H // K, D, q_BHTD.element_size())
    tiles = -(-T // config.tile_queries)
    splits, split_tokens = split_keys(
        S,
        config.tile_keys,
        programs=tiles * B * K,
        per_multiprocessor=2 if config.num_warps == 4 else 1,
        device=q_BHTD.device,
    )
    whole = splits == 1
    out = q_BHTD.new_empty(splits, B, H, T, D, dtype=q_BHTD.dtype if whole else torch.float32)
    lse = q_BHTD.new_empty(splits, B, H, T, dtype=torch.float32)
    decode_kernel[(tiles, B * K, splits)](
        q_BHTD, k_BKSD, v_BKSD, out, lse,
        tables.cos, tables.sin, tables.key_rows, tables.query_rows, tables.low, tables.high,
        *q_BHTD.stride()[:3], *k_BKSD.stride()[:3], *v_BKSD.stride()[:3],
        B, H, H // K, T, S, first, first + S - T - tables.begin, tables.stop, tables.num_queries, split_tokens,
        scale * LOG2_E,
        HALF=D // 2, HALF_BLOCK=max(16, triton.next_power_of_2(D // 2)),
        D_BLOCK=max(16, triton.next_power_of_2(D)), NUM_BANDS=tables.num_bands,
        ROWS=config.rows, TILE_QUERIES=config.tile_queries, BLOCK=config.tile_keys,
        **overlap(q_BHTD), num_warps=config.num_warps, num_stages=STAGES,
    )  # fmt: skip
    return (out[0], lse[0]) if whole else merge_stacked(out, lse, q_BHTD.dtype)
