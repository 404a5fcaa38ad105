# mypy: disable-error-code="no-untyped-def"
"""One kernel for reading and decoding: a tile of queries walks each band's keys and turns them in registers.

Queries are few and are turned beforehand, once per band. The angles of a key come from a table by its mapped position, and
the two halves of a head dim are two products, so that no element changes place.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan.ops.merge_states import merge_stacked
from longspan.ops.rotary import Rotary, angles, rotate
from longspan.visit import Band

LOG2_E = 1.4426950408889634
DECODE_QUERIES = (
    16  # so many queries or fewer share a tile with the other heads of their kv head, over slices of the keys
)


@triton.jit
def _rotary_kernel(
    queries,
    keys,
    values,
    out,
    lse,
    cos,
    sin,
    key_map,
    low,
    high,
    k_stride_b,
    k_stride_h,
    k_stride_s,
    v_stride_b,
    v_stride_h,
    v_stride_s,
    B,
    H,
    G,
    T,
    S,
    split_tokens,
    scale,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
    NUM_BANDS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE_QUERIES: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (tile of queries, head or kv head of a batch row, split of the keys)."""
    D: tl.constexpr = 2 * HALF
    row = tl.arange(0, ROWS)
    query = tl.program_id(0) * TILE_QUERIES + row % TILE_QUERIES
    group = row // TILE_QUERIES
    if PACKED:
        kv_heads = H // G
        b, kv = tl.program_id(1) // kv_heads, tl.program_id(1) % kv_heads
        head = kv * G + group
        real = (query < T) & (group < G)
    else:
        b = tl.program_id(1) // H
        head = tl.program_id(1) % H + group
        kv = (tl.program_id(1) % H) // G
        real = query < T
    split = tl.program_id(2)
    split_start, split_stop = split * split_tokens, tl.minimum(S, (split + 1) * split_tokens)
    half, dim, place = tl.arange(0, HALF_BLOCK), tl.arange(0, D_BLOCK), tl.arange(0, BLOCK)
    half_real, dim_real = half < HALF, dim < D
    k_base = keys + b.to(tl.int64) * k_stride_b + kv.to(tl.int64) * k_stride_h
    v_base = values + b.to(tl.int64) * v_stride_b + kv.to(tl.int64) * v_stride_h
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    result = tl.zeros([ROWS, D_BLOCK], tl.float32)
    for band in tl.static_range(NUM_BANDS):
        at = ((band * B + b) * H + head).to(tl.int64) * T + query
        q_row = queries + at[:, None] * D + half[None]
        q_mask = real[:, None] & half_real[None]
        q_first = tl.load(q_row, mask=q_mask, other=0.0)
        q_second = tl.load(q_row + HALF, mask=q_mask, other=0.0)
        from_place = tl.load(low + band * T + query, mask=real, other=S)
        to_place = tl.load(high + band * T + query, mask=real, other=0)
        start = tl.maximum(tl.min(from_place, 0), split_start) // BLOCK * BLOCK
        stop = tl.minimum(tl.max(to_place, 0), split_stop)
        for begin in tl.range(start, stop, BLOCK):
            s = begin + place
            inside = s < stop
            mapped = tl.load(key_map + band * S + s, mask=inside, other=0).to(tl.int64)
            turn_mask = inside[:, None] & half_real[None]
            turn = mapped[:, None] * HALF + half[None]
            c = tl.load(cos + turn, mask=turn_mask, other=0.0).to(tl.float32)
            n = tl.load(sin + turn, mask=turn_mask, other=0.0).to(tl.float32)
            k_row = k_base + s.to(tl.int64)[:, None] * k_stride_s + half[None]
            k_first = tl.load(k_row, mask=turn_mask, other=0.0)
            k_second = tl.load(k_row + HALF, mask=turn_mask, other=0.0)
            kind = k_first.dtype
            turned = (k_first * c - k_second * n).to(kind)
            logits = tl.dot(q_first, tl.trans(turned), input_precision=PRECISION)
            turned = (k_second * c + k_first * n).to(kind)
            logits = tl.dot(q_second, tl.trans(turned), logits, input_precision=PRECISION)
            visits = (s[None] >= from_place[:, None]) & (s[None] < to_place[:, None]) & inside[None]
            logits = tl.where(visits, logits * scale, float("-inf"))
            top = tl.maximum(best, tl.max(logits, 1))
            safe = tl.where(top == float("-inf"), 0.0, top)
            weights = tl.exp2(logits - safe[:, None])
            fade = tl.exp2(best - safe)
            total = total * fade + tl.sum(weights, 1)
            v_row = v_base + s.to(tl.int64)[:, None] * v_stride_s + dim[None]
            v_tile = tl.load(v_row, mask=inside[:, None] & dim_real[None], other=0.0)
            result = tl.dot(weights.to(kind), v_tile, result * fade[:, None], input_precision=PRECISION)
            best = top
    target = ((split * B + b) * H + head).to(tl.int64) * T + query
    result = result / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(
        out + target[:, None] * D + dim[None],
        result.to(out.dtype.element_ty),
        mask=real[:, None] & dim_real[None],
    )
    tl.store(lse + target, (best + tl.log2(total)) * 0.6931471805599453, mask=real)


