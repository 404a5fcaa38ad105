# mypy: disable-error-code="no-untyped-def"
"""A few programs read chosen pages out of pinned host memory, straight over the bus, and leave the other SMs to compute."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 32  # enough reads in flight to fill the bus; more would take SMs from the computation


@triton.jit
def _fetch_kernel(
    pages,
    index,
    keys,
    values,
    num_chosen,
    num_pages,
    num_held,
    num_items,
    PAGE_ELEMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Item i is page index[i] of the kv head i // num_chosen; a page is PAGE_ELEMENTS of keys, then as many of values."""
    for item in tl.range(tl.program_id(0), num_items, tl.num_programs(0)):
        page = tl.load(index + item)
        held = (page >= 0) & (page < num_held)
        row = (item // num_chosen) * num_pages + tl.where(held, page, 0)
        source = pages + row.to(tl.int64) * (2 * PAGE_ELEMENTS)
        target = tl.full((), PAGE_ELEMENTS, tl.int64) * item
        for start in range(0, PAGE_ELEMENTS, BLOCK):
            at = start + tl.arange(0, BLOCK)
            inside = at < PAGE_ELEMENTS
            tl.store(keys + target + at, tl.load(source + at, mask=inside & held, other=0.0), mask=inside)
            found = tl.load(source + PAGE_ELEMENTS + at, mask=inside & held, other=0.0)
            tl.store(values + target + at, found, mask=inside)


def triton_fetch(pages: Tensor, index_BKN: Tensor, num_held: int) -> tuple[Tensor, Tensor]:
    """See `naive_fetch`; `pages` is pinned, the host does not wait."""
    B, K, num_pages, _, page, D = pages.shape
    N = index_BKN.shape[2]
    keys = torch.empty(B, K, N * page, D, dtype=pages.dtype, device=index_BKN.device)
    values = torch.empty_like(keys)
    items = B * K * N
    if items:
        _fetch_kernel[(min(items, PROGRAMS),)](
            pages,
            index_BKN.contiguous(),
            keys,
            values,
            N,
            num_pages,
            num_held,
            items,
            PAGE_ELEMENTS=page * D,
            BLOCK=min(triton.next_power_of_2(page * D), 4096),
            num_warps=8,
        )
    return keys, values
