"""What the model itself holds of a text, with keys before rotation: the start of a cartridge, and what stands beside one."""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.engine.model import SpanModel
from longspan.engine.run import Run
from longspan.engine.seam import cos_and_sin
from longspan.model_info import LayerInfo
from longspan.ops.rotary import rotate


def first_slots(span: SpanModel, ids: Tensor, num_tokens: int) -> tuple[list[Tensor], list[Tensor]]:
    """Keys before rotation and values of the first `num_tokens` tokens, of each layer `[K, p, D]`, float32: the paper's init."""
    run = span.reader().prefill(span.reader().new_run(num_tokens=num_tokens), [ids[:num_tokens]])
    return slots_of(span, run)


def slots_of(span: SpanModel, run: Run) -> tuple[list[Tensor], list[Tensor]]:
    """Keys before rotation and values of what a run holds, of each layer `[K, S, D]`, float32."""
    keys, values = [], []
    for layer, store in zip(span.info.layers, run.layers, strict=True):
        (slab,) = store.slabs
        keys.append(unrotated(slab.keys[0].float(), layer))
        values.append(slab.values[0].float().clone())
    return keys, values


def unrotated(keys: Tensor, layer: LayerInfo) -> Tensor:
    """Keys `[K, p, D]` at the positions 0 .. p-1 as they were before rotation."""
    if layer.rope is None:
        return keys.clone()
    cos, sin = cos_and_sin(layer.rope, torch.arange(keys.shape[1], device=keys.device), keys.dtype)
    scale = layer.rope.scaling**2
    return rotate(keys, cos / scale, -sin / scale)