def triton_rotary_attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, *, rotary: Rotary, first: int, scale: float
) -> tuple[Tensor, Tensor]:
    """See `rotary_attention`."""
    (B, H, T, D), (K, S) = q_BHTD.shape, k_BKSD.shape[1:3]
    k_BKSD, v_BKSD = (x if x.stride(3) == 1 else x.contiguous() for x in (k_BKSD, v_BKSD))
    device, groups = q_BHTD.device, H // K
    query = torch.arange(first + S - T, first + S, device=device)
    key = torch.arange(first, first + S, device=device)
    bands = rotary.bands or (_own_positions(),)
    turned = torch.stack([_turn(q_BHTD, band.query(query), rotary) for band in bands])
    key_map = torch.stack([band.key(key) for band in bands]).to(torch.int32)
    low = torch.stack([(band.low(query) - first).clamp(0, S) for band in bands]).to(torch.int32)
    high = torch.stack([torch.minimum(band.high(query), query + 1) - first for band in bands])
    high = high.clamp(0, S).to(torch.int32)
    cos, sin = _half_table(rotary, first + S, q_BHTD.dtype)
    few = T <= DECODE_QUERIES
    tile = max(triton.next_power_of_2(T), 1) if few else 64 if D > 128 else 128
    rows = max(16, tile * triton.next_power_of_2(groups)) if few else tile
    tile = rows // triton.next_power_of_2(groups) if few else tile
    block = 32 if D > 128 else 64
    tiles, heads = -(-T // tile), B * (K if few else H)
    splits = _num_splits(S, block, tiles * heads, device) if few else 1
    split_tokens = -(-S // (splits * block)) * block
    splits = -(-S // split_tokens)
    whole = splits == 1
    out = torch.empty(splits, B, H, T, D, device=device, dtype=q_BHTD.dtype if whole else torch.float32)
    lse = torch.empty(splits, B, H, T, device=device, dtype=torch.float32)
    _rotary_kernel[(tiles, heads, splits)](
        turned,
        k_BKSD,
        v_BKSD,
        out,
        lse,
        cos,
        sin,
        key_map,
        low,
        high,
        *k_BKSD.stride()[:3],
        *v_BKSD.stride()[:3],
        B,
        H,
        groups,
        T,
        S,
        split_tokens,
        scale * LOG2_E,
        HALF=D // 2,
        HALF_BLOCK=max(16, triton.next_power_of_2(D // 2)),
        D_BLOCK=max(16, triton.next_power_of_2(D)),
        NUM_BANDS=len(bands),
        ROWS=rows,
        TILE_QUERIES=tile,
        PACKED=few,
        BLOCK=block,
        PRECISION="ieee" if q_BHTD.dtype == torch.float32 else "tf32",
        num_warps=4 if few and rows <= 64 else 8,
        num_stages=2,
    )
    return (out[0], lse[0]) if whole else merge_stacked(out, lse, q_BHTD.dtype)


def _own_positions() -> Band:
    return Band(low=torch.zeros_like, high=lambda p: p + 1, query=lambda p: p, key=lambda k: k)


def _turn(x: Tensor, positions: Tensor, rotary: Rotary) -> Tensor:
    return rotate(x, *angles(positions, rotary.inv_freq, rotary.scaling, x.dtype))


def _half_table(rotary: Rotary, num_positions: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin `[num_positions, D / 2]`; the two halves of `angles` are equal."""
    at = torch.arange(num_positions, device=rotary.inv_freq.device)
    return tuple(
        x.chunk(2, dim=-1)[0].contiguous() for x in angles(at, rotary.inv_freq, rotary.scaling, dtype)
    )  # type: ignore[return-value]


def _num_splits(S: int, block: int, programs: int, device: torch.device) -> int:
    """Slices of the keys, so that two programs run on every multiprocessor."""
    wanted = (
        264 if device.type != "cuda" else 2 * torch.cuda.get_device_properties(device).multi_processor_count
    )
    return max(1, min(-(-S // (4 * block)), wanted // max(programs, 1)))
