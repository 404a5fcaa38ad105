"""The readable twin: float32, differentiable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def naive_merge_states(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """See `merge_states`."""
    outs = torch.stack([out.float() for out, _ in parts])
    return naive_merge_stacked(outs, torch.stack([lse for _, lse in parts]), parts[0][0].dtype)


def naive_merge_stacked(out_NBHTD: Tensor, lse_NBHT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See `merge_stacked`."""
    empty = lse_NBHT == -torch.inf
    dead = empty.all(dim=0)
    # rows without any key: 0 stands in for -inf, so that neither the result nor a gradient is NaN
    total = torch.logsumexp(lse_NBHT.masked_fill(dead, 0.0), dim=0)
    weights = (lse_NBHT - total).exp().masked_fill(empty, 0.0)
    out = (weights[..., None] * out_NBHTD.float().masked_fill(empty[..., None], 0.0)).sum(dim=0)
    return out.to(dtype), total.masked_fill(dead, -torch.inf)
