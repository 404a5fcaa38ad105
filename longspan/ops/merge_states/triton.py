# mypy: disable-error-code="no-untyped-def"
"""Triton kernels of `merge_states`: blocks of rows over a few parts, or one row over many parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan.ops.overlap import follow, overlap

FEW_PARTS = (
    8  # up to here a program takes whole rows of every part, with more the parts of one row side by side
)
ROWS = 16
MOST_PARTS_AT_ONCE = 256


@triton.jit
def _few_parts_kernel(
    outs, lses, out, lse, num_rows, D, ROWS: tl.constexpr, D_POW2: tl.constexpr, NUM_PARTS: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    follow(OVERLAP)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, D_POW2)
    there = row < num_rows
    place = row[:, None] * D + column[None, :]
    top = tl.full([ROWS], float("-inf"), tl.float32)
    for i in tl.static_range(NUM_PARTS):
        top = tl.maximum(top, tl.load(lses[i] + row, mask=there, other=float("-inf")))
    base = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, D_POW2], tl.float32)
    for i in tl.static_range(NUM_PARTS):
        part = tl.load(lses[i] + row, mask=there, other=float("-inf"))
        weight = tl.exp(part - base)
        seen = (part > float("-inf"))[:, None] & (column < D)[None, :]
        total += weight[:, None] * tl.load(outs[i] + place, mask=seen, other=0.0).to(tl.float32)
        weights += weight
    safe = tl.where(weights > 0, weights, 1.0)
    inside = there[:, None] & (column < D)[None, :]
    tl.store(out + place, (total / safe[:, None]).to(out.dtype.element_ty), mask=inside)
    tl.store(lse + row, tl.where(weights > 0, base + tl.log(safe), float("-inf")), mask=there)


@triton.jit(do_not_specialize=["num_parts"])
def _many_parts_kernel(
    part_out,
    part_lse,
    first,
    count,
    out,
    lse,
    num_parts,
    rows_in_part,
    D,
    RANGES: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    follow(OVERLAP)
    row = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin, end = 0, num_parts
    inner = row
    if RANGES:
        group = row // rows_in_part
        inner = row - group * rows_in_part
        begin = tl.load(first + group)
        end = begin + tl.load(count + group)
    lanes = tl.arange(0, PARTS)
    top = float("-inf")
    weights = 0.0
    total = tl.zeros([COLUMNS], tl.float32)
    for at in range(begin, end, PARTS):
        part = at + lanes
        place = part.to(tl.int64) * rows_in_part + inner
        found = tl.load(part_lse + place, mask=part < end, other=float("-inf"))
        seen = (found > float("-inf"))[:, None] & (column < D)[None, :]
        values = tl.load(part_out + place[:, None] * D + column[None, :], mask=seen, other=0.0)
        new_top = tl.maximum(top, tl.max(found, 0))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weight = tl.exp(found - base)
        fade = tl.exp(top - base)
        total = total * fade + tl.sum(weight[:, None] * values.to(tl.float32), 0)
        weights = weights * fade + tl.sum(weight, 0)
        top = new_top
    safe = tl.where(weights > 0, weights, 1.0)
    place = row.to(tl.int64) * D + column
    tl.store(out + place, (total / safe).to(out.dtype.element_ty), mask=column < D)
    if tl.program_id(1) == 0:
        tl.store(lse + row, tl.where(weights > 0, top + tl.log(safe), float("-inf")))


def triton_merge_states(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """See `merge_states`."""
    outs = tuple(out.contiguous() for out, _ in parts)
    lses = tuple(lse.contiguous() for _, lse in parts)
    return _few_parts(outs, lses, outs[0].dtype)


def triton_merge_stacked(out_NBHTD: Tensor, lse_NBHT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See `merge_stacked`."""
    N, B, H, T, D = out_NBHTD.shape
    if N <= FEW_PARTS:
        return _few_parts(out_NBHTD.contiguous().unbind(), lse_NBHT.contiguous().unbind(), dtype)
    out = out_NBHTD.new_empty(B, H, T, D, dtype=dtype)
    lse = lse_NBHT.new_empty(B, H, T)
    _many_parts(out_NBHTD.contiguous(), lse_NBHT.contiguous(), None, None, out, lse, N, B * H * T)
    return out, lse


def triton_merge_ranges(
    out_NMD: Tensor, lse_NM: Tensor, first_R: Tensor, count_R: Tensor, out: Tensor, lse: Tensor
) -> None:
    """Merge runs of slots, each into rows of its own.

    Args:
        out_NMD, lse_NM: N slots of M rows, contiguous; slots that no run names are not read.
        first_R, count_R: int32; group r is the slots `first[r] .. first[r] + count[r] - 1`, none when its count is 0.
        out, lse: contiguous, filled: row `r * M + m` of `R * M` is row m of group r.
    """
    M = out_NMD.shape[1]
    _many_parts(out_NMD, lse_NM, first_R, count_R, out, lse, out_NMD.shape[0] // len(first_R), M)


def _few_parts(outs: Sequence[Tensor], lses: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    D = outs[0].shape[-1]
    out = torch.empty_like(outs[0], dtype=dtype)
    lse = torch.empty_like(lses[0])
    if lse.numel():
        _few_parts_kernel[(triton.cdiv(lse.numel(), ROWS),)](
            tuple(outs),
            tuple(lses),
            out,
            lse,
            lse.numel(),
            D,
            ROWS=ROWS,
            D_POW2=triton.next_power_of_2(D),
            NUM_PARTS=len(outs),
            **overlap(out),
        )
    return out, lse


def _many_parts(
    part_out: Tensor,
    part_lse: Tensor,
    first: Tensor | None,
    count: Tensor | None,
    out: Tensor,
    lse: Tensor,
    usual_parts: int,
    rows_in_part: int,
) -> None:
    D = part_out.shape[-1]
    rows = lse.numel()
    # few rows leave most of the GPU idle: columns apart, in pieces of one memory line
    columns = triton.next_power_of_2(D) if rows >= 256 else min(32, triton.next_power_of_2(D))
    parts = min(MOST_PARTS_AT_ONCE * 32 // max(32, columns), max(16, triton.next_power_of_2(usual_parts)))
    if rows:
        _many_parts_kernel[(rows, triton.cdiv(D, columns))](
            part_out,
            part_lse,
            first,
            count,
            out,
            lse,
            usual_parts,
            rows_in_part,
            D,
            RANGES=first is not None,
            PARTS=parts,
            COLUMNS=columns,
            **overlap(out),
        )
