"""The model that training starts from, and whether it can be extended by a scheme at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from longspan.engine.api import load
from longspan.engine.model import LoadedModel, SpanModel
from longspan.engine.seam import find_attention_modules
from longspan.errors import UnsupportedLayerError, UserInputError
from longspan.model_info import Rope
from longspan.roles import Positions
from longspan.spec import canonical, resolve
from longspan.training.config import SMOKE_DIVIDES
from longspan.training.scheme import Scheme


@dataclass(frozen=True, kw_only=True)
class Base:
    """A model with nothing attached. rope: of the layers that training changes, `modules` their attention."""

    model: PreTrainedModel
    tokenizer: Any
    name: str
    fingerprint: str
    window_tokens: int
    rope: Rope
    modules: tuple[nn.Module, ...]


def load_base(
    model: str | PreTrainedModel,
    scheme: Scheme,
    length_tokens: int,
    *,
    half: bool = False,
    smoke: bool = False,
    tokenizer: Any = None,
) -> Base:
    """Load the model on the CPU and check that `scheme` can take it to `length_tokens`.

    Args:
        model: what `longspan.load` takes. half: weights in bfloat16, for adapters on a GPU; float32 otherwise.
        smoke: a tiny random model in its place, with a sixteenth of its window. tokenizer: for a loaded model.

    Raises:
        ValueError: the model cannot be loaded, has no rotary positions, or scales its own; or the scheme's spec does not
            serve it, or does not reach the length.
    """
    if isinstance(model, PreTrainedModel):
        span = load(model, tokenizer=tokenizer)
    else:
        span = load(model, dtype=torch.bfloat16 if half else torch.float32, device="cpu")
    span.detach()
    if span.tokenizer is None:
        raise UserInputError(f"{span.name} has no tokenizer; give a model folder with one")
    rope = _open_rope(span)
    if smoke:
        tiny = _tiny(rope, span.tokenizer, span.window_tokens // SMOKE_DIVIDES)
        span = SpanModel(LoadedModel(tiny, span.tokenizer, f"a tiny model in place of {span.name}"))
        span.detach()
        rope = _open_rope(span)
    if length_tokens > span.window_tokens:
        check_spec(span, scheme.spec(rope, length_tokens), rope, length_tokens)
    modules = find_attention_modules(span.hf_model)
    return Base(
        model=span.hf_model,
        tokenizer=span.tokenizer,
        name=span.name,
        fingerprint=span.info.fingerprint,
        window_tokens=span.window_tokens,
        rope=rope,
        modules=tuple(modules[layer.index] for layer in span.info.open_layers),
    )


def _open_rope(span: SpanModel) -> Rope:
    """The one rotary embedding of the layers that training may change."""
    layers = span.info.open_layers
    ropes = {id(layer.rope): layer.rope for layer in layers if layer.rope is not None}
    if not ropes or any(layer.rope is None for layer in layers):
        raise UnsupportedLayerError(
            f"{span.name} has no rotary positions in the layers that see the whole text, so its window cannot be extended "
            "this way; use a model with rotary positions, such as Llama, Qwen or Mistral"
        )
    if len(ropes) > 1:
        raise UnsupportedLayerError(
            f"{span.name} has {len(ropes)} different rotary embeddings in its full-attention layers; training serves models with one"
        )
    rope = next(iter(ropes.values()))
    if rope.rope_type != "default":
        raise UserInputError(
            f"{span.name} already scales its rotary positions ({rope.rope_type}), and a scheme would scale them again; "
            "start from the model before that extension"
        )
    return rope


def check_spec(span: SpanModel, spec: str, rope: Rope, length_tokens: int) -> None:
    """Refuse a spec that does not serve the model, or whose slowest frequency turns further at the length than it did within
    the window. The model's own frequencies ("dense") are let pass: to train beyond them is a recipe of its own."""
    span.loaded.plan(spec)
    method = resolve(spec)[0].method
    if not isinstance(method, Positions):
        return
    slowed = float(rope.inv_freq[-1] / method.rope(rope).inv_freq[-1].clamp(min=1e-30))
    if slowed * rope.window_tokens < length_tokens * (1 - 1e-4):
        raise UserInputError(
            f"{canonical(spec)} slows the slowest frequency {slowed:.3g} times, enough for "
            f"{int(slowed * rope.window_tokens):,} tokens, and --length is {length_tokens:,}: that takes "
            f"{length_tokens / rope.window_tokens:.3g} times or more"
        )


def _tiny(rope: Rope, tokenizer: Any, window_tokens: int) -> LlamaForCausalLM:
    """A random Llama of two layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=window_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": rope.theta},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval()
