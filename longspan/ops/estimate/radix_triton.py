# mypy: disable-error-code="no-untyped-def"
"""The k highest of long rows, for any k: four histograms over the bytes of the scores find the k-th highest.

Many programs share a row. A pass counts the bytes of those entries that agree with the k-th highest in all bytes
before; then every chunk counts what it will write, and writes it behind the chunks before it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan.ops.estimate.select_triton import HIGHEST, LOWEST, load_scores, ordered, store_chosen

CHUNK = 8192  # entries a program
BINS: tl.constexpr = tl.constexpr(256)
PASSES: tl.constexpr = tl.constexpr(4)


@triton.jit
def _found(counts, k, NUM: tl.constexpr):
    """First bytes of the k-th highest of a row, and how many are wanted of the entries that share them."""
    prefix = 0
    want = k
    digit = tl.arange(0, BINS)
    for i in tl.static_range(NUM):
        bins = tl.load(counts + i * BINS + digit)
        total = tl.sum(bins, axis=0)
        if i == 0:
            want = tl.minimum(want, total)
        from_here = total - tl.cumsum(bins, axis=0) + bins
        last = tl.maximum(tl.sum((from_here >= want).to(tl.int32), axis=0) - 1, 0)
        want -= tl.sum(tl.where(digit > last, bins, 0), axis=0)
        prefix = (prefix << 8) | last
    return prefix, want


@triton.jit
def _load_keys(
    scores,
    lengths,
    row,
    place,
    stride_b,
    stride_h,
    num_rows_each,
    num_entries,
    first,
    last,
    HAS_LENGTHS: tl.constexpr,
):
    """Bits of an unsigned key in the order of the scores, kept in int32, and which are valid; those always chosen are highest."""
    b = row // num_rows_each
    length = num_entries
    if HAS_LENGTHS:
        length = tl.minimum(tl.load(lengths + b), num_entries)
    base = scores + b * stride_b + (row % num_rows_each) * stride_h
    x, valid, forced = load_scores(base, place, place < length, length, first, last)
    return tl.where(forced, HIGHEST, ordered(x)), valid


@triton.jit
def _histogram_kernel(
    scores,
    lengths,
    counts,
    stride_b,
    stride_h,
    num_rows_each,
    num_entries,
    k,
    first,
    last,
    PASS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    keys, valid = _load_keys(
        scores, lengths, row, place, stride_b, stride_h, num_rows_each, num_entries, first, last, HAS_LENGTHS
    )
    bits = (keys ^ LOWEST).to(tl.uint32, bitcast=True)
    mine = counts + row * PASSES * BINS
    prefix, want = _found(mine, k, PASS)
    digit = (bits >> (24 - 8 * PASS)) & 255
    if PASS > 0:
        valid &= (bits >> (32 - 8 * PASS)).to(tl.int32) == prefix
    bins = tl.histogram(digit.to(tl.int32), BINS, mask=valid)
    tl.atomic_add(mine + PASS * BINS + tl.arange(0, BINS), bins, mask=bins > 0, sem="relaxed")


@triton.jit
def _count_kernel(
    scores,
    lengths,
    counts,
    sums,
    stride_b,
    stride_h,
    num_rows_each,
    num_entries,
    k,
    first,
    last,
    BLOCK: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    keys, valid = _load_keys(
        scores, lengths, row, place, stride_b, stride_h, num_rows_each, num_entries, first, last, HAS_LENGTHS
    )
    prefix, need = _found(counts + row * PASSES * BINS, k, PASSES)
    threshold = prefix ^ LOWEST
    to = sums + (row * tl.num_programs(1) + tl.program_id(1)) * 2
    tl.store(to, tl.sum((valid & (keys > threshold)).to(tl.int32), axis=0))
    tl.store(to + 1, tl.sum((valid & (keys == threshold)).to(tl.int32), axis=0))


@triton.jit
def _write_kernel(
    scores,
    lengths,
    counts,
    sums,
    index,
    stride_b,
    stride_h,
    num_rows_each,
    num_entries,
    k,
    first,
    last,
    BLOCK: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    keys, valid = _load_keys(
        scores, lengths, row, place, stride_b, stride_h, num_rows_each, num_entries, first, last, HAS_LENGTHS
    )
    prefix, need = _found(counts + row * PASSES * BINS, k, PASSES)
    threshold = prefix ^ LOWEST
    chunk = tl.arange(0, NUM_CHUNKS)
    at = sums + (row * tl.num_programs(1) + chunk) * 2
    there = chunk < tl.num_programs(1)
    above = tl.load(at, mask=there, other=0)
    equal = tl.load(at + 1, mask=there, other=0)
    above_before = tl.sum(tl.where(chunk < tl.program_id(1), above, 0), axis=0)
    equal_before = tl.sum(tl.where(chunk < tl.program_id(1), equal, 0), axis=0)
    to = index + row * k
    store_chosen(
        to, place, valid & (keys > threshold), valid & (keys == threshold), need, above_before, equal_before
    )
    written = tl.sum(above, axis=0) + tl.minimum(tl.sum(equal, axis=0), need)
    tl.store(to + place, tl.full([BLOCK], -1, tl.int32), mask=(place >= written) & (place < k))


def triton_radix_top_k(
    scores_BhN: Tensor,
    k: int,
    *,
    always_first: int,
    always_last: int,
    lengths: Tensor | None,
    chunk: int = CHUNK,
) -> Tensor:
    """See `top_k`: six launches and a fill, whatever N and k are; `chunk` is a power of two up to 16,384."""
    B, h, N = scores_BhN.shape
    device = scores_BhN.device
    num_chunks = triton.cdiv(max(N, k), chunk)  # those behind the last entry write -1
    grid = (B * h, num_chunks)
    index = torch.empty(B, h, k, dtype=torch.int32, device=device)
    counts = torch.zeros(B * h, PASSES.value, BINS.value, dtype=torch.int32, device=device)
    sums = torch.empty(B * h, num_chunks, 2, dtype=torch.int32, device=device)
    row = (*scores_BhN.stride()[:2], h, N, k, always_first, always_last)
    fixed = {"BLOCK": chunk, "HAS_LENGTHS": lengths is not None, "num_warps": max(1, min(16, chunk // 512))}
    for i in range(PASSES.value):
        _histogram_kernel[grid](scores_BhN, lengths, counts, *row, PASS=i, **fixed)
    _count_kernel[grid](scores_BhN, lengths, counts, sums, *row, **fixed)
    padded = triton.next_power_of_2(num_chunks)
    _write_kernel[grid](scores_BhN, lengths, counts, sums, index, *row, NUM_CHUNKS=padded, **fixed)
    return index
