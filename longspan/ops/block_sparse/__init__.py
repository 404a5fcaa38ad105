"""Attention of a chunk of queries over the key blocks, single keys, sink and window that a table names."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longspan.ops.backend import choose, triton_reason
from longspan.ops.block_sparse.flex import flex_block_sparse_prefill, flex_reason
from longspan.ops.block_sparse.gluon import gluon_block_sparse_prefill, gluon_reason
from longspan.ops.block_sparse.naive import block_table_mask, naive_block_sparse_prefill
from longspan.ops.block_sparse.table import BlockTable, check_table

__all__ = ["BlockTable", "block_sparse_prefill", "block_table_mask", "naive_block_sparse_prefill"]


def block_sparse_prefill(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    table: BlockTable,
    *,
    scale: float,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over the visits of `table`; differentiable in q, k and v.

    Args:
        q_BHTD: queries `[B, H, T, D]` at the places S-T .. S-1; any strides, the last dimension contiguous.
        k_BKSD, v_BKSD: stored keys and values `[B, K, S, D]` of q's dtype, H a multiple of K.
        table: which keys each query visits; its tensors on q's device. Entries out of range visit nothing.
        scale: above 0; logits are `scale * q @ k`.
        backend: "gluon" (Hopper; gradients by Triton), "triton", "cpu" or "naive"; None for the first that can; or "flex",
            PyTorch's FlexAttention, only when named.

    Returns:
        Output `[B, H, T, D]` in q's dtype and log-sum-exp `[B, H, T]` (natural log, float32); 0 and -inf for a query that
        visits nothing.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the named backend cannot serve them.
    """
    check_table(q_BHTD, k_BKSD, v_BKSD, table)
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"got scale={scale}; allowed is a finite number above 0, such as head_dim**-0.5")
    tensors = (q_BHTD, k_BKSD, v_BKSD)
    grad = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    candidates = {
        "gluon": gluon_reason(*tensors, table),
        "triton": triton_reason(*tensors, forced=backend == "triton"),
        "cpu": _cpu_reason(q_BHTD, grad),
        "naive": None,
    }
    if backend == "flex":
        candidates["flex"] = flex_reason(*tensors, table)
    chosen = choose("block_sparse", candidates, backend)
    if chosen == "flex":
        return flex_block_sparse_prefill(*tensors, table, scale=scale)
    if chosen in ("gluon", "triton") and grad:
        from longspan.ops.block_sparse.autograd import block_sparse_autograd

        forward = gluon_block_sparse_prefill if chosen == "gluon" else None
        return block_sparse_autograd(*tensors, table, scale=scale, forward=forward)
    if chosen == "gluon":
        return gluon_block_sparse_prefill(*tensors, table, scale=scale)
    if chosen == "triton":
        from longspan.ops.block_sparse.triton import triton_block_sparse_prefill

        return triton_block_sparse_prefill(*tensors, table, scale=scale)
    if chosen == "cpu":
        from longspan.ops.block_sparse.cpu import cpu_block_sparse_prefill

        return cpu_block_sparse_prefill(*tensors, table, scale=scale)
    return naive_block_sparse_prefill(*tensors, table, scale=scale)


def _cpu_reason(q_BHTD: Tensor, grad: bool) -> str | None:
    if q_BHTD.device.type != "cpu":
        return f"the tensors are on {q_BHTD.device.type}, not on the CPU"
    return "it has no gradients" if grad else None
