"""Queries and keys as they were before the rotary embedding, for methods that score them there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from longspan.ops.rotary import angles, rotate

if TYPE_CHECKING:
    from torch import Tensor

    from longspan.roles import Rope


def cos_sin(positions: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 `[..., rotary_dims]`, of positions `[...]` under a layer's embedding."""
    positions = positions.clamp(min=0)
    cos, sin = angles(positions, rope.inv_freq, rope.scaling, torch.float32)
    if rope.start_inv_freq is None:
        return cos, sin
    first = angles(positions, rope.start_inv_freq, rope.scaling, torch.float32)
    early = (positions < rope.start_tokens)[..., None]
    return torch.where(early, first[0], cos), torch.where(early, first[1], sin)


def rotated(x: Tensor, positions: Tensor, rope: Rope | None) -> Tensor:
    """x, float32 `[B, h, T, D]`, rotated to positions `[B, 1 or h, T]`."""
    return x if rope is None else rotate(x, *cos_sin(positions, rope))


def unrotated(x: Tensor, positions: Tensor, rope: Rope | None) -> Tensor:
    """What `rotated` made of it, undone."""
    if rope is None:
        return x
    cos, sin = cos_sin(positions, rope)
    x = rotate(x, cos, -sin)
    if rope.scaling == 1.0:
        return x
    head, tail = x.split((rope.rotary_dims, x.shape[-1] - rope.rotary_dims), dim=-1)
    return torch.cat((head / rope.scaling**2, tail), dim=-1)
