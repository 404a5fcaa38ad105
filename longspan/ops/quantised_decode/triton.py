# mypy: disable-error-code="no-untyped-def,assignment,attr-defined,var-annotated"
"""Decoding over quantised keys and values: one warp a program, each a stretch of groups of one kv head.

Tokens and channels of the stored words are the rows of the products (the queries are the 8 or 16 columns), so that the
numbers made from the codes are in the registers where the matrix units want them, and 8 queries are not padded to more.
Per group the queries are multiplied by the key scales once; queries times zero points are a number a query and group.
A value scale v counts as log2(v) in the logits of its token, so that the largest weight is 1 after it; the sum of the
softmax takes weight / v.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan.ops.backend import num_processors
from longspan.ops.merge_states.triton import triton_merge_stacked
from longspan.ops.overlap import follow, overlap
from longspan.ops.quantised_decode.fields import exp2, inverse, log2, numbers, offset, tokens_alike
from longspan.ops.quantised_decode.launch import Launch, choose_launch
from longspan.ops.quantised_decode.store import QuantisedKV, word_shape

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = 1.4426950408889634
FEWEST_GROUPS = 2  # of a program


@triton.jit
def load_words(at, inside, PADDED: tl.constexpr):
    """int32 words; without a mask where the width is a power of two."""
    return tl.load(at, mask=inside, other=0) if PADDED else tl.load(at)


@triton.jit
def group_queries(
    queries,
    key_scales,
    TOKEN: tl.constexpr,
    D: tl.constexpr,
    BITS: tl.constexpr,
    WORDS: tl.constexpr,
    ASM: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Queries times the key scales of a group, and the part of the logits that the tokens of a place in the words share."""
    WIDTH: tl.constexpr = D // len(queries)
    place = tl.arange(0, WORDS)
    scaled = ()
    terms = tl.zeros(queries[0].shape, tl.float32)
    for j in tl.static_range(len(queries)):
        pair = load_words(key_scales + j * WIDTH + place, place < WIDTH, WIDTH != WORDS)
        # Two bfloat16, the upper halves of two float32.
        scale = (pair << 16).to(tl.float32, bitcast=True).to(DTYPE)
        zero = (pair & -65536).to(tl.float32, bitcast=True)
        if ASM:
            zero -= offset(TOKEN * len(queries) + j, BITS)
        product = queries[j] * scale[:, None]
        terms += product.to(tl.float32) * zero[:, None]
        scaled += (product,)
    return scaled, tl.sum(terms, 0)


