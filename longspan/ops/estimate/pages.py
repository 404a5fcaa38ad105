"""Pages of keys in few numbers, and how well queries may match them.

A page is `page_tokens` keys in a row. Its summary is the mean of its keys, or the lowest and highest value per channel,
with which

    sum_d max(q_d low_d, q_d high_d) = max(q, 0) . high + min(q, 0) . low  >=  q . k   for every key k of the page

bounds what any of its tokens can score; the right-hand form is two products of matrices. Pages of one token are the keys
themselves: `page_scores(q, keys, kind="mean")` scores tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from longspan.ops.backend import choose, triton_reason

Kind = Literal["mean", "minmax"]
Reduce = Literal["max", "sum"]
Pages = Tensor | tuple[Tensor, Tensor]
MOST_QUERY_ROWS = 256  # queries times heads of a kv head that one kernel program holds


def mean_pages(
    keys_BKSD: Tensor,
    page_tokens: int,
    *,
    start_page: int = 0,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Mean key of every page.

    Args:
        keys_BKSD: any strides but the last dimension's, which is 1.
        page_tokens: tokens of a page, 1 to 1024. The last page may hold fewer; its mean is over those it holds.
        start_page: pages before it are left as they are in `out`. After tokens were appended to a store of `n` tokens,
            `n // page_tokens` is the first page that changed.
        out: `[B, K, at least P, D]` of the keys' dtype, P = ceil(S / page_tokens), written from `start_page` on; None for
            a new one.
        backend: `triton` or `naive`; None for the first that can.

    Returns:
        `[B, K, P, D]` of the keys' dtype (sums in float32): the first P pages of `out`.

    Raises:
        ValueError: for shapes, dtypes or sizes that do not fit.
    """
    outs = None if out is None else (out,)
    return _summaries("mean", keys_BKSD, page_tokens, start_page, outs, backend)[0]


