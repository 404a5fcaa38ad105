# mypy: disable-error-code="no-untyped-def"
"""Many queries: a rotated copy of the keys for each band, then attention without angles.

A program has 128 queries of one head. In each band the keys that all of them see need no mask and are one pipelined loop of
loads, two products and the softmax; those at the two ends, which some see, are masked. A band's copy is written only where
its queries look.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from longspan.ops.merge_states import merge_stacked
from longspan.ops.rotary_attention.tables import Tables
from longspan.ops.rotary_attention.triton_steps import LOG2_E, soften, split_keys, store_result, turn

COPY_BYTES = 2**31  # of rotated keys and queries at a time; above it heads, then batch rows, take turns
TURN_TOKENS = 64  # a program of the copy


@dataclass(frozen=True, kw_only=True)
class Config:
    """How the kernel is launched.

    Args:
        rows: queries of a program.
        tile_keys, edge_keys: keys a tile of the loop without masks, and of the masked one.
        num_warps, num_stages: num_stages tiles of keys and of values are in shared memory at a time.
        copy_engine: keys and values are read by the tensor copy engine (TMA), where strides allow it.
    """

    rows: int
    tile_keys: int
    edge_keys: int
    num_warps: int
    num_stages: int
    copy_engine: bool


def config_for(head_dim: int, element_bytes: int) -> Config:
    """Tiles that fit a Hopper GPU's registers and shared memory."""
    wide = head_dim > 128
    if element_bytes == 4:
        rows = 32 if wide else 64
        return Config(rows=rows, tile_keys=16, edge_keys=16, num_warps=8, num_stages=1, copy_engine=False)
    if wide:
        return Config(rows=128, tile_keys=64, edge_keys=16, num_warps=8, num_stages=2, copy_engine=True)
    return Config(rows=128, tile_keys=128, edge_keys=64, num_warps=8, num_stages=3, copy_engine=True)


