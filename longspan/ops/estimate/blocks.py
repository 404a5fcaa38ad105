"""Scores of key blocks for query blocks of a step, and the blocks to visit.

The T queries stand at the places S-T .. S-1. Row i of query blocks holds the queries `[i b, (i + 1) b)`, key block j the
places `[j b, (j + 1) b)`, as in `BlockTable`. Two estimates:

- `mean_block_scores`: mean query . mean key (MInference's block-sparse heads);
- `antidiagonal_scores`: queries and keys are cut into groups of `stride`, the logit of two groups is the mean of their
  q . k along the antidiagonal, and a softmax over groups of keys gives the share of each block (XAttention).

`top_blocks` turns scores into rows of a table.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from longspan.ops.backend import choose, triton_reason

BLOCKS = (16, 32, 64, 128)
STRIDES = (1, 2, 4, 8, 16, 32, 64)


def check_prefill(
    q_BHTD: Tensor, k_BKSD: Tensor, block_tokens: int, first_place: Tensor | None = None
) -> None:
    """Raise ValueError, in one sentence, when shapes, types, devices or the block size do not fit."""
    shapes = f"q {list(q_BHTD.shape)} and k {list(k_BKSD.shape)}"
    if q_BHTD.dim() != 4 or k_BKSD.dim() != 4:
        raise ValueError(f"got {shapes}; allowed are q [B, H, T, D] and k [B, K, S, D]")
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    if k_BKSD.shape[0] != B or k_BKSD.shape[3] != D or not K or not D or H % K or not 1 <= T <= S:
        raise ValueError(
            f"got {shapes}; B and D must be equal, H a multiple of K, and T from 1 to S (the queries are the last T keys)"
        )
    if q_BHTD.dtype != k_BKSD.dtype or q_BHTD.device != k_BKSD.device:
        raise ValueError(
            f"got q of {q_BHTD.dtype} on {q_BHTD.device} and k of {k_BKSD.dtype} on {k_BKSD.device}; "
            "both must have one dtype and one device"
        )
    if k_BKSD.stride(3) != 1 and D > 1:
        raise ValueError(f"got k with strides {list(k_BKSD.stride())}; allowed is 1 for the last dimension")
    if block_tokens not in BLOCKS:
        raise ValueError(f"got block_tokens={block_tokens}; allowed are 16, 32, 64 and 128")
    if first_place is not None:
        given = f"first_place {list(first_place.shape)} of {first_place.dtype} on {first_place.device}"
        if first_place.shape != (B,) or first_place.dtype != torch.int32:
            raise ValueError(f"got {given}; allowed is [B], here [{B}], of torch.int32")
        if first_place.device != q_BHTD.device:
            raise ValueError(f"got {given} and q on {q_BHTD.device}; both must be on one device")


def mean_block_scores(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    block_tokens: int,
    *,
    first_place: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """mean(Q_block) . mean(K_block), means over the tokens that are there and no padding.

    Args:
        q_BHTD: queries of the step.
        k_BKSD: all stored keys; any strides but the last dimension's, which is 1.
        block_tokens: 16, 32, 64 or 128.
        first_place: int32 `[B]`, places before it hold padding; None for 0.
        backend: `triton` or `naive`; None for the first that can.

    Returns:
        float32 `[B, H, NQ, NK]`; -inf for blocks (of queries or keys) of nothing but padding. Later blocks are scored, too.

    Raises:
        ValueError: for shapes, dtypes or sizes that do not fit.
    """
    check_prefill(q_BHTD, k_BKSD, block_tokens, first_place)
    B, H, T = q_BHTD.shape[:3]
    K, S = k_BKSD.shape[1:3]
    reason = triton_reason(q_BHTD, k_BKSD, forced=backend == "triton")
    if choose("mean_block_scores", {"triton": reason, "naive": None}, backend) == "triton":
        from longspan.ops.estimate.blocks_triton import triton_block_means

        means = triton_block_means
    else:
        means = naive_block_means
    queries = means(q_BHTD, block_tokens, S - T, first_place).view(B, K, -1, q_BHTD.shape[3])
    keys = means(k_BKSD, block_tokens, 0, first_place)
    scores = (queries @ keys.transpose(-1, -2)).view(B, H, -1, keys.shape[2])
    if first_place is None:
        return scores
    edge = (
        torch.arange(1, scores.shape[3] + 1, device=scores.device) * block_tokens
    )  # behind each block of keys
    rows = (torch.arange(1, scores.shape[2] + 1, device=scores.device) * block_tokens).clamp(max=T) + S - T
    first = first_place[:, None, None, None]
    return scores.masked_fill_((edge <= first) | (rows[:, None] <= first), -torch.inf)


def naive_block_means(
    x_BhSD: Tensor, block_tokens: int, start_place: int, first_place: Tensor | None
) -> Tensor:
    """Means of the tokens of each block, float32 `[B, h, N, D]`; 0 for blocks of padding. Token 0 is at `start_place`."""
    S = x_BhSD.shape[2]
    place = torch.arange(start_place, start_place + S, device=x_BhSD.device)
    real = torch.ones(1, S, dtype=torch.bool, device=x_BhSD.device)
    if first_place is not None:
        real = place >= first_place[:, None]
    missing = -S % block_tokens
    kept = torch.where(real[:, None, :, None], x_BhSD.float(), 0.0)
    total = functional.pad(kept, (0, 0, 0, missing)).unflatten(2, (-1, block_tokens)).sum(3)
    count = functional.pad(real, (0, missing)).unflatten(1, (-1, block_tokens)).sum(2)
    return total / count.clamp(min=1)[:, None, :, None]


def antidiagonal_scores(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    *,
    block_tokens: int,
    stride: int,
    scale: float,
    first_place: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Share of attention that each row of query blocks is expected to give to each key block, by antidiagonals.

    Query group a holds the queries `[a stride, (a + 1) stride)` of the T, key group c the places `[c stride, (c + 1)
    stride)`. With i from 0 to stride - 1,

        logit[a, c] = scale / stride * sum over i of q[a stride + stride - 1 - i] . k[c stride + i]

    where pairs with a query behind T, a key behind S or padding count as 0. Group a sees the groups c that start at or
    before its own first place, or that of the first real key, and are not all padding; a softmax over them is averaged
    over the groups of a query block (those that are not all padding) and summed over the groups of a key block. Costs
    2 / stride of Q K^T.

    Args:
        q_BHTD: queries of the step.
        k_BKSD: all stored keys; any strides but the last dimension's, which is 1.
        block_tokens: 16, 32, 64 or 128.
        stride: a power of two from 1 to 64, at most `block_tokens` (XAttention: 8 or 16 with blocks of 128).
        scale: softmax scale of attention.
        first_place: int32 `[B]`, places before it hold padding; None for 0.
        backend: `triton` or `naive`; None for the first that can.

    Returns:
        float32 `[B, H, NQ, NK]`: rows sum to 1 (0 for query blocks of nothing but padding), later blocks are 0.

    Raises:
        ValueError: for shapes, dtypes or sizes that do not fit.
    """
    check_prefill(q_BHTD, k_BKSD, block_tokens, first_place)
    if stride not in STRIDES or stride > block_tokens:
        raise ValueError(
            f"got stride={stride} with block_tokens={block_tokens}; allowed are the powers of two from 1 to "
            f"{min(64, block_tokens)}"
        )
    reason = triton_reason(q_BHTD, k_BKSD, forced=backend == "triton")
    if choose("antidiagonal_scores", {"triton": reason, "naive": None}, backend) == "triton":
        from longspan.ops.estimate.blocks_triton import triton_antidiagonal_scores

        run = triton_antidiagonal_scores
    else:
        run = naive_antidiagonal_scores
    return run(q_BHTD, k_BKSD, block_tokens=block_tokens, stride=stride, scale=scale, first_place=first_place)


