"""The best entries of rows of scores, chosen where the scores are: nothing returns to the host."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from longspan.ops.backend import choose, triton_reason
from longspan.ops.estimate.pages import Kind, Pages, Reduce, check_lengths, page_scores

MOST_TOP_P = 16384  # entries that one kernel program holds


def top_k(
    scores_BhN: Tensor,
    k: int,
    *,
    always_first: int = 0,
    always_last: int = 0,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Index of the k highest scores of every row, ascending.

    Args:
        scores_BhN: float32, float16 or bfloat16, last dimension contiguous. Entries that are -inf or NaN are never chosen.
            Among equal ones the first are taken (by the kernel; on the CPU any of them).
        k: 1 or more, also above N.
        always_first, always_last: the first and last entries of a row in use that are chosen whatever they score, and count
            among the k.
        lengths: int32 `[B]`, entries in use of the rows of a batch item; the others are never chosen. None for N.
        backend: `triton` or `naive`; None for the first that can.

    Returns:
        int32 `[B, h, k]`; rows that have fewer than k entries end in -1.

    Raises:
        ValueError: for shapes, dtypes or sizes that do not fit.
    """
    _check(scores_BhN, k, "k", lengths)
    if always_first < 0 or always_last < 0 or always_first + always_last > k:
        raise ValueError(
            f"got always_first={always_first}, always_last={always_last}; allowed are 0 or more, together k={k} at most"
        )
    reason = triton_reason(scores_BhN[..., :1], forced=backend == "triton")
    chosen = choose("top_k", {"triton": reason, "naive": None}, backend)
    if chosen == "triton":
        from longspan.ops.estimate.select_triton import triton_top_k

        return triton_top_k(
            scores_BhN, k, always_first=always_first, always_last=always_last, lengths=lengths
        )
    return naive_top_k(scores_BhN, k, always_first=always_first, always_last=always_last, lengths=lengths)


def top_p(
    scores_BhN: Tensor,
    p: float,
    max_k: int,
    *,
    softmax: bool = True,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Fewest entries of every row that hold the share `p` of its mass, `max_k` at most.

    Args:
        scores_BhN: as of `top_k`.
        p: above 0, up to 1.
        max_k: budget, 1 or more (a kernel takes 16,384 at most).
        softmax: mass is exp(score) of the row's entries in use; False: the scores themselves are masses, none negative.
        lengths: int32 `[B]`, as of `top_k`; entries not in use hold no mass.
        backend: `triton` or `naive`; None for the first that can.

    Returns:
        index int32 `[B, h, max_k]`, ascending, then -1; counts int32 `[B, h]`.

    Raises:
        ValueError: for shapes, dtypes or sizes that do not fit.
    """
    _check(scores_BhN, max_k, "max_k", lengths)
    if not 0 < p <= 1:
        raise ValueError(f"got p={p}; allowed is above 0, up to 1")
    reason = triton_reason(scores_BhN[..., :1], forced=backend == "triton")
    if reason is None and min(max_k, scores_BhN.shape[2]) > MOST_TOP_P:
        reason = f"max_k={max_k} is above {MOST_TOP_P}"
    chosen = choose("top_p", {"triton": reason, "naive": None}, backend)
    if chosen == "triton":
        from longspan.ops.estimate.select_triton import triton_top_p

        return triton_top_p(scores_BhN, p, max_k, softmax=softmax, lengths=lengths)
    return naive_top_p(scores_BhN, p, max_k, softmax=softmax, lengths=lengths)


def select_pages(
    q_BHTD: Tensor,
    pages: Pages,
    k: int,
    *,
    kind: Kind,
    reduce: Reduce = "max",
    always_first: int = 0,
    always_last: int = 0,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The k best pages of every kv head for the queries of a step: `page_scores`, then `top_k`.

    On a GPU two launches up to 16,384 pages, three beyond while k is small. The index is what `gather_decode` takes.

    Args:
        q_BHTD, pages, kind, reduce: as of `page_scores`.
        k, always_first, always_last: as of `top_k`.
        lengths: int32 `[B]`, pages in use; the others are never chosen. None for all.
        backend: `triton` or `naive` for both; None for the first that can.

    Returns:
        int32 `[B, K, k]`, ascending, then -1.

    Raises:
        ValueError: as the two.
    """
    scores = page_scores(q_BHTD, pages, kind=kind, reduce=reduce, lengths=lengths, backend=backend)
    return top_k(
        scores, k, always_first=always_first, always_last=always_last, lengths=lengths, backend=backend
    )


def naive_top_k(
    scores_BhN: Tensor, k: int, *, always_first: int, always_last: int, lengths: Tensor | None
) -> Tensor:
    """See `top_k`."""
    N = scores_BhN.shape[2]
    scores = _only_used(scores_BhN, lengths)
    place = torch.arange(N, device=scores.device)
    length = N if lengths is None else lengths.clamp(max=N)[:, None, None]
    forced = ((place < always_first) | (place >= length - always_last)) & (scores > -torch.inf)
    ranked = scores.clamp(max=torch.finfo(torch.float32).max).masked_fill(forced, torch.inf)
    values, index = ranked.topk(min(k, N), dim=-1)
    return _ascending(index, values > -torch.inf, k, N)


def naive_top_p(
    scores_BhN: Tensor, p: float, max_k: int, *, softmax: bool, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `top_p`."""
    N = scores_BhN.shape[2]
    scores = _only_used(scores_BhN, lengths)
    used = scores > -torch.inf
    if softmax:
        highest = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
        mass = (scores - highest).exp()
    else:
        mass = torch.where(used, scores.clamp(min=0), 0.0)
    total = mass.sum(-1, keepdim=True)
    values, index = scores.topk(min(max_k, N), dim=-1)
    held = mass.gather(-1, index) / torch.where(total > 0, total, 1.0)
    before = (
        held.double().cumsum(-1) - held
    )  # mass of the better ones: an entry is needed while that is below p
    keep = (values > -torch.inf) & (before < p)
    return _ascending(index, keep, max_k, N), keep.sum(-1, dtype=torch.int32)


def _only_used(scores_BhN: Tensor, lengths: Tensor | None) -> Tensor:
    """float32 scores; -inf where an entry must not be chosen."""
    used = ~scores_BhN.isnan()
    if lengths is not None:
        used = used & (torch.arange(scores_BhN.shape[2], device=lengths.device) < lengths[:, None, None])
    return torch.where(used, scores_BhN.float(), -torch.inf)


def _ascending(index: Tensor, keep: Tensor, k: int, N: int) -> Tensor:
    ordered = torch.where(keep, index, N).sort(dim=-1).values
    ordered = torch.where(ordered < N, ordered, -1).to(torch.int32)
    return functional.pad(ordered, (0, k - ordered.shape[-1]), value=-1)


def _check(scores_BhN: Tensor, k: int, name: str, lengths: Tensor | None) -> None:
    if (
        scores_BhN.dim() != 3
        or scores_BhN.shape[2] < 1
        or (scores_BhN.stride(2) != 1 and scores_BhN.shape[2] > 1)
    ):
        raise ValueError(
            f"got scores {list(scores_BhN.shape)} with strides {scores_BhN.stride()}; allowed is [B, h, N], N 1 or more, "
            "last dimension contiguous"
        )
    if scores_BhN.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"got scores of {scores_BhN.dtype}; allowed are float32, float16 and bfloat16")
    if k < 1:
        raise ValueError(f"got {name}={k}; allowed is 1 or more")
    check_lengths(lengths, scores_BhN.shape[0], scores_BhN.device)