@triton.jit
def past_groups(
    queries, key_codes, key_scales, value_codes, value_scales, first, last, scale,
    D: tl.constexpr, GROUP: tl.constexpr, KEY_BITS: tl.constexpr, VALUE_BITS: tl.constexpr,
    VALUE_CHANNELS: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, ASM: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Attention over the groups first .. last - 1 of a head: accumulators a field `[W, ROWS]`, log2 of maximum, sum."""
    KEY_CHANNELS: tl.constexpr = len(queries)
    KEY_WIDTH: tl.constexpr = D // KEY_CHANNELS
    VALUE_WIDTH: tl.constexpr = D // VALUE_CHANNELS
    KEY_WORDS: tl.constexpr = triton.next_power_of_2(KEY_WIDTH)
    VALUE_WORDS: tl.constexpr = triton.next_power_of_2(VALUE_WIDTH)
    KEY_LINES: tl.constexpr = GROUP * KEY_BITS * KEY_CHANNELS // 32
    VALUE_LINES: tl.constexpr = GROUP * VALUE_BITS * VALUE_CHANNELS // 32
    KEY_TILES: tl.constexpr = KEY_LINES // UNIT
    VALUE_TILES: tl.constexpr = VALUE_LINES // UNIT
    SCALE_TILES: tl.constexpr = GROUP // 2 // UNIT
    # float16 holds weights up to 2 ** 15: fewer are lost below.
    LIFT: tl.constexpr = 0.0 if DTYPE.is_fp32() else 15.0
    kw = tl.arange(0, KEY_WORDS)
    vw = tl.arange(0, VALUE_WORDS)
    n = tl.arange(0, UNIT)
    accs = ()
    for _ in tl.static_range(VALUE_CHANNELS):
        accs += (tl.zeros([VALUE_WORDS, ROWS], tl.float32),)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for g in range(first, last):
        scaled, bias = group_queries(queries, key_scales + g * D, 0, D, KEY_BITS, KEY_WORDS, ASM, DTYPE)
        key_group = key_codes + g * (KEY_LINES * KEY_WIDTH)
        value_group = value_codes + g * (VALUE_LINES * VALUE_WIDTH)
        scale_group = value_scales + g * (GROUP // 2)
        key_tiles = ()
        value_tiles = ()
        scale_tiles = ()
        for u in tl.static_range(GROUP // UNIT):
            # Words of several tokens and pairs of scales are loaded with the first of these.
            if u < KEY_TILES:
                at = key_group + (u * UNIT + n)[:, None] * KEY_WIDTH + kw[None, :]
                key_tiles += (load_words(at, (kw < KEY_WIDTH)[None, :], KEY_WIDTH != KEY_WORDS),)
            key_tile = key_tiles[u % KEY_TILES]
            if ASM and u >= KEY_TILES and u % KEY_TILES == 0 and not tokens_alike(KEY_BITS, KEY_CHANNELS):
                scaled, bias = group_queries(
                    queries, key_scales + g * D, u // KEY_TILES, D, KEY_BITS, KEY_WORDS, ASM, DTYPE
                )
            logits = tl.zeros([UNIT, ROWS], tl.float32) + bias[None, :]
            for j in tl.static_range(KEY_CHANNELS):
                keys = numbers(key_tile, u // KEY_TILES * KEY_CHANNELS + j, KEY_BITS, False, ASM, DTYPE)
                logits = tl.dot(keys, scaled[j], logits, input_precision="ieee")
            if u < SCALE_TILES:
                scale_tiles += (tl.load(scale_group + u * UNIT + n),)
            pair = scale_tiles[u % SCALE_TILES]
            token_scale = ((pair << 16) if u < SCALE_TILES else (pair & -65536)).to(tl.float32, bitcast=True)
            logits = logits * scale + log2(token_scale, ASM)[:, None]
            new = tl.maximum(highest, tl.max(logits, 0))
            weights = exp2(logits - (new - LIFT)[None, :], ASM)
            decay = exp2(highest - new, ASM)
            highest = new
            total = total * decay + tl.sum(weights * inverse(token_scale, ASM)[:, None], 0)
            weights = weights.to(DTYPE)
            if u < VALUE_TILES:
                at = value_group + vw[:, None] * VALUE_LINES + (u * UNIT + n)[None, :]
                value_tiles += (load_words(at, (vw < VALUE_WIDTH)[:, None], VALUE_WIDTH != VALUE_WORDS),)
            value_tile = value_tiles[u % VALUE_TILES]
            grown = ()
            for j in tl.static_range(VALUE_CHANNELS):
                values = numbers(
                    value_tile, u // VALUE_TILES * VALUE_CHANNELS + j, VALUE_BITS, True, ASM, DTYPE
                )
                grown += (tl.dot(values, weights, accs[j] * decay[None, :], input_precision="ieee"),)
            accs = grown
    return accs, highest - LIFT, total


@triton.jit
def recent_tokens(
    q_rows, keys, values, k_stride, v_stride, valid, query, T, W, scale,
    D: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Attention over the recent window: accumulator `[D padded, ROWS]`, log2 of maximum, sum."""
    WIDTH: tl.constexpr = triton.next_power_of_2(D)
    channel = tl.arange(0, WIDTH)
    inside = channel < D
    queries = tl.load(q_rows[None, :] + channel[:, None], mask=inside[:, None] & valid[None, :], other=0.0)
    acc = tl.zeros([WIDTH, ROWS], tl.float32)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, W, TOKENS):
        token = start + tl.arange(0, TOKENS)
        there = (token < W)[:, None] & inside[None, :]
        tile = tl.load(
            keys + token.to(tl.int64)[:, None] * k_stride + channel[None, :], mask=there, other=0.0
        )
        logits = tl.dot(tile, queries, input_precision="ieee") * scale
        # Token 0 of the window is seen by every query, W >= T: no maximum is -inf after the first tile.
        seen = (token[:, None] <= W - T + query[None, :]) & (token < W)[:, None]
        logits = tl.where(seen, logits, float("-inf"))
        new = tl.maximum(highest, tl.max(logits, 0))
        weights = exp2(logits - new[None, :], ASM)
        decay = exp2(highest - new, ASM)
        highest = new
        total = total * decay + tl.sum(weights, 0)
        tile = tl.load(
            values + token.to(tl.int64)[:, None] * v_stride + channel[None, :], mask=there, other=0.0
        )
        acc = tl.dot(tl.trans(tile), weights.to(tile.dtype), acc * decay[None, :], input_precision="ieee")
    return acc, highest, total


