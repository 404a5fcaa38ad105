"""Dynamic NTK: raise the rotary base with the text, by just as much as its length so far asks for.

Equation: theta' = theta * s^(d / (d - 2)) with s = f * L / L_trained - (f - 1), f = `factor`, d rotary dims
and L the number of tokens that have come; the model's own theta as long as L <= L_trained. So a short text is
read as the model was trained, and a long one with the slowest frequency divided by s, which at f = 1 is just
L / L_trained, and above that more, as the frequencies in between need (see ntk).

Each step, of one token or a chunk, takes L at its own end and turns all keys, new and old, with one base:
keys are stored before rotation and rotated at attention.

Paper: Dynamically Scaled RoPE further increases performance of long context LLaMA with zero fine-tuning (2023).

Differs from the paper: nothing in the formula, which is transformers' own ("dynamic"). transformers rotates
keys before it stores them, so that a cached key keeps the base of the length at which it came, and a query
meets keys of many bases: a known bug of that implementation. It shows while tokens are generated, and in
texts read in chunks; a text read at once gives the same logits. A batch has one base, that of its longest
row, here as there.

Fails when: the text is read in chunks and must equal a text read at once (early chunks are read with a lower
base), or speed counts: rotating stored keys anew costs each step the more, the longer the text. ntk fixes the
base beforehand.

    model = longspan.load("reference", methods="dynamic_ntk(factor=2)")
    model.read(text_of_any_length).ask("Who keeps the lantern?")
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from longspan.methods.positions._scaling import check_factor, check_rotary, check_several, check_window
from longspan.roles import ModelInfo, Positions, Rope

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import LlamaConfig

CARD = {
    "title": "Dynamically Scaled RoPE further increases performance of long context LLaMA with zero fine-tuning",
    "year": 2023,
    "paper_id": None,
    "family": "positions",
    "roles": ["Positions"],
    "phase": "both",
    "training": "none",
    "exact": "within the trained window",
    "frees": "no",
    "needs": ["rotary positions that the model does not scale itself"],
    "claim": {
        "text": "without training, and without a length given beforehand, the model finds a hidden fact at twice "
        "its trained window",
        "spec": "dynamic_ntk()",
        "task": "niah_single_1",
        "length_tokens": 8192,
        "reach": {16384: "dynamic_ntk()"},
        "against": "dense",
        "at_least": 0.8,
    },
    "tolerances": {
        "chunked_reading": "a chunk is read with the base of its own end, so other chunks are read with other bases, "
        "which changes the logits of random weights by up to 0.05 (of 0.45)",
        "left_padding": "a batch has the base of its longest row, which is more than a shorter row has alone and "
        "changes its logits under random weights by up to 0.22 (of 0.45); the longest row's are equal",
    },
    "example": "dynamic_ntk(window_tokens=128)",
    "identity": "dynamic_ntk(window_tokens=1024)",
}


@dataclass(frozen=True, kw_only=True)
class DynamicNtk(Positions):
    """Settings of dynamic NTK."""

    factor: float = 2.0  # f, the post's alpha; ours: s = 3 at twice the window, as ntk wants it
    window_tokens: int | None = None  # L_trained, up to which nothing changes; by default the model's

    def __post_init__(self) -> None:
        check_factor(self.factor)
        check_window(self.window_tokens)

    def check(self, model: ModelInfo) -> None:
        """Refuse models without rotary positions."""
        check_rotary("dynamic_ntk", model)
        check_several("dynamic_ntk", model)

    def rope_at(self, rope: Rope, num_tokens: int) -> Rope:
        """transformers' own dynamic frequencies for a text of so many tokens."""
        window = self.window_tokens or rope.window_tokens
        if num_tokens <= window:
            return rope
        frequencies = _frequencies(
            self.factor, rope.theta, rope.rotary_dims, window, num_tokens, rope.inv_freq.device
        )
        return replace(rope, inv_freq=frequencies)


@lru_cache(maxsize=8)
def _config(factor: float, theta: float, rotary_dims: int, window_tokens: int) -> LlamaConfig:
    """What transformers reads the formula's constants from; making one takes as long as a layer's step."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=rotary_dims,
        num_attention_heads=1,
        head_dim=rotary_dims,
        max_position_embeddings=window_tokens,
        rope_parameters={"rope_type": "dynamic", "rope_theta": theta, "factor": factor},
    )


@lru_cache(maxsize=8)
def _frequencies(
    factor: float, theta: float, rotary_dims: int, window_tokens: int, num_tokens: int, device: torch.device
) -> Tensor:
    """One tensor for all layers of a step, so that tables made of it are shared."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = _config(factor, theta, rotary_dims, window_tokens)
    return ROPE_INIT_FUNCTIONS["dynamic"](config, device, seq_len=num_tokens)[0]
