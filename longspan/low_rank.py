"""Low-rank factors of keys and values: what methods that store latents instead of channels share.

A matrix `[S, C]` (tokens, channels) of rank r is held as token factors `[S, r]` and right factors `[r, C]`. With the
first right singular vectors V as right factors, `(X V^T) V` is the best approximation of that rank (Eckart and Young).

Axis legend: B batch, S tokens, k kv heads, D head dim, C channels, r rank.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Solver = Literal["exact", "random"]
Rank = float | int

OVERSAMPLED = 16  # columns beyond the rank that the randomised solver works with
POWER_STEPS = 2  # Halko, Martinsson and Tropp: each one squares the gaps between singular values


def check_rank(rank: Rank, *, name: str) -> None:
    """Raise ValueError unless `rank` is a share of the channels in (0, 1], or a whole number of 2 or more."""
    if not (0 < rank <= 1 or (rank >= 2 and float(rank).is_integer())):
        raise ValueError(
            f"got {name}={rank:g}; allowed is a share of the channels above 0 and up to 1 (such as {name}=0.25) or a "
            f"whole number of 2 or more (such as {name}=64)"
        )


def resolve_rank(rank: Rank, channels: int) -> int:
    """Whole number that `rank` means for so many channels; at least 1, at most all."""
    return max(1, min(channels, round(rank * channels) if rank <= 1 else int(rank)))


def to_matrix(x_BkSD: Tensor, positions: Tensor) -> Tensor:
    """The heads of tokens side by side: float32 `[B, S, k * D]`, zero where a slot holds nothing.

    positions: int64 `[B, 1 or k, S]`, -1 where a slot holds nothing.
    """
    return torch.where((positions >= 0)[..., None], x_BkSD.float(), 0.0).transpose(1, 2).flatten(2)


def to_heads(x_BSC: Tensor, num_heads: int) -> Tensor:
    """The inverse of `to_matrix`: `[B, k, S, D]`."""
    return x_BSC.unflatten(2, (num_heads, -1)).transpose(1, 2)


def right_factors(x_BSC: Tensor, rank: int, solver: Solver = "exact") -> Tensor:
    """The first right singular vectors of float32 matrices, as rows: `[B, r, C]`, orthonormal, r = min(rank, S, C).

    solver: "exact", or "random": subspace iteration from a fixed random start, which needs few passes over the matrix.
    """
    num_tokens, channels = x_BSC.shape[1:]
    rank = min(rank, num_tokens, channels)
    width = rank + OVERSAMPLED
    if solver == "exact" or width >= min(num_tokens, channels):
        return torch.linalg.svd(x_BSC, full_matrices=False).Vh[:, :rank].contiguous()
    make = torch.Generator().manual_seed(0)
    start = torch.randn(channels, width, generator=make).to(x_BSC.device)
    columns = torch.linalg.qr(x_BSC @ start).Q
    for _ in range(POWER_STEPS):
        rows = torch.linalg.qr(x_BSC.mT @ columns).Q
        columns = torch.linalg.qr(x_BSC @ rows).Q
    return torch.linalg.svd(columns.mT @ x_BSC, full_matrices=False).Vh[:, :rank].contiguous()
