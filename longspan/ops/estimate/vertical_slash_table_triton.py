# mypy: disable-error-code="no-untyped-def"
"""Kernels between the estimate of `vertical_slash` and a block table.

Single keys: a row of up to millions of sums is cut in segments. The k-th highest maximum of a segment is at most the k-th
highest sum, so every key that is chosen lies in the k segments with the highest maxima (or ties with one that does): the
rows are read once, and two short selections remain.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan.ops.estimate.select import top_k
from longspan.ops.estimate.vertical_slash_table import row_width


@triton.jit
def _estimate_row(row, P, per_estimate):
    """Row of the estimate that serves a row of pieces; `per_estimate` pieces share one."""
    return row // P * ((P + per_estimate - 1) // per_estimate) + row % P // per_estimate


@triton.jit
def _column_score(columns, row, s, valid, start, first, S, first_tokens):
    past = valid & (s >= first) & (s < start)
    mass = tl.load(columns + row * S + s, mask=past, other=float("-inf"))
    return tl.where(past & (s < first + first_tokens), float("inf"), mass)


@triton.jit
def _maxima_kernel(
    columns,
    maxima,
    first_place,
    H,
    P,
    T,
    S,
    per_estimate,
    num_segments,
    local_tokens,
    first_tokens,
    WIDTH: tl.constexpr,
    SEGMENTS: tl.constexpr,
    HAS_FIRST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    first = 0
    if HAS_FIRST:
        first = tl.load(first_place + row // P // H)
    start = S - T + (row % P).to(tl.int32) * local_tokens
    estimate = _estimate_row(row, P, per_estimate)
    segment = tl.program_id(1) * SEGMENTS + tl.arange(0, SEGMENTS)
    s = segment[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    scores = _column_score(columns, estimate, s, s < S, start, first, S, first_tokens)
    to = maxima + row * num_segments + segment
    tl.store(to, tl.max(scores, axis=1), mask=segment < num_segments)


@triton.jit
def _candidates_kernel(
    columns,
    segments,
    scores,
    first_place,
    H,
    P,
    T,
    S,
    per_estimate,
    num_chosen,
    local_tokens,
    first_tokens,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_FIRST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    first = 0
    if HAS_FIRST:
        first = tl.load(first_place + row // P // H)
    start = S - T + (row % P).to(tl.int32) * local_tokens
    estimate = _estimate_row(row, P, per_estimate)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    segment = tl.load(segments + row * num_chosen + at // WIDTH, mask=at < num_chosen * WIDTH, other=-1)
    s = segment * WIDTH + at % WIDTH
    score = _column_score(columns, estimate, s, segment >= 0, start, first, S, first_tokens)
    tl.store(scores + row * num_chosen * WIDTH + at, score, mask=at < num_chosen * WIDTH)


@triton.jit
def _places_kernel(chosen, segments, out, num_columns, num_chosen, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = tl.load(chosen + row * num_columns + slot, mask=slot < num_columns, other=-1)
    segment = tl.load(segments + row * num_chosen + at // WIDTH, mask=at >= 0, other=0)
    place = tl.where(at >= 0, segment * WIDTH + at % WIDTH, -1)
    tl.store(out + row * num_columns + slot, place, mask=slot < num_columns)


@triton.jit
def _shared_kernel(
    offsets,
    shared,
    first_place,
    H,
    P,
    per_estimate,
    num_blocks,
    past_blocks,
    BLOCK: tl.constexpr,
    PER_PIECE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HAS_FIRST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    newest = past_blocks + (row % P).to(tl.int32) * PER_PIECE
    if HAS_FIRST:
        newest -= tl.load(first_place + row // P // H) // BLOCK
    estimate = _estimate_row(row, P, per_estimate)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    score = tl.load(
        offsets + estimate * num_blocks + m, mask=(m >= PER_PIECE) & (m <= newest), other=float("-inf")
    )
    tl.store(shared + row * num_blocks + m, score, mask=m < num_blocks)


@triton.jit
def _candidate(j, i, offsets, best, num_best, newest, PER_PIECE: tl.constexpr):
    """Offset and score of candidate j of row i of a piece: the best of all rows, then what lies at the ends of its window,
    which is the offsets i + 1 .. newest + i; all windows share PER_PIECE .. newest."""
    m = tl.load(best + j, mask=j < num_best, other=-1)
    edge = j - num_best
    low = i + 1 + edge
    high = tl.maximum(newest + 1, PER_PIECE) + edge - (PER_PIECE - 1 - i)
    m = tl.where(j < num_best, m, tl.where(low < PER_PIECE, low, high))
    valid = (m >= 0) & (m <= newest + i)
    return m, tl.load(offsets + m, mask=valid, other=-1.0)


@triton.jit
def _rows_kernel(
    offsets,
    best,
    index,
    counts,
    first_place,
    H,
    P,
    T,
    S,
    per_estimate,
    NQ,
    num_blocks,
    num_best,
    num_slashes,
    width,
    BLOCK: tl.constexpr,
    PER_PIECE: tl.constexpr,
    CANDIDATES: tl.constexpr,
    OTHERS: tl.constexpr,
    SLOTS: tl.constexpr,
    HAS_FIRST: tl.constexpr,
):
    i = tl.program_id(0) % PER_PIECE
    row = (tl.program_id(0) // PER_PIECE).to(tl.int64)
    piece = (row % P).to(tl.int32)
    query_row = piece * PER_PIECE + i
    if query_row < NQ:
        own_first = (S - T) // BLOCK + piece * PER_PIECE
        own = (tl.minimum((query_row + 1) * BLOCK, T) - 1 + S - T) // BLOCK - own_first + 1
        newest = own_first
        if HAS_FIRST:
            newest -= tl.load(first_place + row // P // H) // BLOCK
        offsets += _estimate_row(row, P, per_estimate) * num_blocks
        best += row * num_best
        total = num_best + PER_PIECE - 1
        j = tl.arange(0, CANDIDATES)
        m, score = _candidate(j, i, offsets, best, num_best, newest, PER_PIECE)
        score = tl.where(j < total, score, -1.0)
        rank = tl.zeros([CANDIDATES], tl.int32)
        for j0 in range(0, total, OTHERS):
            other = j0 + tl.arange(0, OTHERS)
            _, against = _candidate(other, i, offsets, best, num_best, newest, PER_PIECE)
            against = tl.where(other < total, against, -1.0)
            ahead = (against[None, :] == score[:, None]) & (other[None, :] < j[:, None])
            rank += tl.sum(((against[None, :] > score[:, None]) | ahead).to(tl.int32), axis=1)
        chosen = (score >= 0) & (rank < num_slashes)
        count = own + tl.sum(chosen.to(tl.int32), axis=0)
        place = (row // P * NQ + query_row).to(tl.int64)
        to = index + place * width
        tl.store(to + own + rank, own_first + i - m, mask=chosen)
        for slot0 in range(0, width, SLOTS):
            slot = slot0 + tl.arange(0, SLOTS)
            value = tl.where(slot < own, own_first + slot, -1)
            tl.store(to + slot, value, mask=(slot < own) | ((slot >= count) & (slot < width)))
        tl.store(counts + place, count)


def triton_best_columns(
    columns_BHCS: Tensor,
    num_columns: int,
    *,
    first_tokens: int,
    num_queries: int,
    chunk_tokens: int,
    local_tokens: int,
    first_place: Tensor | None,
) -> Tensor:
    """See `naive_best_columns`."""
    B, H, _, S = columns_BHCS.shape
    P, per_estimate = -(-num_queries // local_tokens), -(-chunk_tokens // local_tokens)
    out = torch.empty(B, H, P, num_columns, dtype=torch.int32, device=columns_BHCS.device)
    if not num_columns:
        return out
    width = segment_tokens(S, num_columns)
    num_segments = -(-S // width)
    num_chosen = min(num_columns, num_segments)
    maxima = columns_BHCS.new_empty(B, H * P, num_segments)
    sizes = (H, P, num_queries, S, per_estimate)
    fixed = {"WIDTH": width, "HAS_FIRST": first_place is not None}
    SEGMENTS, BLOCK = 4096 // width, 1024
    _maxima_kernel[(B * H * P, -(-num_segments // SEGMENTS))](
        *(columns_BHCS, maxima, first_place, *sizes, num_segments, local_tokens, first_tokens),
        SEGMENTS=SEGMENTS,
        **fixed,
    )
    segments = top_k(maxima, num_chosen, backend="triton")
    scores = columns_BHCS.new_empty(B, H * P, num_chosen * width)
    _candidates_kernel[(B * H * P, -(-num_chosen * width // BLOCK))](
        *(columns_BHCS, segments, scores, first_place, *sizes, num_chosen, local_tokens, first_tokens),
        BLOCK=BLOCK,
        **fixed,
    )
    chosen = top_k(scores, num_columns, backend="triton")
    _places_kernel[(B * H * P, -(-num_columns // BLOCK))](
        chosen, segments, out, num_columns, num_chosen, WIDTH=width, BLOCK=BLOCK
    )
    return out


def segment_tokens(num_tokens: int, num_columns: int) -> int:
    """Keys of a segment, a power of two from 8 to 64: about as many segments as keys in the chosen ones."""
    width = 8
    while width < 64 and width * width * num_columns < num_tokens:
        width *= 2
    return width


def triton_rows(
    offsets_BHCM: Tensor,
    num_slashes: int,
    *,
    num_queries: int,
    num_tokens: int,
    block_tokens: int,
    chunk_tokens: int,
    local_tokens: int,
    first_place: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `naive_rows`."""
    B, H, _, num_blocks = offsets_BHCM.shape
    T, S, per_piece = num_queries, num_tokens, local_tokens // block_tokens
    P, per_estimate = -(-T // local_tokens), -(-chunk_tokens // local_tokens)
    NQ, width = -(-T // block_tokens), row_width(num_slashes, T, S, block_tokens, local_tokens)
    index = torch.empty(B, H, NQ, width, dtype=torch.int32, device=offsets_BHCM.device)
    counts = torch.empty(B, H, NQ, dtype=torch.int32, device=offsets_BHCM.device)
    fixed = {"BLOCK": block_tokens, "PER_PIECE": per_piece, "HAS_FIRST": first_place is not None}
    best, num_best = counts, 0  # not read without slashes
    if num_slashes:
        shared = offsets_BHCM.new_empty(B, H * P, num_blocks)
        _shared_kernel[(B * H * P, -(-num_blocks // 1024))](
            *(offsets_BHCM, shared, first_place, H, P, per_estimate, num_blocks, (S - T) // block_tokens),
            BLOCK_M=1024,
            **fixed,
        )
        num_best = min(num_slashes, num_blocks)
        best = top_k(shared, num_best, backend="triton")
    candidates = triton.next_power_of_2(max(16, num_best + per_piece - 1))
    _rows_kernel[(B * H * P * per_piece,)](
        *(offsets_BHCM, best, index, counts, first_place, H, P, T, S, per_estimate, NQ, num_blocks),
        *(num_best, num_slashes, width),
        CANDIDATES=candidates,
        OTHERS=16,
        SLOTS=128,
        num_warps=min(16, max(2, candidates // 64)),
        **fixed,
    )
    return index, counts
