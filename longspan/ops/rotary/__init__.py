"""Rotary embedding in the rotate-half layout of Llama, Qwen, Mistral, Gemma and Phi, partial rotary included."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.visit import Band


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotation to apply at attention time, where keys and queries come unrotated."""

    inv_freq: Tensor
    scaling: float
    bands: tuple[Band, ...] = ()


def angles(positions: Tensor, inv_freq: Tensor, scaling: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin `[..., rotary_dims]` of integer positions `[...]`, computed in float32 and cast as transformers does."""
    freqs = positions[..., None].float() * inv_freq.to(positions.device)
    emb = torch.cat((freqs, freqs), dim=-1)
    return (emb.cos() * scaling).to(dtype), (emb.sin() * scaling).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading `cos.shape[-1]` dims of x `[..., D]` by cos, sin that broadcast against `[..., rotary_dims]`."""
    dims = cos.shape[-1]
    head, tail = (x, None) if dims == x.shape[-1] else (x[..., :dims], x[..., dims:])
    first, second = head.chunk(2, dim=-1)
    rotated = head * cos + torch.cat((-second, first), dim=-1) * sin
    return rotated if tail is None else torch.cat((rotated, tail), dim=-1)
