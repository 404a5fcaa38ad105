"""Attention over one piece of the keys, with its log-sum-exp."""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.ops.backend import choose


def partial_attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scale: float,
    mask: Tensor | None = None,
    causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of one piece.

    Args:
        queries: `[B, H, T, D]`.
        keys, values: `[B, K, N, D]`, K divides H, N >= 1.
        mask: boolean (True visits) or additive float, broadcastable to `[B, H, T, N]`.
        causal: query t sees keys up to t (T == N).

    Returns:
        output `[B, H, T, D]` and log-sum-exp `[B, H, T]` float32, -inf where a row visits nothing (its output is 0).
    """
    additive = None
    if mask is not None:
        mask = mask.expand(*(max(a, 1) for a in mask.shape))
        additive = (
            torch.zeros(mask.shape, dtype=queries.dtype, device=queries.device).masked_fill_(
                ~mask, -torch.inf
            )
            if mask.dtype == torch.bool
            else mask.to(queries.dtype)
        )
    if queries.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries, keys, values, 0.0, causal, attn_mask=additive, scale=scale
        )
    else:
        out, lse = _partial_cuda(queries, keys, values, additive, causal, scale)
    if additive is not None:
        dead = (additive == -torch.inf).all(dim=-1)
        lse = lse.masked_fill(dead, -torch.inf)
        out = out.masked_fill(dead[..., None], 0.0)
    return out, lse


def _partial_cuda(
    queries: Tensor, keys: Tensor, values: Tensor, additive: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    reason = "there is a mask or a bias" if additive is not None else _no_cudnn(queries, keys, values, causal)
    if choose("partial_attend", {"cudnn": reason, "memory-efficient": None}) == "cudnn":
        out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            queries, keys, values, None, True, 0.0, causal, False, scale=scale
        )
        return out, lse.view(queries.shape[:3])
    groups = queries.shape[1] // keys.shape[1]
    if groups > 1:
        keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    T, N = queries.shape[2], keys.shape[2]
    if additive is not None:
        # the kernel wants rows of the bias to start at multiples of 16 bytes
        padded = additive.new_zeros(*queries.shape[:3], (N + 15) // 16 * 16)
        padded[..., :N] = additive
        additive = padded[..., :N]
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        queries, keys, values, additive, True, 0.0, causal, scale=scale
    )
    return out, lse[:, :, :T].float()


def _no_cudnn(queries: Tensor, keys: Tensor, values: Tensor, causal: bool) -> str | None:
    """Why cuDNN's attention does not take these tensors; None when it does."""
    grouped = queries.shape[1] != keys.shape[1]
    given = torch.backends.cuda.SDPAParams(queries, keys, values, None, 0.0, causal, grouped)
    if torch.backends.cuda.can_use_cudnn_attention(given, False):
        return None
    return f"cuDNN does not take {queries.dtype} with head_dim {queries.shape[3]} here"
