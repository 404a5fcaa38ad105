"""A model's queries before rotation, its keys and values, and rotation as a loop over pairs, for tests of methods that score there."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.methods.cache.evicting import HEAD_DIM


def dense_pass(model: PreTrainedModel, ids: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Queries before rotation `[S, H, D]`, rotated keys and values `[K, S, D]` of each layer over a text."""
    queries: list[Tensor] = []
    hooks = [
        layer.self_attn.q_proj.register_forward_hook(lambda _m, _i, out: queries.append(out[0]))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        cache = model(ids[None], use_cache=True).past_key_values
    for hook in hooks:
        hook.remove()
    return [
        (q.view(len(ids), -1, HEAD_DIM), layer.keys[0], layer.values[0])
        for q, layer in zip(queries, cache.layers, strict=True)
    ]


def turn(vector: list[float], position: int) -> list[float]:
    """One vector rotated to one position."""
    half = HEAD_DIM // 2
    out = [0.0] * HEAD_DIM
    for i in range(half):
        angle = position * 10_000 ** (-2 * i / HEAD_DIM)
        a, b = vector[i], vector[i + half]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out