@triton.jit
def keep(out, lse, place, valid, accs, highest, total, D: tl.constexpr):
    """Write a partial result: accumulators of consecutive channels; a sum of 0 means that no token was visited."""
    WIDTH: tl.constexpr = D // len(accs)
    channel = tl.arange(0, triton.next_power_of_2(WIDTH))
    safe = tl.where(total == 0.0, 1.0, total)
    for j in tl.static_range(len(accs)):
        at = out + place[None, :] * D + (j * WIDTH + channel)[:, None]
        tl.store(at, accs[j] / safe[None, :], mask=(channel < WIDTH)[:, None] & valid[None, :])
    tl.store(lse + place, tl.where(total == 0.0, float("-inf"), (highest + tl.log2(safe)) * LN2), mask=valid)


@triton.jit(do_not_specialize=["W", "num_groups"])  # they grow with every answer
def quantised_kernel(
    q, key_codes, key_scales, value_codes, value_scales, recent_keys, recent_values, lengths, out, lse,
    q_stride_b, q_stride_h, q_stride_t,
    kc_stride_b, kc_stride_k, ks_stride_b, ks_stride_k, vc_stride_b, vc_stride_k, vs_stride_b, vs_stride_k,
    rk_stride_b, rk_stride_k, rk_stride_w, rv_stride_b, rv_stride_k, rv_stride_w,
    K, G, T, W, num_groups, row_blocks, scale,
    D: tl.constexpr, GROUP: tl.constexpr, KEY_BITS: tl.constexpr, VALUE_BITS: tl.constexpr,
    KEY_CHANNELS: tl.constexpr, VALUE_CHANNELS: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, ASM: tl.constexpr, DTYPE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Part 0 is the recent window, the others are equal stretches of the groups; ROWS of the G * T queries a program.

    Grid (parts * row_blocks, B * K); `out` float32 `[parts, B, H, T, D]`, `lse` `[parts, B, H, T]`; scale times log2(e).
    """
    follow(OVERLAP)
    part = tl.program_id(0) // row_blocks
    head = tl.program_id(1)
    b = (head // K).to(tl.int64)
    k = (head % K).to(tl.int64)
    rows = tl.program_id(0) % row_blocks * ROWS + tl.arange(0, ROWS)
    valid = rows < G * T
    q_rows = q + b * q_stride_b + (k * G + rows // T) * q_stride_h + rows % T * q_stride_t
    place = (part * tl.num_programs(1) + head).to(tl.int64) * (G * T) + rows
    if part == 0:
        acc, highest, total = recent_tokens(
            q_rows, recent_keys + b * rk_stride_b + k * rk_stride_k, recent_values + b * rv_stride_b + k * rv_stride_k,
            rk_stride_w, rv_stride_w, valid, rows % T, T, W, scale, D, 16, ROWS, ASM,
        )  # fmt: skip
        keep(out, lse, place, valid, (acc,), highest, total, D)
    else:
        if HAS_LENGTHS:
            num_groups = tl.maximum(tl.minimum(tl.load(lengths + head) // GROUP, num_groups), 0)
        chunk = tl.cdiv(num_groups, tl.num_programs(0) // row_blocks - 1)
        first = tl.minimum((part - 1) * chunk, num_groups)
        last = tl.minimum(first + chunk, num_groups)
        width = tl.arange(0, triton.next_power_of_2(D // KEY_CHANNELS))
        queries = ()
        for j in tl.static_range(KEY_CHANNELS):
            mask = (width < D // KEY_CHANNELS)[:, None] & valid[None, :]
            asked = tl.load(
                q_rows[None, :] + (j * (D // KEY_CHANNELS) + width)[:, None], mask=mask, other=0.0
            )
            queries += (asked.to(DTYPE),)
        accs, highest, total = past_groups(
            queries, key_codes + b * kc_stride_b + k * kc_stride_k, key_scales + b * ks_stride_b + k * ks_stride_k,
            value_codes + b * vc_stride_b + k * vc_stride_k, value_scales + b * vs_stride_b + k * vs_stride_k,
            first, last, scale, D, GROUP, KEY_BITS, VALUE_BITS, VALUE_CHANNELS, UNIT, ROWS, ASM, DTYPE,
        )  # fmt: skip
        keep(out, lse, place, valid, accs, highest, total, D)


def triton_quantised_decode(
    q_BHTD: Tensor,
    store: QuantisedKV,
    recent_keys_BKWD: Tensor,
    recent_values_BKWD: Tensor,
    *,
    scale: float,
    lengths: Tensor | None = None,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor]:
    """See `quantised_decode`; `launch` instead of `choose_launch` is for measurements."""
    q, recent_keys, recent_values = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (q_BHTD, recent_keys_BKWD, recent_values_BKWD)
    )
    B, H, T, D = q.shape
    K, W = recent_keys.shape[1:3]
    num_groups = store.num_tokens // store.group_tokens
    rows = H // K * T
    launch = launch or choose_launch(store, rows)
    row_blocks = triton.cdiv(rows, launch.rows)
    processors = num_processors(q.device)
    wave = processors * launch.warps_per_sm // (B * K * row_blocks) - 1
    parts = 1 + max(1, min(wave, num_groups // FEWEST_GROUPS))
    out = torch.empty(parts, B, H, T, D, dtype=torch.float32, device=q.device)
    lse = torch.empty(parts, B, H, T, dtype=torch.float32, device=q.device)
    codes = (
        store.key_codes,
        store.key_scales.view(torch.int32),
        store.value_codes,
        store.value_scales.view(torch.int32),
    )
    in_half = q.dtype != torch.float32
    quantised_kernel[(parts * row_blocks, B * K)](
        q, *codes, recent_keys, recent_values, None if lengths is None else lengths.contiguous(), out, lse,
        *q.stride()[:3], *(stride for x in codes for stride in x.stride()[:2]),
        *recent_keys.stride()[:3], *recent_values.stride()[:3],
        K, H // K, T, W, num_groups, row_blocks, scale * LOG2E,
        D=D, GROUP=store.group_tokens, KEY_BITS=store.key_bits, VALUE_BITS=store.value_bits,
        KEY_CHANNELS=word_shape(store.key_bits, D)[1], VALUE_CHANNELS=word_shape(store.value_bits, D)[1],
        UNIT=launch.unit, ROWS=launch.rows, HAS_LENGTHS=lengths is not None,
        ASM=in_half and q.is_cuda, DTYPE=tl.float16 if in_half else tl.float32,
        **overlap(q), num_warps=1, num_stages=launch.stages, maxnreg=launch.registers,
    )  # fmt: skip
    return triton_merge_stacked(out, lse, q.dtype)
