# mypy: disable-error-code="no-untyped-def"
"""Selection by threshold: a search finds the k-th highest score, and a running count puts those above it in order.

One program holds a row in registers. Rows too long for that are cut in chunks whose best are chosen first, and where k is
too large for that too, histograms find the threshold (`radix_triton.py`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan.ops.overlap import follow, overlap

ROW = 16384  # entries that one program holds
VALUE_STEPS: tl.constexpr = tl.constexpr(12)  # steps of the search by value, before it goes on by bits
LOWEST: tl.constexpr = tl.constexpr(-(2**31))
HIGHEST: tl.constexpr = tl.constexpr(2**31 - 1)


@triton.jit
def ordered(x):
    """int32 in the order of float32 `x`, and back from its bits: the function is its own inverse."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(key):
    bits = key ^ ((key >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _threshold(keys, weights, target):
    """Largest key t with sum of weights[keys >= t] >= target; the lowest key where no sum reaches it.

    Keys that take no part are LOWEST. By value the search needs few steps for scores that are spread evenly; by bits it
    ends after 32 whatever they are.
    """
    low = tl.min(tl.where(keys == LOWEST, HIGHEST, keys), axis=0)
    high = tl.max(keys, axis=0)
    found = target * 0.0 - 1.0
    step = 0
    while (low < high) & (found != target):
        middle = (low | high) - ((low ^ high) >> 1)  # mean, rounded up, without overflow
        by_value = ordered(0.5 * _value(low) + 0.5 * _value(high))
        by_value = tl.minimum(tl.maximum(by_value, low + 1), high)
        middle = tl.where(step < VALUE_STEPS, by_value, middle)
        found = tl.sum(tl.where(keys >= middle, weights, 0.0), axis=0)
        low = tl.where(found >= target, middle, low)
        high = tl.where(found >= target, high, middle - 1)
        step += 1
    return tl.where(target > 0, low, HIGHEST)


@triton.jit
def store_chosen(index, place, above, equal, need, above_before, equal_before):
    """Write the places that are `above`, and of the `equal` ones the first `need`, in order.

    `above_before` and `equal_before` count those of earlier chunks of the row.
    """
    packed = above.to(tl.int32) + (equal.to(tl.int32) << 16)  # two counts in one scan, each up to 16,384
    scan = tl.cumsum(packed, axis=0) - packed
    above_rank = above_before + (scan & 0xFFFF)
    equal_rank = equal_before + (scan >> 16)
    chosen = above | (equal & (equal_rank < need))
    tl.store(index + above_rank + tl.minimum(equal_rank, need), place, mask=chosen)


@triton.jit
def load_scores(scores, place, inside, length, first, last):
    """Scores, which are valid, and which of these are chosen in any case."""
    x = tl.load(scores + place, mask=inside, other=float("-inf")).to(tl.float32)
    valid = inside & (x > float("-inf"))
    forced = valid & ((place < first) | (place >= length - last))
    return x, valid, forced


@triton.jit
def _select_kernel(
    scores,
    candidates,
    lengths,
    index,
    stride_b,
    stride_h,
    num_rows_each,
    num_entries,
    num_candidates,
    k,
    first,
    last,
    BLOCK: tl.constexpr,
    FROM_CANDIDATES: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    follow(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    b = row // num_rows_each
    length = num_entries
    if HAS_LENGTHS:
        length = tl.minimum(tl.load(lengths + b), num_entries)
    local = tl.arange(0, BLOCK)
    place = tl.program_id(1) * BLOCK + local
    if FROM_CANDIDATES:
        at = candidates + row * num_candidates + local
        place = tl.load(at, mask=local < num_candidates, other=-1)
    base = scores + b * stride_b + (row % num_rows_each) * stride_h
    inside = (place >= 0) & (place < length)
    x, valid, forced = load_scores(base, place, inside, length, first, last)
    want = tl.minimum(tl.sum(valid.to(tl.int32), axis=0), k)
    rest = want - tl.sum(forced.to(tl.int32), axis=0)
    keys = tl.where(valid & ~forced, ordered(x), LOWEST)
    weights = tl.full([BLOCK], 1.0, tl.float32)
    threshold = _threshold(keys, weights, rest.to(tl.float32))
    above = forced | (keys > threshold)
    equal = keys == threshold
    need = want - tl.sum(above.to(tl.int32), axis=0)
    to = index + (row * tl.num_programs(1) + tl.program_id(1)) * k
    store_chosen(to, place, above, equal, need, 0, 0)
    tl.store(to + local, tl.full([BLOCK], -1, tl.int32), mask=(local >= want) & (local < k))


@triton.jit
def _keep_mass_kernel(
    scores,
    best,
    lengths,
    index,
    counts,
    stride_b,
    stride_h,
    num_rows_each,
    num_entries,
    k,
    p,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    SOFTMAX: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    b = row // num_rows_each
    length = num_entries
    if HAS_LENGTHS:
        length = tl.minimum(tl.load(lengths + b), num_entries)
    base = scores + b * stride_b + (row % num_rows_each) * stride_h
    local = tl.arange(0, BLOCK)
    place = tl.load(best + row * k + local, mask=local < k, other=-1)
    x = tl.load(base + place, mask=place >= 0, other=float("-inf")).to(tl.float32)
    highest = tl.maximum(
        tl.max(x, axis=0), -3.0e38
    )  # the best are the highest of the row; finite in an empty one
    partial = tl.zeros([CHUNK], tl.float32)
    for start in range(0, length, CHUNK):
        other = start + tl.arange(0, CHUNK)
        y = tl.load(base + other, mask=other < length, other=float("-inf")).to(tl.float32)
        y = tl.where(y > float("-inf"), y, float("-inf"))
        partial += tl.exp(y - highest) if SOFTMAX else tl.maximum(y, 0.0)
    total = tl.sum(partial, axis=0)
    valid = place >= 0
    mass = tl.exp(x - highest) if SOFTMAX else tl.maximum(x, 0.0)
    mass = tl.where(valid, mass, 0.0) / tl.where(total > 0, total, 1.0)
    keys = tl.where(valid, ordered(x), LOWEST)
    threshold = _threshold(keys, mass, p)
    above = keys > threshold
    equal = keys == threshold
    num_equal = tl.sum(equal.to(tl.int32), axis=0)
    each = tl.max(tl.where(equal, mass, 0.0), axis=0)
    missing = p - tl.sum(tl.where(above, mass, 0.0), axis=0)
    # As many of the equal ones as the mass asks for; all where they hold none, so that no division by zero decides.
    share = tl.ceil(missing / tl.where(each > 0, each, 1.0))
    share = tl.where(each > 0, share, num_equal.to(tl.float32))
    need = tl.minimum(tl.maximum(share, 1.0), num_equal.to(tl.float32)).to(tl.int32)
    count = tl.sum(above.to(tl.int32), axis=0) + need
    to = index + row * k
    store_chosen(to, place, above, equal, need, 0, 0)
    tl.store(to + local, tl.full([BLOCK], -1, tl.int32), mask=(local >= count) & (local < k))
    tl.store(counts + row, count)


def triton_top_k(
    scores_BhN: Tensor,
    k: int,
    *,
    always_first: int,
    always_last: int,
    lengths: Tensor | None,
    chunk: int | None = None,
) -> Tensor:
    """See `top_k`; `chunk` forces the entries a program of the first of two launches holds (a power of two)."""
    B, h, N = scores_BhN.shape
    index = torch.empty(B, h, k, dtype=torch.int32, device=scores_BhN.device)

    def launch(candidates: Tensor | None, out: Tensor, num_chunks: int, block: int) -> None:
        _select_kernel[(B * h, num_chunks)](
            scores_BhN,
            candidates,
            lengths,
            out,
            *scores_BhN.stride()[:2],
            h,
            N,
            0 if candidates is None else candidates.shape[1],
            k,
            always_first,
            always_last,
            BLOCK=block,
            FROM_CANDIDATES=candidates is not None,
            HAS_LENGTHS=lengths is not None,
            **overlap(scores_BhN),
            num_warps=_warps(block),
        )

    if chunk is None and max(N, k) <= ROW:
        launch(None, index, 1, triton.next_power_of_2(max(N, k)))
        return index
    chunk = chunk or _chunk(N, k)
    if chunk is None:
        from longspan.ops.estimate.radix_triton import triton_radix_top_k

        return triton_radix_top_k(
            scores_BhN, k, always_first=always_first, always_last=always_last, lengths=lengths
        )
    num_chunks = triton.cdiv(N, chunk)
    candidates = torch.empty(B * h, num_chunks * k, dtype=torch.int32, device=scores_BhN.device)
    launch(None, candidates, num_chunks, chunk)
    launch(candidates, index, 1, triton.next_power_of_2(num_chunks * k))
    return index


def triton_top_p(
    scores_BhN: Tensor, p: float, max_k: int, *, softmax: bool, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `top_p`."""
    B, h, N = scores_BhN.shape
    best = triton_top_k(scores_BhN, max_k, always_first=0, always_last=0, lengths=lengths)
    index = torch.empty_like(best)
    counts = torch.empty(B, h, dtype=torch.int32, device=scores_BhN.device)
    block = triton.next_power_of_2(max_k)
    _keep_mass_kernel[(B * h,)](
        scores_BhN,
        best,
        lengths,
        index,
        counts,
        *scores_BhN.stride()[:2],
        h,
        N,
        max_k,
        p,
        BLOCK=block,
        CHUNK=min(8192, triton.next_power_of_2(N)),
        SOFTMAX=softmax,
        HAS_LENGTHS=lengths is not None,
        num_warps=max(8, _warps(block)),
    )
    return index, counts


def _chunk(N: int, k: int) -> int | None:
    """Entries a program of the first launch holds, so that the second can hold the best of all; None where none can."""
    for most in (4096, ROW):  # few candidates if possible: the second launch has one program a row
        for chunk in (2048, 4096, 8192, ROW):
            if triton.cdiv(N, chunk) * k <= min(most, N // 2):
                return chunk
    return None


def _warps(block: int) -> int:
    return max(1, min(32, block // 256))
