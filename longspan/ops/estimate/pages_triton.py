# mypy: disable-error-code="no-untyped-def"
"""Kernels that summarise pages of keys and score them: each reads its input once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan.ops.overlap import follow, overlap


@triton.jit
def _pages_kernel(
    keys,
    first,
    second,
    stride_kb,
    stride_kh,
    stride_ks,
    stride_fb,
    stride_fh,
    stride_fp,
    stride_sb,
    stride_sh,
    stride_sp,
    num_heads,
    num_tokens,
    num_pages,
    start_page,
    page_tokens,
    head_dim,
    MINMAX: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    b, head = row // num_heads, row % num_heads
    page = start_page + tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    token = tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    place = page[:, None] * page_tokens + token[None, :]
    held = (token[None, :] < page_tokens) & (place < num_tokens) & (page[:, None] < num_pages)
    mask = held[:, :, None] & (d < head_dim)[None, None, :]
    at = keys + b * stride_kb + head * stride_kh + place[:, :, None].to(tl.int64) * stride_ks
    at = at + d[None, None, :]
    out_mask = (page < num_pages)[:, None] & (d < head_dim)[None, :]
    out = page[:, None].to(tl.int64)
    if MINMAX:
        x = tl.load(at, mask=mask, other=float("inf"))
        low = tl.min(x, axis=1)
        high = tl.max(tl.where(mask, x, float("-inf")), axis=1)
        to = first + b * stride_fb + head * stride_fh + out * stride_fp + d[None, :]
        tl.store(to, low.to(first.dtype.element_ty), mask=out_mask)
        to = second + b * stride_sb + head * stride_sh + out * stride_sp + d[None, :]
        tl.store(to, high.to(second.dtype.element_ty), mask=out_mask)
    else:
        x = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        count = tl.maximum(tl.sum(held.to(tl.int32), axis=1), 1)
        mean = tl.sum(x, axis=1) / count.to(tl.float32)[:, None]
        to = first + b * stride_fb + head * stride_fh + out * stride_fp + d[None, :]
        tl.store(to, mean.to(first.dtype.element_ty), mask=out_mask)


@triton.jit
def _page_scores_kernel(
    q,
    first,
    second,
    lengths,
    out,
    stride_qb,
    stride_qh,
    stride_qt,
    stride_fb,
    stride_fh,
    stride_fp,
    stride_sb,
    stride_sh,
    stride_sp,
    num_kv_heads,
    num_pages,
    num_queries,
    head_dim,
    scale,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MINMAX: tl.constexpr,
    SUM: tl.constexpr,
    PER_HEAD: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    follow(OVERLAP)
    row = tl.program_id(1).to(tl.int64)
    b, head = row // num_kv_heads, row % num_kv_heads
    page = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    d = tl.arange(0, BLOCK_D)
    length = num_pages
    if HAS_LENGTHS:
        length = tl.minimum(tl.load(lengths + b), num_pages)
    used = page < length
    mask = used[:, None] & (d < head_dim)[None, :]
    place = page[:, None].to(tl.int64)
    x = tl.load(
        first + b * stride_fb + head * stride_fh + place * stride_fp + d[None, :], mask=mask, other=0.0
    )
    # Row g * BLOCK_T + t holds query t of the g-th head of this kv head.
    r = tl.arange(0, ROWS)
    g, t = r // BLOCK_T, r % BLOCK_T
    real = (g < GROUP) & (t < num_queries)
    at = q + b * stride_qb + (head * GROUP + g) * stride_qh + t * stride_qt
    query = tl.load(at[None, :] + d[:, None], mask=real[None, :] & (d < head_dim)[:, None], other=0.0)
    if MINMAX:
        y = tl.load(
            second + b * stride_sb + head * stride_sh + place * stride_sp + d[None, :], mask=mask, other=0.0
        )
        zero = tl.zeros_like(query)
        scores = tl.dot(x, tl.where(query < 0, query, zero), input_precision=PRECISION)
        scores = tl.dot(y, tl.where(query < 0, zero, query), scores, input_precision=PRECISION)
    else:
        scores = tl.dot(x, query, input_precision=PRECISION)
    scores = tl.where(real[None, :], scores * scale, 0.0 if SUM else float("-inf"))
    if PER_HEAD:
        split = tl.reshape(scores, [BLOCK_P, ROWS // BLOCK_T, BLOCK_T])
        each = tl.sum(split, axis=2) if SUM else tl.max(split, axis=2)
        each = tl.where(used[:, None], each, float("-inf"))
        n = tl.arange(0, ROWS // BLOCK_T)
        to = out + ((row * GROUP + n) * num_pages)[None, :] + page[:, None]
        tl.store(to, each, mask=(page < num_pages)[:, None] & (n < GROUP)[None, :])
    else:
        best = tl.sum(scores, axis=1) if SUM else tl.max(scores, axis=1)
        best = tl.where(used, best, float("-inf"))
        tl.store(out + row * num_pages + page, best, mask=page < num_pages)


def triton_pages(keys_BKSD: Tensor, page_tokens: int, start_page: int, outs: tuple[Tensor, ...]) -> None:
    """Write the pages from `start_page` on into `outs`: the mean, or lows and highs."""
    B, K, S, D = keys_BKSD.shape
    P = outs[0].shape[2]
    block_t, block_d = triton.next_power_of_2(page_tokens), max(16, triton.next_power_of_2(D))
    block_p = max(1, 16384 // (block_t * block_d))
    block_p = min(block_p, triton.next_power_of_2(P - start_page))
    first, second = outs[0], outs[-1]
    _pages_kernel[(triton.cdiv(P - start_page, block_p), B * K)](
        keys_BKSD,
        first,
        second,
        *keys_BKSD.stride()[:3],
        *first.stride()[:3],
        *second.stride()[:3],
        K,
        S,
        P,
        start_page,
        page_tokens,
        D,
        MINMAX=len(outs) == 2,
        BLOCK_P=block_p,
        BLOCK_T=block_t,
        BLOCK_D=block_d,
        num_warps=4 if block_p * block_t * block_d <= 16384 else 16,
    )


def triton_page_scores(
    q_BHTD: Tensor,
    first: Tensor,
    second: Tensor | None,
    *,
    scale: float,
    reduce: str,
    per_head: bool,
    lengths: Tensor | None,
    config: tuple[int, int] | None = None,
) -> Tensor:
    """See `page_scores`; `config` is (pages a program, warps), None for the table's."""
    B, H, T, D = q_BHTD.shape
    K, P = first.shape[1:3]
    group, block_t = H // K, triton.next_power_of_2(T)
    block_d = max(16, triton.next_power_of_2(D))
    rows = max(16, triton.next_power_of_2(group) * block_t)
    page_bytes = block_d * first.element_size() * (1 if second is None else 2)
    block_p, warps = config or _config(B * K, P, page_bytes, rows)
    out = torch.empty(B, H if per_head else K, P, dtype=torch.float32, device=q_BHTD.device)
    other = first if second is None else second
    _page_scores_kernel[(triton.cdiv(P, block_p), B * K)](
        q_BHTD,
        first,
        other,
        lengths,
        out,
        *q_BHTD.stride()[:3],
        *first.stride()[:3],
        *other.stride()[:3],
        K,
        P,
        T,
        D,
        scale,
        GROUP=group,
        ROWS=rows,
        BLOCK_T=block_t,
        BLOCK_P=block_p,
        BLOCK_D=block_d,
        MINMAX=second is not None,
        SUM=reduce == "sum",
        PER_HEAD=per_head,
        HAS_LENGTHS=lengths is not None,
        PRECISION="ieee" if q_BHTD.dtype == torch.float32 else "tf32",
        **overlap(q_BHTD),
        num_warps=warps,
    )
    return out


def _config(heads: int, num_pages: int, page_bytes: int, rows: int) -> tuple[int, int]:
    """Pages a program and warps: 32 KiB of summaries each, less where the programs would not fill the GPU."""
    block = max(16, min(512, 32768 // page_bytes, 8192 // rows))
    while block > 16 and heads * triton.cdiv(num_pages, block) < 256:
        block //= 2
    return block, 4
