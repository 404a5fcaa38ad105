"""Positions and frequencies of each row, put in place of the model's own while it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from longspan.errors import UnsupportedLayerError
from longspan.model_info import Rope
from longspan.ops.rotary import angles


class Rotation(AbstractContextManager["Rotation"]):
    """Inside the `with` block the attention of `modules` is rotated as `set` says; leaving it restores them.

    The hook runs inside each layer, so that a layer computed again in backward finds the same rotation, and gradients
    reach the frequencies.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._handles: list[Any] = []
        self._embeddings: tuple[Tensor, Tensor] | None = None

    def __enter__(self) -> Rotation:
        self._handles = [
            module.register_forward_pre_hook(self._before_attention, with_kwargs=True)
            for module in self._modules
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._embeddings = [], None

    def set(self, positions: Tensor, ropes: Sequence[Rope]) -> None:
        """Rotation of the next forward. positions: int64 `[B, T]`; ropes: one a row."""
        if all(rope is ropes[0] for rope in ropes):
            self._embeddings = _cos_and_sin(positions, ropes[0])
            return
        rows = [_cos_and_sin(row, rope) for row, rope in zip(positions, ropes, strict=True)]
        self._embeddings = torch.stack([cos for cos, _ in rows]), torch.stack([sin for _, sin in rows])

    def _before_attention(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        own = kwargs.get("position_embeddings")
        if own is None:
            raise UnsupportedLayerError(
                f"layer {module.layer_idx} ({type(module).__name__}) is not handed its rotary embedding by the model, so it "
                "cannot be trained under another"
            )
        assert self._embeddings is not None, "set() comes before each forward"
        cos, sin = self._embeddings
        kwargs["position_embeddings"] = (cos.to(own[0].dtype), sin.to(own[0].dtype))
        return args, kwargs


def _cos_and_sin(positions: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    """cos and sin `[..., T, D]` in float32."""
    cos, sin = angles(positions, rope.inv_freq, rope.scaling, torch.float32)
    if rope.start_inv_freq is None:
        return cos, sin
    early = (positions < rope.start_tokens)[..., None]
    first_cos, first_sin = angles(positions, rope.start_inv_freq, rope.scaling, torch.float32)
    return torch.where(early, first_cos, cos), torch.where(early, first_sin, sin)
