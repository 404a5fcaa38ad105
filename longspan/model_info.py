"""What a method sees of a model: its layers, their rotary embeddings, and the window it was trained for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary embedding of one layer: angles are `position * inv_freq`, cos and sin are multiplied by `scaling`.

    Args:
        inv_freq: float32 `[rotary_dims / 2]`.
        scaling: factor on cos and sin (YaRN's mscale and the like); 1.0 for plain rotary.
        theta: the base the model was trained with.
        window_tokens: positions the model was trained on.
        rotary_dims: leading dims of a head that are rotated (smaller than D with partial rotary).
        rope_type: transformers' name of what the model itself does: "default", "llama3", "yarn", ...
        start_tokens: positions below this turn by `start_inv_freq` instead (LongRoPE's first tokens).
        start_inv_freq: float32 `[rotary_dims / 2]`, where there are such positions.
    """

    inv_freq: Tensor
    scaling: float
    theta: float
    window_tokens: int
    rotary_dims: int
    rope_type: str = "default"
    start_tokens: int = 0
    start_inv_freq: Tensor | None = None

    def with_parameters(self, **parameters: object) -> Rope:
        """The rotary embedding that transformers' own `ROPE_INIT_FUNCTIONS` makes of these `rope_parameters`.

        `rope_theta` and `original_max_position_embeddings` are filled in from this embedding.
        """
        from transformers import LlamaConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        given = {
            "rope_theta": self.theta,
            "original_max_position_embeddings": self.window_tokens,
            **parameters,
        }
        config = LlamaConfig(
            hidden_size=self.rotary_dims,
            num_attention_heads=1,
            head_dim=self.rotary_dims,
            max_position_embeddings=self.window_tokens,
            rope_parameters=given,
        )
        inv_freq, scaling = ROPE_INIT_FUNCTIONS[str(given["rope_type"])](config, self.inv_freq.device)
        return replace(self, inv_freq=inv_freq, scaling=scaling, rope_type=str(given["rope_type"]))

    def with_theta(self, theta: float) -> Rope:
        """The same embedding with another base."""
        import torch

        exponent = torch.arange(0, self.rotary_dims, 2, dtype=torch.float32, device=self.inv_freq.device)
        return replace(self, inv_freq=1.0 / theta ** (exponent / self.rotary_dims), theta=theta)


@dataclass(frozen=True, kw_only=True)
class LayerInfo:
    """One attention layer as a method sees it."""

    index: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None
    sliding_window_tokens: int | None

    @property
    def num_groups(self) -> int:
        return self.num_heads // self.num_kv_heads


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The model as a method sees it. `window_tokens` is the context length it was trained for; with `learned_positions`,
    the rows of the table that it takes positions from, as BERT does, instead of rotating."""

    name: str
    layers: tuple[LayerInfo, ...]
    window_tokens: int
    device: torch.device
    dtype: torch.dtype
    fingerprint: str
    learned_positions: bool = False

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def open_layers(self) -> tuple[LayerInfo, ...]:
        """The layers that methods may change: those without a sliding window of their own."""
        return tuple(layer for layer in self.layers if layer.sliding_window_tokens is None)