@triton.jit(do_not_specialize="B N S position row_stop query query_stop T".split())
def turn_kernel(
    x, out, cos, sin, rows, low, high, x_b, x_h, x_s, B, N, S, position, row_stop, query, query_stop, T,
    HALF: tl.constexpr, HALF_BLOCK: tl.constexpr, NUM_BANDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (tile of tokens, head of a batch row): reads its tokens once and writes them `[bands, B, N, S, D]`, turned.

    With low and high, tokens that none of T queries, the first at place `query` of these tables, sees in a band are left out.
    """
    D: tl.constexpr = 2 * HALF
    head = tl.program_id(0) % (B * N)
    s = tl.program_id(0) // (B * N) * BLOCK + tl.arange(0, BLOCK)
    half = tl.arange(0, HALF_BLOCK)
    x_row = x + (head // N).to(tl.int64) * x_b + (head % N).to(tl.int64) * x_h + s.to(tl.int64)[:, None] * x_s
    mask = (s < S)[:, None] & (half < HALF)[None]
    first = tl.load(x_row + half[None], mask=mask, other=0.0)
    second = tl.load(x_row + HALF + half[None], mask=mask, other=0.0)
    for band in tl.static_range(NUM_BANDS):
        wanted = s < S
        if low is not None:
            wanted = wanted & (s + position >= tl.load(low + band * query_stop + query))
            wanted = wanted & (s + position < tl.load(high + band * query_stop + query + T - 1))
        row = tl.load(rows + band * row_stop + position + s, mask=wanted, other=0)
        turned_first, turned_second = turn(first, second, cos, sin, row, wanted, HALF, HALF_BLOCK)
        target = out + ((band * B * N + head).to(tl.int64) * S + s)[:, None] * D + half[None]
        tl.store(target, turned_first, mask=wanted[:, None] & (half < HALF)[None])
        tl.store(target + HALF, turned_second, mask=wanted[:, None] & (half < HALF)[None])


@triton.jit(
    do_not_specialize="o_split o_b o_h B K G T S first query query_stop num_tiles split_tokens".split()
)
def read_kernel(
    queries, keys, values, key_tiles, value_tiles, out, lse, low, high, v_b, v_h, v_s, o_split, o_b, o_h,
    B, K, G, T, S, first, query, query_stop, num_tiles, split_tokens, scale,
    D: tl.constexpr, PADDED: tl.constexpr, NUM_BANDS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    EDGE: tl.constexpr, COPY_ENGINE: tl.constexpr,
):  # fmt: skip
    """Program (head and tile of queries, split of the keys); queries and keys `[bands, B, heads, tokens, D]` are turned.

    Late tiles come first; heads that share keys stand side by side, so that they meet in the cache.
    """
    in_group = tl.program_id(0) % G
    tile = num_tiles - 1 - tl.program_id(0) // G % num_tiles
    kv = tl.program_id(0) // (G * num_tiles) % K
    b = tl.program_id(0) // (G * num_tiles * K)
    head = kv * G + in_group
    split = tl.program_id(1)
    split_start, split_stop = split * split_tokens, tl.minimum(S, (split + 1) * split_tokens)
    place = tl.arange(0, ROWS)  # small offsets from one base take fewer registers than a base for each row
    row = tl.minimum(place, T - 1 - tile * ROWS)  # rows past the last repeat it
    v_base = values + b.to(tl.int64) * v_b + kv.to(tl.int64) * v_h
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, PADDED], tl.float32)
    for band in tl.static_range(NUM_BANDS):
        q_base = queries + (((band * B + b) * K * G + head).to(tl.int64) * T + tile * ROWS) * D
        q = _load_rows(q_base, row, D, None, D, PADDED)
        k_base = keys + ((band * B + b) * K + kv).to(tl.int64) * S * D
        at = band * query_stop + query + tile * ROWS + row
        from_place = tl.maximum(tl.load(low + at) - first, split_start)
        to_place = tl.minimum(tl.load(high + at) - first, split_stop)
        begin, stop = tl.min(from_place, 0), tl.max(to_place, 0)
        # all rows see [whole, whole + num_whole * TILE); some rows see [begin, left_stop) and [right, stop)
        whole = tl.max(from_place, 0)
        num_whole = tl.maximum(tl.min(to_place, 0) - whole, 0) // TILE
        left_stop = tl.where(num_whole > 0, whole, stop)
        right = tl.where(num_whole > 0, whole + num_whole * TILE, stop)
        for i in tl.range(0, num_whole):
            if COPY_ENGINE:
                k = key_tiles.load([band * B + b, kv, whole + i * TILE, 0]).reshape(TILE, PADDED)
                v = value_tiles.load([b, kv, whole + i * TILE, 0]).reshape(TILE, PADDED)
            else:
                s = (whole + i * TILE + tl.arange(0, TILE)).to(tl.int64)
                k = _load_rows(k_base, s, D, None, D, PADDED)
                v = _load_rows(v_base, s, v_s, None, D, PADDED)
            logits = tl.dot(q, k.T, input_precision="ieee")
            weights, fade, top, total = soften(logits, None, top, total, scale)
            acc = tl.dot(weights.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
        num_left = tl.cdiv(tl.maximum(left_stop - begin, 0), EDGE)
        num_right = tl.cdiv(tl.maximum(stop - right, 0), EDGE)
        for i in tl.range(0, num_left + num_right, num_stages=1):
            s = tl.where(i < num_left, begin + i * EDGE, right + (i - num_left) * EDGE) + tl.arange(0, EDGE)
            live = s < tl.where(i < num_left, left_stop, stop)
            k = _load_rows(k_base, s.to(tl.int64), D, live, D, PADDED)
            v = _load_rows(v_base, s.to(tl.int64), v_s, live, D, PADDED)
            logits = tl.dot(q, k.T, input_precision="ieee")
            seen = (s[None] >= from_place[:, None]) & (s[None] < to_place[:, None]) & live[None]
            weights, fade, top, total = soften(logits, seen, top, total, scale)
            acc = tl.dot(weights.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
    target = split.to(tl.int64) * o_split + b.to(tl.int64) * o_b + head.to(tl.int64) * o_h + tile * ROWS
    real = place < T - tile * ROWS
    store_result(out + target * D, lse + target, place, real, acc, top, total, D, PADDED)


@triton.jit
def _load_rows(x, s, stride, live, D: tl.constexpr, PADDED: tl.constexpr):
    """Rows `[len(s), PADDED]` at places s; those not live (where it is given) are 0 and not read."""
    d = tl.arange(0, PADDED)
    rows = x + s[:, None] * stride + d[None]
    if live is not None:
        return tl.load(rows, mask=live[:, None] & (d < D)[None], other=0.0)
    if D < PADDED:
        return tl.load(rows, mask=(d < D)[None], other=0.0)
    return tl.load(rows)


def triton_read(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    tables: Tables,
    *,
    first: int,
    scale: float,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """See `rotary_attention`; `tables` reach over its queries and keys, `config` overrides the launch."""
    (B, H, T, D), (K, S) = q_BHTD.shape, k_BKSD.shape[1:3]
    config = config or config_for(D, q_BHTD.element_size())
    head_bytes = tables.num_bands * (S + T * (H // K)) * D * k_BKSD.element_size()
    heads = max(1, min(K, COPY_BYTES // (B * head_bytes)))
    batch = max(1, min(B, COPY_BYTES // (heads * head_bytes)))
    splits, split_tokens = split_keys(
        S,
        config.tile_keys,
        programs=-(-T // config.rows) * batch * heads * (H // K),
        per_multiprocessor=1,
        device=q_BHTD.device,
    )
    whole = splits == 1
    out = q_BHTD.new_empty(splits, B, H, T, D, dtype=q_BHTD.dtype if whole else torch.float32)
    lse = q_BHTD.new_empty(splits, B, H, T, dtype=torch.float32)
    room = k_BKSD.new_empty(tables.num_bands * batch * heads * S * D)
    for b in range(0, B, batch):
        for kv in range(0, K, heads):
            rows, kv_heads = slice(b, b + batch), slice(kv, kv + heads)
            own = slice(kv * (H // K), (kv + heads) * (H // K))
            parts = (q_BHTD[rows, own], k_BKSD[rows, kv_heads], v_BKSD[rows, kv_heads])
            results = (out[:, rows, own], lse[:, rows, own])
            _read_heads(*parts, tables, *results, room, first, scale, split_tokens, config)
    return (out[0], lse[0]) if whole else merge_stacked(out, lse, q_BHTD.dtype)


def _read_heads(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, tables: Tables, out: Tensor, lse: Tensor, room: Tensor,
    first: int, scale: float, split_tokens: int, config: Config,
) -> None:  # fmt: skip
    """The kv heads that are rotated together; their copies stand in `room`."""
    (B, H, T, D), (K, S) = q_BHTD.shape, k_BKSD.shape[1:3]
    query = first + S - T - tables.begin
    queries = q_BHTD.new_empty(tables.num_bands, B, H, T, D)
    keys = room[: tables.num_bands * k_BKSD.numel()].view(tables.num_bands * B, K, S, D)
    _turn(q_BHTD, queries, tables, tables.query_rows, query)
    _turn(k_BKSD, keys, tables, tables.key_rows, first, seen_by=(query, T))
    padded = max(16, triton.next_power_of_2(D))
    copy_engine = config.copy_engine and _can_describe(keys) and _can_describe(v_BKSD)
    key_tiles, value_tiles = keys, v_BKSD
    if copy_engine:
        key_tiles, value_tiles = (_describe(x, [1, 1, config.tile_keys, padded]) for x in (keys, v_BKSD))
    tiles = -(-T // config.rows)
    read_kernel[(tiles * H * B, out.shape[0])](
        queries, keys, v_BKSD, key_tiles, value_tiles, out, lse, tables.low, tables.high,
        *v_BKSD.stride()[:3], *lse.stride()[:3],
        B, K, H // K, T, S, first, query, tables.num_queries, tiles, split_tokens, scale * LOG2_E,
        D=D, PADDED=padded, NUM_BANDS=tables.num_bands,
        ROWS=config.rows, TILE=config.tile_keys, EDGE=config.edge_keys, COPY_ENGINE=copy_engine,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


def _turn(
    x: Tensor,
    out: Tensor,
    tables: Tables,
    rows: Tensor,
    position: int,
    seen_by: tuple[int, int] | None = None,
) -> None:
    """x `[B, heads, tokens, D]`, the first token at place `position` of `rows`, into out `[bands, B, heads, tokens, D]`."""
    B, N, S, D = x.shape
    query, T = seen_by or (0, 0)
    turn_kernel[(-(-S // TURN_TOKENS) * B * N,)](
        x, out, tables.cos, tables.sin, rows,
        tables.low if seen_by else None, tables.high if seen_by else None,
        *x.stride()[:3], B, N, S, position, rows.shape[1], query, tables.num_queries, T,
        HALF=D // 2, HALF_BLOCK=max(16, triton.next_power_of_2(D // 2)), NUM_BANDS=tables.num_bands,
        BLOCK=TURN_TOKENS, num_warps=4,
    )  # fmt: skip


def _can_describe(x: Tensor) -> bool:
    """Does the copy engine take such strides? It wants multiples of 16 bytes."""
    steps = [s * x.element_size() for n, s in zip(x.shape, x.stride()[:3], strict=False) if n > 1]
    return x.data_ptr() % 16 == 0 and all(step > 0 and step % 16 == 0 for step in steps)


def _describe(x: Tensor, tile: list[int]) -> Any:
    # A dimension of one has any stride.
    strides = [16 if n == 1 else s for n, s in zip(x.shape, x.stride()[:3], strict=False)]
    return TensorDescriptor(x, list(x.shape), [*strides, 1], tile)
