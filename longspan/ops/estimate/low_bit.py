"""Query-key logits estimated from 4-bit numbers, per key block (as SALE does for block-sparse prefill).

Each token's query and key is scaled so that its largest value becomes 7 and rounded to the integers -7 .. 7; the product of
integers runs in the 8-bit matrix units and is exact, so

    logit[t, s] = scale * q_step[t] * k_step[s] * (q4[t] . k4[s])

One byte holds one number: nibbles would halve the bytes of the keys, but here every key is used by many queries and the
product is what costs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from longspan.ops.backend import choose, triton_reason
from longspan.ops.estimate.blocks import check_prefill

Reduce = Literal["max", "logsumexp"]
HIGHEST = 7.0  # of a signed 4-bit number, without the unpaired -8


def quantise_low_bit(x_BhSD: Tensor, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """4-bit numbers per token.

    Args:
        x_BhSD: queries or keys; any strides but the last dimension's, which is 1.
        backend: `triton` or `naive`; None for the first that can.

    Returns:
        int8 `[B, h, S, D]` of -7 .. 7 (halves are rounded up) and float32 steps `[B, h, S]`: x is about number * step. A
        token of zeros has step 0.

    Raises:
        ValueError: x has not four dimensions or another dtype.
    """
    if x_BhSD.dim() != 4 or not x_BhSD.is_floating_point():
        raise ValueError(
            f"got x {list(x_BhSD.shape)} of {x_BhSD.dtype}; allowed is [B, h, S, D] of a float type"
        )
    reason = triton_reason(x_BhSD, forced=backend == "triton")
    if choose("quantise_low_bit", {"triton": reason, "naive": None}, backend) == "triton":
        from longspan.ops.estimate.low_bit_triton import triton_quantise_low_bit

        return triton_quantise_low_bit(x_BhSD)
    return naive_quantise_low_bit(x_BhSD)


def low_bit_block_scores(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    *,
    scale: float,
    block_tokens: int,
    reduce: Reduce = "max",
    per_query: bool = False,
    first_place: Tensor | None = None,
    quantised_keys: tuple[Tensor, Tensor] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Estimated logits of the T queries (the last T of the S places), reduced over each key block.

    Args:
        q_BHTD: queries of the step.
        k_BKSD: all stored keys; any strides but the last dimension's, which is 1.
        scale: softmax scale.
        block_tokens: keys of a block, and queries of a row: 16, 32, 64 or 128.
        reduce: over the pairs of a block that are causal and no padding: `max`, the largest logit, or `logsumexp`, the
            log of the attention that the block gets before normalising.
        per_query: one row of scores a query instead of one a block of queries.
        first_place: int32 `[B]`, places before it hold padding; None for 0.
        quantised_keys: result of `quantise_low_bit(k_BKSD)`, contiguous, to quantise keys once; None to do it here.
        backend: `triton` or `naive`; None for the first that can.

    Returns:
        float32 `[B, H, NQ, NK]`, or `[B, H, T, NK]` with `per_query`; -inf where no pair is left.

    Raises:
        ValueError: for shapes, dtypes or settings that do not fit.
    """
    check_prefill(q_BHTD, k_BKSD, block_tokens, first_place)
    if reduce not in ("max", "logsumexp"):
        raise ValueError(f"got reduce={reduce!r}; allowed are 'max' and 'logsumexp'")
    if quantised_keys is not None:
        numbers, steps = quantised_keys
        if numbers.shape != k_BKSD.shape or numbers.dtype != torch.int8 or steps.shape != k_BKSD.shape[:3]:
            raise ValueError(
                f"got quantised_keys {list(numbers.shape)} of {numbers.dtype} and {list(steps.shape)}; allowed is what "
                f"quantise_low_bit gives for k {list(k_BKSD.shape)}"
            )
    reason = triton_reason(q_BHTD, k_BKSD, forced=backend == "triton")
    chosen = choose("low_bit_block_scores", {"triton": reason, "naive": None}, backend)
    queries = quantise_low_bit(q_BHTD, backend=chosen)
    keys = quantise_low_bit(k_BKSD, backend=chosen) if quantised_keys is None else quantised_keys
    run: Callable[..., Tensor] = naive_low_bit_scores
    if chosen == "triton":
        from longspan.ops.estimate.low_bit_triton import triton_low_bit_scores

        run = triton_low_bit_scores
    return run(
        queries,
        keys,
        scale=scale,
        block_tokens=block_tokens,
        reduce=reduce,
        per_query=per_query,
        first_place=first_place,
    )


def naive_quantise_low_bit(x_BhSD: Tensor) -> tuple[Tensor, Tensor]:
    """See `quantise_low_bit`."""
    x = x_BhSD.float()
    highest = x.abs().amax(-1)
    step = highest / torch.full_like(highest, HIGHEST)  # by a number, CUDA multiplies with its inverse
    numbers = torch.floor(x / torch.where(step > 0, step, 1.0)[..., None] + 0.5)
    return numbers.nan_to_num(0.0).clamp(-HIGHEST, HIGHEST).to(torch.int8), step


def naive_low_bit_scores(
    queries: tuple[Tensor, Tensor],
    keys: tuple[Tensor, Tensor],
    *,
    scale: float,
    block_tokens: int,
    reduce: Reduce,
    per_query: bool,
    first_place: Tensor | None,
) -> Tensor:
    """See `low_bit_block_scores`; all logits are in memory."""
    H, T = queries[0].shape[1:3]
    K, S = keys[0].shape[1:3]
    numbers, steps = (x.repeat_interleave(H // K, dim=1) for x in keys)
    logits = (queries[0].float() @ numbers.float().transpose(-1, -2)) * (queries[1] * scale)[..., None]
    logits = logits * steps[:, :, None]
    place, query = torch.arange(S, device=logits.device), torch.arange(S - T, S, device=logits.device)
    seen = (place <= query[:, None])[None]
    if first_place is not None:
        seen = seen & (place >= first_place[:, None, None])
    logits = logits.masked_fill(~seen[:, None], -torch.inf)
    missing = (0, -S % block_tokens, 0, 0 if per_query else -T % block_tokens)
    tiles = torch.nn.functional.pad(logits, missing, value=-torch.inf).unflatten(3, (-1, block_tokens))
    over: tuple[int, ...] = (4,)
    if not per_query:
        tiles, over = tiles.unflatten(2, (-1, block_tokens)), (3, 5)
    return tiles.amax(over) if reduce == "max" else torch.logsumexp(tiles, over)
