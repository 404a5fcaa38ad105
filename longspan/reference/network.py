"""The model as it is trained: Llama's arithmetic on flat tokens, so that rows of several lengths share one step.

All matrices of one kind are one stacked parameter [L, out, in]. Rows of one length stand together; only attention sees
rows, everything else sees N flat tokens and is compiled once. `export` turns the weights into a stock Llama.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from longspan.reference.config import ModelShape


def rotary_table(
    shape: ModelShape, lengths: list[tuple[int, int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [N, 1, D] of every flat token; `lengths` are (row length, rows)."""
    positions = torch.cat([torch.arange(length).repeat(rows) for length, rows in lengths]).float()
    exponent = torch.arange(0, shape.head_dim, 2).float() / shape.head_dim
    angles = positions[:, None] * (shape.rope_theta**-exponent)[None]
    angles = torch.cat([angles, angles], dim=-1)[:, None].to(device)
    return angles.cos(), angles.sin()


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * weight).to(x.dtype)


class Network(nn.Module):
    """Trainable weights in fp32, computed in `compute_dtype`."""

    def __init__(self, shape: ModelShape, *, compute_dtype: torch.dtype, compile_blocks: bool) -> None:
        super().__init__()
        self.shape, self.compute_dtype = shape, compute_dtype
        layers, hidden = shape.layers, shape.hidden
        self.embed = nn.Parameter(torch.empty(shape.vocabulary, hidden).normal_(std=0.02))
        scale = hidden**-0.5
        self.qkv = nn.Parameter(torch.empty(layers, shape.qkv_rows, hidden).uniform_(-scale, scale))
        self.out = nn.Parameter(torch.zeros(layers, hidden, shape.query_heads * shape.head_dim))
        self.gate_up = nn.Parameter(torch.empty(layers, 2 * shape.mlp, hidden).uniform_(-scale, scale))
        self.down = nn.Parameter(torch.zeros(layers, hidden, shape.mlp))
        self.norms = nn.Parameter(torch.ones(2 * layers + 1, hidden))
        wrap: Callable = (
            torch.compile(dynamic=False, fullgraph=True) if compile_blocks else (lambda block: block)
        )
        self._before, self._after, self._head = wrap(self._before_), wrap(self._after_), wrap(self._head_)

    def _before_(self, x, norm, qkv, cos, sin):  # type: ignore[no-untyped-def]
        shape = self.shape
        heads, kv = shape.query_heads, shape.kv_heads
        joined = F.linear(_norm(x, norm, shape.norm_eps), qkv).view(
            x.shape[0], heads + 2 * kv, shape.head_dim
        )
        q, k, v = joined.split([heads, kv, kv], dim=1)
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v.contiguous()

    def _after_(self, x, attended, out, norm, gate_up, down):  # type: ignore[no-untyped-def]
        x = x + F.linear(attended, out)
        gate, up = F.linear(_norm(x, norm, self.shape.norm_eps), gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, down)

    def _head_(self, x, norm, embed, targets, weights):  # type: ignore[no-untyped-def]
        logits = F.linear(_norm(x, norm, self.shape.norm_eps), embed).float()
        losses = F.cross_entropy(logits, targets, reduction="none")
        return (losses * weights).sum() / weights.sum(), losses.detach()

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[tuple[int, int]]
    ) -> torch.Tensor:
        """Causal attention of each row by itself. q [N, H, D], k and v [N, K, D]; returns [N, H*D]."""
        sizes = [length * rows for length, rows in lengths]
        parts = []
        for (length, rows), *qkv in zip(lengths, q.split(sizes), k.split(sizes), v.split(sizes), strict=True):
            q_BHTD, k_BKTD, v_BKTD = (
                part.view(rows, length, -1, self.shape.head_dim).transpose(1, 2) for part in qkv
            )
            mixed = F.scaled_dot_product_attention(q_BHTD, k_BKTD, v_BKTD, is_causal=True, enable_gqa=True)
            parts.append(mixed.transpose(1, 2).reshape(rows * length, -1))
        return torch.cat(parts)

    def hidden(
        self, tokens: torch.Tensor, lengths: list[tuple[int, int]], cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        """Last layer's output [N, hidden] before the final norm. tokens: int64 [N]."""
        kind = self.compute_dtype
        x = F.embedding(tokens, self.embed).to(kind)
        norms = self.norms.unbind(0)
        stacks = [weight.to(kind).unbind(0) for weight in (self.qkv, self.out, self.gate_up, self.down)]
        for index, (qkv, out, gate_up, down) in enumerate(zip(*stacks, strict=True)):
            q, k, v = self._before(x, norms[2 * index], qkv, cos, sin)
            attended = self._attend(q, k, v, lengths)
            x = self._after(x, attended, out, norms[2 * index + 1], gate_up, down)
        return x

    def loss(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        lengths: list[tuple[int, int]],
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted mean cross-entropy, and the loss of each token [N]."""
        x = self.hidden(tokens, lengths, cos, sin)
        return self._head(x, self.norms[-1], self.embed.to(self.compute_dtype), targets, weights)

    def predictions(
        self, tokens: torch.Tensor, lengths: list[tuple[int, int]], cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        """The most likely next token at every place, int64 [N]."""
        x = _norm(self.hidden(tokens, lengths, cos, sin), self.norms[-1], self.shape.norm_eps)
        embed = self.embed.to(self.compute_dtype)
        return torch.cat([F.linear(part, embed).argmax(-1) for part in x.split(16384)])
