"""Attention of 1 to 16 queries over a long store: the whole of a ragged one, or chosen tokens and pages of a dense one.

Both read every visited key once for all query heads and queries of a kv head. On a GPU the tokens of all heads are one
list that is cut evenly, however uneven the heads are; the pieces are merged by their log-sum-exps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.ops.backend import choose, triton_reason
from longspan.ops.decode.naive import naive_gather_decode, naive_ragged_decode
from longspan.ops.decode.ragged import Ragged, check_gather, check_ragged

__all__ = [
    "Ragged",
    "check_ragged",
    "gather_decode",
    "naive_gather_decode",
    "naive_ragged_decode",
    "ragged_decode",
]


def ragged_decode(
    q_BHTD: Tensor,
    store: Ragged,
    *,
    scale: float,
    tree_mask: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over a store in which every head holds its own number of tokens.

    The last T tokens of each head are the queries' own: query t sees every earlier token and own token u where u <= t, or
    where `tree_mask` says so.

    Args:
        q_BHTD: bfloat16, float16 or float32, T from 1 to 16, D at most 256 on Triton.
        store: see `Ragged`.
        scale: of the dot products before softmax.
        tree_mask: boolean `[1 or B, T, T]`, True where query t sees own token u; None for causal.
        backend: "triton", "cpu" or "naive" (differentiable); None chooses.

    Returns:
        output `[B, H, T, D]` in the dtype of q, log-sum-exp `[B, H, T]` float32 (natural); 0 and -inf for rows that see
        nothing, such as those of a head of length 0.

    Raises:
        ValueError: shapes, types or devices that do not fit; lengths or starts outside the store, on CPU tensors.
    """
    check_ragged(q_BHTD, store, tree_mask)
    chosen = _choose("ragged_decode", backend, q_BHTD, store.keys, store.values)
    if chosen == "triton":
        from longspan.ops.decode.triton import triton_ragged_decode

        return triton_ragged_decode(q_BHTD, store, scale=scale, tree_mask=tree_mask)
    if chosen == "cpu":
        from longspan.ops.decode.cpu_ragged import cpu_ragged_decode

        return cpu_ragged_decode(q_BHTD, store, scale=scale, tree_mask=tree_mask)
    return naive_ragged_decode(q_BHTD, store, scale=scale, tree_mask=tree_mask)


def gather_decode(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    index: Tensor,
    *,
    scale: float,
    page_tokens: int = 1,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Exact attention over chosen tokens or pages of the past, and over the T own tokens, the last T of the S keys.

    Args:
        q_BHTD: bfloat16, float16 or float32, T from 1 to 16, D at most 256 on Triton.
        k_BKSD, v_BKSD: the dtype of q, S at least T; own tokens are causal among themselves.
        index: int32 `[B, h, N]`, h in {1 (all heads share), K}, distinct within a row, in any order. Entry p names the
            places `[p * page_tokens, (p + 1) * page_tokens)` below S - T; entries outside, such as -1, visit nothing.
        scale: of the dot products before softmax.
        page_tokens: tokens an entry names.
        backend: "triton", "cpu" or "naive" (differentiable); None chooses.

    Returns:
        output `[B, H, T, D]` in the dtype of q, log-sum-exp `[B, H, T]` float32 (natural).

    Raises:
        ValueError: shapes, types or devices that do not fit.
    """
    check_gather(q_BHTD, k_BKSD, v_BKSD, index, page_tokens)
    chosen = _choose("gather_decode", backend, q_BHTD, k_BKSD, v_BKSD)
    if chosen == "triton":
        from longspan.ops.decode.triton import triton_gather_decode

        return triton_gather_decode(q_BHTD, k_BKSD, v_BKSD, index, scale=scale, page_tokens=page_tokens)
    if chosen == "cpu":
        from longspan.ops.decode.cpu import cpu_gather_decode

        return cpu_gather_decode(q_BHTD, k_BKSD, v_BKSD, index, scale=scale, page_tokens=page_tokens)
    return naive_gather_decode(q_BHTD, k_BKSD, v_BKSD, index, scale=scale, page_tokens=page_tokens)


def _choose(op: str, backend: str | None, *tensors: Tensor) -> str:
    on_triton = triton_reason(*tensors, forced=backend == "triton")
    device = tensors[0].device.type
    on_cpu = None if device == "cpu" else f"the tensors are on {device}, not on the CPU"
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        on_triton = on_cpu = "gradients are wanted, which only naive has"
    return choose(op, {"triton": on_triton, "cpu": on_cpu, "naive": None}, backend)
