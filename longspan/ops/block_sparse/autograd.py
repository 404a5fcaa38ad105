"""`block_sparse_prefill` by Triton with gradients for q, k and v; also the log-sum-exp is differentiable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longspan.ops.block_sparse.table import BlockTable

Forward = Callable[..., tuple[Tensor, Tensor]]


def block_sparse_autograd(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    table: BlockTable,
    *,
    scale: float,
    forward: Forward | None = None,
) -> tuple[Tensor, Tensor]:
    """As `triton_block_sparse_prefill`, and trainable; the table gets no gradient.

    Args:
        forward: called as `forward(q, k, v, table, scale=scale)`, gives out and lse without gradients; None for
            `triton_block_sparse_prefill`.

    Returns:
        out `[B, H, T, D]` in the dtype of q, lse float32 `[B, H, T]`.
    """
    out, lse = _BlockSparse.apply(q_BHTD, k_BKSD, v_BKSD, table, scale, forward)
    return out, lse


class _BlockSparse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_BHTD: Tensor,
        k_BKSD: Tensor,
        v_BKSD: Tensor,
        table: BlockTable,
        scale: float,
        run: Forward | None,
    ) -> tuple[Tensor, Tensor]:
        if run is None:
            from longspan.ops.block_sparse.triton import triton_block_sparse_prefill

            run = triton_block_sparse_prefill
        out, lse = run(q_BHTD, k_BKSD, v_BKSD, table, scale=scale)
        ctx.save_for_backward(q_BHTD, k_BKSD, v_BKSD, out, lse)
        ctx.table, ctx.scale = table, scale
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        from longspan.ops.block_sparse.backward import block_sparse_backward

        q, k, v, out, lse = ctx.saved_tensors
        if dout is None:
            if dlse is None:
                return None, None, None, None, None, None
            dout = torch.zeros_like(out)
        dq, dk, dv = block_sparse_backward(q, k, v, out, lse, dout, dlse, ctx.table, scale=ctx.scale)
        return dq, dk, dv, None, None, None