def minmax_pages(
    keys_BKSD: Tensor,
    page_tokens: int,
    *,
    start_page: int = 0,
    out: tuple[Tensor, Tensor] | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Lowest and highest value per channel of every page: `(lows, highs)`; arguments as of `mean_pages`."""
    lows, highs = _summaries("minmax", keys_BKSD, page_tokens, start_page, out, backend)
    return lows, highs


def page_scores(
    q_BHTD: Tensor,
    pages: Pages,
    *,
    kind: Kind,
    scale: float = 1.0,
    reduce: Reduce = "max",
    per_head: bool = False,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Scores of pages for the queries of a step.

    Args:
        q_BHTD: queries.
        pages: for kind `mean` one tensor `[B, K, P, D]`, for `minmax` the pair (lows, highs); dtype of q.
        kind: `mean`: q . mean. `minmax`: the upper bound of q . k over the keys of the page.
        scale: scores are multiplied by it.
        reduce: over the T queries, and unless `per_head` over the G heads of a kv head: `max` or `sum`.
        per_head: one row of scores for each of the H heads instead of each of the K kv heads.
        lengths: int32 `[B]`, pages in use; those behind score -inf. None for all P.
        backend: `triton` or `naive`; None for the first that can.

    Returns:
        float32 `[B, K, P]`, or `[B, H, P]` per head.

    Raises:
        ValueError: for shapes, dtypes or settings that do not fit.
    """
    first, second = _check_scores(q_BHTD, pages, kind, reduce, lengths)
    G = q_BHTD.shape[1] // first.shape[1]
    reason = triton_reason(q_BHTD, first, forced=backend == "triton")
    rows = _power_of_two(G) * _power_of_two(q_BHTD.shape[2])
    if reason is None and rows > MOST_QUERY_ROWS:
        reason = f"{rows} rows (heads of a kv head times queries) are above {MOST_QUERY_ROWS}"
    chosen = choose("page_scores", {"triton": reason, "naive": None}, backend)
    if chosen == "triton":
        from longspan.ops.estimate.pages_triton import triton_page_scores

        return triton_page_scores(
            q_BHTD, first, second, scale=scale, reduce=reduce, per_head=per_head, lengths=lengths
        )
    return naive_page_scores(
        q_BHTD, first, second, scale=scale, reduce=reduce, per_head=per_head, lengths=lengths
    )


def naive_pages(keys_BKSD: Tensor, page_tokens: int, kind: Kind) -> tuple[Tensor, ...]:
    """See `mean_pages` and `minmax_pages`: the mean, or lows and highs, of all pages."""
    S, dtype = keys_BKSD.shape[2], keys_BKSD.dtype
    missing = -S % page_tokens

    def paged(fill: float) -> Tensor:
        padded = functional.pad(keys_BKSD.float(), (0, 0, 0, missing), value=fill)
        return padded.unflatten(2, (-1, page_tokens))

    if kind == "minmax":
        return paged(torch.inf).amin(3).to(dtype), paged(-torch.inf).amax(3).to(dtype)
    start = torch.arange(0, S, page_tokens, device=keys_BKSD.device)
    held = (S - start).clamp(max=page_tokens)
    return ((paged(0.0).sum(3) / held[:, None]).to(dtype),)


def naive_page_scores(
    q_BHTD: Tensor,
    first: Tensor,
    second: Tensor | None,
    *,
    scale: float,
    reduce: Reduce,
    per_head: bool,
    lengths: Tensor | None,
) -> Tensor:
    """See `page_scores`: `first` holds means, or lows with highs in `second`."""
    K, P = first.shape[1:3]
    q_BKGTD = q_BHTD.float().unflatten(1, (K, -1))
    pages = first.float()[:, :, None].transpose(-1, -2)
    if second is None:
        scores = q_BKGTD @ pages
    else:
        highs = second.float()[:, :, None].transpose(-1, -2)
        scores = q_BKGTD.clamp(min=0) @ highs + q_BKGTD.clamp(max=0) @ pages
    scores = scores * scale
    over = (3,) if per_head else (2, 3)
    scores = scores.amax(over) if reduce == "max" else scores.sum(over)
    scores = scores.flatten(1, 2) if per_head else scores
    if lengths is not None:
        unused = torch.arange(P, device=scores.device) >= lengths[:, None, None]
        scores = scores.masked_fill(unused, -torch.inf)
    return scores


def _summaries(
    kind: Kind,
    keys_BKSD: Tensor,
    page_tokens: int,
    start_page: int,
    outs: tuple[Tensor, ...] | None,
    backend: str | None,
) -> tuple[Tensor, ...]:
    if keys_BKSD.dim() != 4 or keys_BKSD.shape[2] < 1:
        raise ValueError(f"got keys {list(keys_BKSD.shape)}; allowed is [B, K, S, D] with S of 1 or more")
    if not 1 <= page_tokens <= 1024:
        raise ValueError(f"got page_tokens={page_tokens}; allowed is 1 to 1024")
    B, K, S, D = keys_BKSD.shape
    P = -(-S // page_tokens)
    if not 0 <= start_page <= P or (outs is None and start_page):
        raise ValueError(
            f"got start_page={start_page}; allowed is 0 to {P} (the pages of {S} tokens), and 0 where out is not given"
        )
    for x in outs or ():
        if x.dim() != 4 or (*x.shape[:2], x.shape[3]) != (B, K, D) or x.shape[2] < P:
            raise ValueError(f"got out {list(x.shape)}; allowed is [{B}, {K}, {P} or more, {D}]")
        if x.dtype != keys_BKSD.dtype or x.device != keys_BKSD.device:
            raise ValueError(
                f"got out of {x.dtype} on {x.device}; allowed is {keys_BKSD.dtype} on {keys_BKSD.device}, as the keys"
            )
    reason = triton_reason(keys_BKSD, forced=backend == "triton")
    chosen = choose("pages", {"triton": reason, "naive": None}, backend)
    if outs is None:
        outs = tuple(keys_BKSD.new_empty(B, K, P, D) for _ in range(1 if kind == "mean" else 2))
    outs = tuple(x[:, :, :P] for x in outs)
    if start_page == P:
        return outs
    if chosen == "triton":
        from longspan.ops.estimate.pages_triton import triton_pages

        triton_pages(keys_BKSD, page_tokens, start_page, outs)
    else:
        changed = keys_BKSD[:, :, start_page * page_tokens :]
        for x, new in zip(outs, naive_pages(changed, page_tokens, kind), strict=True):
            x[:, :, start_page:] = new
    return outs


def _check_scores(
    q_BHTD: Tensor, pages: Pages, kind: Kind, reduce: Reduce, lengths: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    if kind not in ("mean", "minmax") or reduce not in ("max", "sum"):
        raise ValueError(
            f"got kind={kind!r}, reduce={reduce!r}; allowed are kind 'mean' or 'minmax' and reduce 'max' or 'sum'"
        )
    given = (pages,) if isinstance(pages, Tensor) else tuple(pages)
    if len(given) != (1 if kind == "mean" else 2):
        raise ValueError(
            f"got {len(given)} tensors of pages for kind={kind!r}; allowed is one for 'mean', (lows, highs) for 'minmax'"
        )
    shapes = f"q {list(q_BHTD.shape)}, pages {[list(x.shape) for x in given]}"
    if q_BHTD.dim() != 4 or any(x.dim() != 4 or x.shape != given[0].shape for x in given):
        raise ValueError(f"got {shapes}; allowed are q [B, H, T, D] and pages of one shape [B, K, P, D]")
    B, H, T, D = q_BHTD.shape
    K, P = given[0].shape[1:3]
    if given[0].shape[0] != B or given[0].shape[3] != D or K == 0 or H % K or T < 1 or P < 1:
        raise ValueError(f"got {shapes}; B and D must be equal, H a multiple of K, T and P 1 or more")
    for x in given:
        if x.dtype != q_BHTD.dtype or x.device != q_BHTD.device:
            raise ValueError(
                f"got pages of {x.dtype} on {x.device}; allowed is {q_BHTD.dtype} on {q_BHTD.device}, as q"
            )
    check_lengths(lengths, B, q_BHTD.device)
    return given[0], given[1] if kind == "minmax" else None


def check_lengths(lengths: Tensor | None, batch: int, device: torch.device) -> None:
    """Raise ValueError unless `lengths` is None or int32 `[batch]` on `device`."""
    if lengths is not None and (
        lengths.shape != (batch,) or lengths.dtype != torch.int32 or lengths.device != device
    ):
        raise ValueError(
            f"got lengths {list(lengths.shape)} of {lengths.dtype} on {lengths.device}; "
            f"allowed is [{batch}] of torch.int32 on {device}"
        )


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
