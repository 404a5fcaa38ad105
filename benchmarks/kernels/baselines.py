"""The strongest dense attention of the machine: cuDNN through scaled_dot_product_attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

CUDNN = "cuDNN SDPA"


def random_qkv(
    num_queries: int,
    tokens: int,
    *,
    heads: int = 32,
    kv_heads: int = 8,
    head_dim: int = 128,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries `[B, H, T, D]`, keys and values `[B, K, S, D]` on the GPU."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def draw(h: int, n: int) -> Tensor:
        return torch.randn(batch, h, n, head_dim, device="cuda", dtype=dtype, generator=generator)

    return draw(heads, num_queries), draw(kv_heads, tokens), draw(kv_heads, tokens)


def cudnn_prefill(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of a whole text, T equal to S."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def cudnn_decode(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of a few queries over every key, without a mask."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