def naive_antidiagonal_scores(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    *,
    block_tokens: int,
    stride: int,
    scale: float,
    first_place: Tensor | None,
) -> Tensor:
    """See `antidiagonal_scores`; logits of all groups are in memory."""
    B, H, T = q_BHTD.shape[:3]
    K, S = k_BKSD.shape[1:3]
    device = q_BHTD.device
    first = torch.zeros(B, dtype=torch.int32, device=device) if first_place is None else first_place
    first = first[:, None, None]

    def groups(x: Tensor, start: int) -> Tensor:
        real = torch.arange(start, start + x.shape[2], device=device) >= first
        x = torch.where(real[..., None], x.float(), 0.0)
        return functional.pad(x, (0, 0, 0, -x.shape[2] % stride)).unflatten(2, (-1, stride))

    queries = groups(q_BHTD, S - T).flip(3).flatten(3)
    keys = groups(k_BKSD, 0).flatten(3).repeat_interleave(H // K, dim=1)
    logits = queries @ keys.transpose(-1, -2) * (scale / stride)
    a = torch.arange(queries.shape[2], device=device)
    c = torch.arange(keys.shape[2], device=device)
    last = ((a + 1) * stride).clamp(max=T) + S - T - 1  # place of the last query of each group
    asks = last >= first[:, 0]
    sees = (c * stride <= S - T + a[:, None] * stride) | (c * stride <= first)
    seen = sees & ((c + 1) * stride > first) & asks[..., None]
    logits = logits.masked_fill(~seen[:, None], -torch.inf)
    weights = torch.softmax(logits, dim=-1).masked_fill(~seen[:, None], 0.0)
    per_block = block_tokens // stride
    missing = (0, -weights.shape[3] % per_block, 0, -weights.shape[2] % per_block)
    tiles = functional.pad(weights, missing).unflatten(3, (-1, per_block)).unflatten(2, (-1, per_block))
    count = functional.pad(asks, missing[2:]).unflatten(1, (-1, per_block)).sum(2)
    return tiles.sum((3, 5)) / count.clamp(min=1)[:, None, :, None]


def top_blocks(
    scores_BhQN: Tensor,
    *,
    num_queries: int,
    num_tokens: int,
    block_tokens: int,
    num_blocks: int | None = None,
    mass: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The key blocks with the best scores for each row, as `index` and `counts` of a `BlockTable`.

    A row may visit the blocks up to that of its last query. The one or two that hold its own tokens are always visited
    and come first. Runs on any device, without synchronisation.

    Args:
        scores_BhQN: `[B, h, NQ, NK]`; NaN is not allowed, -inf is never visited unless it is an own block.
        num_queries: T of the step.
        num_tokens: S of the step.
        block_tokens: of rows and key blocks.
        num_blocks: visited blocks of a row, own ones included (and at least those); fewer where fewer are there.
        mass: instead, visit the fewest blocks whose scores sum to this share, above 0 and up to 1, of the scores of all
            blocks that the row may visit; scores must not be negative. Own blocks count.

    Returns:
        `(index, counts)`: int32 `[B, h, NQ, N]`, best first, -1 behind the first `counts`; int32 `[B, h, NQ]`. N is
        num_blocks (at most NK, at least the own blocks of a row), or NK with `mass`.

    Raises:
        ValueError: for shapes or settings that do not fit.
    """
    T, S, b = num_queries, num_tokens, block_tokens
    if b not in BLOCKS or not 1 <= T <= S:
        raise ValueError(
            f"got block_tokens={b}, num_queries={T}, num_tokens={S}; allowed are blocks of 16, 32, 64 or 128 and "
            "1 <= num_queries <= num_tokens"
        )
    NQ, NK = -(-T // b), -(-S // b)
    if scores_BhQN.dim() != 4 or scores_BhQN.shape[2:] != (NQ, NK):
        raise ValueError(
            f"got scores {list(scores_BhQN.shape)}; allowed is [B, h, {NQ}, {NK}] for {T} of {S} tokens"
        )
    if (num_blocks is None) == (mass is None):
        raise ValueError(f"got num_blocks={num_blocks} and mass={mass}; give one of them")
    if num_blocks is not None and num_blocks < 1:
        raise ValueError(f"got num_blocks={num_blocks}; allowed is 1 or more")
    if mass is not None and not 0 < mass <= 1:
        raise ValueError(f"got mass={mass}; allowed is above 0 and up to 1, such as mass=0.9")
    device = scores_BhQN.device
    row, block = torch.arange(NQ, device=device)[:, None], torch.arange(NK, device=device)
    newest = (((row + 1) * b).clamp(max=T) - 1 + S - T).div(b, rounding_mode="floor")
    own = (block >= (row * b + S - T).div(b, rounding_mode="floor")) & (block <= newest)
    ranked = scores_BhQN.float().masked_fill(block > newest, -torch.inf).masked_fill(own, torch.inf)
    most = NK if num_blocks is None else min(NK, max(num_blocks, 1 if (S - T) % b == 0 else 2))
    best, index = ranked.topk(most, dim=-1)
    counts = (best > -torch.inf).sum(-1)
    if mass is not None:
        reach = scores_BhQN.float().masked_fill(block > newest, 0.0).clamp(min=0.0).gather(3, index).cumsum(3)
        needed = (reach < mass * reach[..., -1:]).sum(-1) + 1
        counts = torch.maximum(torch.minimum(counts, needed), own.sum(1))
    used = torch.arange(most, device=device) < counts[..., None]
    return torch.where(used, index, -1).int(), counts.int()
