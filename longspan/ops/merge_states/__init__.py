"""Partial attentions over disjoint keys become one: the softmax of the whole from the softmaxes of its pieces.

total = logsumexp_i(lse_i),   out = sum_i exp(lse_i - total) * out_i
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longspan.ops.backend import TRITON_DTYPES, choose, triton_reason
from longspan.ops.merge_states.naive import naive_merge_stacked, naive_merge_states

__all__ = ["merge_stacked", "merge_states", "naive_merge_stacked", "naive_merge_states"]


def merge_states(
    parts: Sequence[tuple[Tensor, Tensor]], *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Partial attentions over disjoint keys as one.

    Args:
        parts: one or more of (output `[B, H, T, D]`, log-sum-exp `[B, H, T]` float32, natural logarithm). A row whose
            log-sum-exp is -inf saw no key in that part; its output there is not read.
        backend: "triton" or "naive" (differentiable); None chooses.

    Returns:
        output `[B, H, T, D]` in the dtype of the first part's, log-sum-exp `[B, H, T]` float32. Rows that no part has a key
        for are 0 and -inf. One part alone comes back as it is.

    Raises:
        ValueError: no part, or shapes, types or devices that do not fit.
    """
    if not parts:
        raise ValueError("got no parts to merge; allowed is one or more")
    first, first_lse = parts[0]
    for out, lse in parts:
        if out.shape != first.shape or lse.shape != first.shape[:-1]:
            raise ValueError(
                f"got a part with output {list(out.shape)} and log-sum-exp {list(lse.shape)}; allowed are those of the "
                f"first output, {list(first.shape)} and {list(first.shape[:-1])}"
            )
        _check_types(out, lse, first)
        if out.dtype != first.dtype:
            raise ValueError(f"got parts of {first.dtype} and {out.dtype}; allowed is one dtype for all")
    if len(parts) == 1:
        return first, first_lse
    tensors = [x for part in parts for x in part]
    if _choose(tensors, backend) == "triton":
        from longspan.ops.merge_states.triton import triton_merge_states

        return triton_merge_states(parts)
    return naive_merge_states(parts)


def merge_stacked(
    out_NBHTD: Tensor, lse_NBHT: Tensor, dtype: torch.dtype, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """`merge_states` of N partial attentions in one tensor, as kernels that split the keys write them.

    Args:
        out_NBHTD: `[N, B, H, T, D]`, N >= 1; what stands beside a log-sum-exp of -inf is not read, whatever it is.
        lse_NBHT: float32 `[N, B, H, T]`.
        dtype: of the output.
        backend: "triton" or "naive" (differentiable); None chooses.

    Returns:
        output `[B, H, T, D]` in `dtype`, log-sum-exp `[B, H, T]` float32.

    Raises:
        ValueError: shapes, types or devices that do not fit.
    """
    if out_NBHTD.dim() != 5 or lse_NBHT.shape != out_NBHTD.shape[:-1] or not out_NBHTD.shape[0]:
        raise ValueError(
            f"got output {list(out_NBHTD.shape)} and log-sum-exp {list(lse_NBHT.shape)}; allowed are [N, B, H, T, D] and "
            "[N, B, H, T] with N of at least 1"
        )
    _check_types(out_NBHTD, lse_NBHT, out_NBHTD)
    if dtype not in TRITON_DTYPES:
        raise ValueError(f"got dtype {dtype}; allowed are bfloat16, float16 and float32")
    if _choose([out_NBHTD, lse_NBHT], backend) == "triton":
        from longspan.ops.merge_states.triton import triton_merge_stacked

        return triton_merge_stacked(out_NBHTD, lse_NBHT, dtype)
    return naive_merge_stacked(out_NBHTD, lse_NBHT, dtype)


def _check_types(out: Tensor, lse: Tensor, first: Tensor) -> None:
    if lse.dtype != torch.float32 or out.dtype not in TRITON_DTYPES:
        raise ValueError(
            f"got output of {out.dtype} and log-sum-exp of {lse.dtype}; allowed are bfloat16, float16 or float32, and float32"
        )
    if out.device != first.device or lse.device != first.device:
        raise ValueError(
            f"got output on {out.device} and log-sum-exp on {lse.device}; allowed is one device for all, here {first.device}"
        )


def _choose(tensors: Sequence[Tensor], backend: str | None) -> str:
    outs = tensors[::2]
    reason = triton_reason(*outs, forced=backend == "triton")
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        reason = "gradients are wanted, which only naive has"
    return choose("merge_states", {"triton": reason, "naive": None}, backend)
