"""Decoding over the pages that match the queries best, or over everything where choosing takes longer than reading."""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.ops.backend import choose
from longspan.ops.decode import Ragged, gather_decode, ragged_decode
from longspan.ops.decode.ragged import check_gather
from longspan.ops.estimate.pages import Kind, Pages, Reduce
from longspan.ops.estimate.select import select_pages

DENSE_BYTES = 24e6  # keys and values that an H100 or H200 reads while pages are chosen


def page_decode(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    pages: Pages,
    *,
    scale: float,
    keep_tokens: int,
    page_tokens: int,
    kind: Kind,
    reduce: Reduce = "max",
    always_first: int = 1,
    always_last: int = 1,
    dense_bytes: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of 1 to 16 queries, the last T of the S keys, over their best pages and themselves.

    Args:
        q_BHTD, k_BKSD, v_BKSD: as of `gather_decode`.
        pages: summaries of the stored keys (`mean_pages`, `minmax_pages`), P = ceil(S / page_tokens).
        scale: of the dot products before softmax.
        keep_tokens: tokens of the chosen pages, in whole pages (rounded down), one page at least.
        page_tokens: tokens of a page.
        kind, reduce, always_first, always_last: as of `select_pages`.
        dense_bytes: keys and values of up to so many bytes are visited whole, as are those of up to `keep_tokens`; None
            for 24 MB on a GPU, where choosing takes longer than reading these, and 0 elsewhere.

    Returns:
        output `[B, H, T, D]` in the dtype of q, log-sum-exp `[B, H, T]` float32 (natural).

    Raises:
        ValueError: shapes, types or devices that do not fit.
    """
    index = torch.empty(len(q_BHTD), 1, 0, dtype=torch.int32, device=q_BHTD.device)
    check_gather(q_BHTD, k_BKSD, v_BKSD, index, page_tokens)
    S = k_BKSD.shape[2]
    first = pages if isinstance(pages, Tensor) else pages[0]
    num_pages = -(-S // page_tokens)
    if keep_tokens < page_tokens or first.dim() != 4 or first.shape[2] != num_pages:
        raise ValueError(
            f"got keep_tokens={keep_tokens} with pages of {page_tokens} tokens, {list(first.shape)}; allowed are a page or "
            f"more, and {num_pages} pages for {S} tokens"
        )
    if dense_bytes is None:
        dense_bytes = DENSE_BYTES if q_BHTD.is_cuda else 0
    num_bytes = k_BKSD.element_size() * (k_BKSD.numel() + v_BKSD.numel())
    reason = None
    if keep_tokens < S and num_bytes > dense_bytes:
        reason = f"{num_bytes / 1e6:.3g} MB of keys and values take longer to read than pages to choose"
    if choose("page_decode", {"dense": reason, "pages": None}) == "dense":
        lengths = torch.full(k_BKSD.shape[:2], S, dtype=torch.int32, device=k_BKSD.device)
        return ragged_decode(q_BHTD, Ragged(keys=k_BKSD, values=v_BKSD, lengths=lengths), scale=scale)
    index = select_pages(
        q_BHTD,
        pages,
        keep_tokens // page_tokens,
        kind=kind,
        reduce=reduce,
        always_first=always_first,
        always_last=always_last,
    )
    return gather_decode(q_BHTD, k_BKSD, v_BKSD, index, scale=scale, page_tokens=page_tokens)
