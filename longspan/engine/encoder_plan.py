"""What an encoder is, and a spec compiled for it: which methods have something to do in one pass over a whole text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from longspan.engine.encoder_rows import Table, find_table, reach_tokens
from longspan.engine.inspect import fingerprint
from longspan.engine.plan import EXCLUSIVE, LayerPlan, build_plan
from longspan.errors import UnsupportedLayerError, UserInputError
from longspan.model_info import LayerInfo, ModelInfo, Rope
from longspan.roles import Positions, Reading, Steering
from longspan.spec import ScopedMethod, canonical


def is_encoder(model: PreTrainedModel) -> bool:
    """Does every attention layer of the model look both ways?"""
    if getattr(model.config, "is_encoder_decoder", False) or getattr(model.config, "is_decoder", False):
        return False
    flags = {module.is_causal for module in model.modules() if hasattr(module, "is_causal")}
    return flags == {False} or (not flags and find_table(model) is not None)


@dataclass(frozen=True, kw_only=True)
class EncoderPlan:
    """A spec compiled for one encoder.

    Args:
        spec: its text.
        layers: of rotary encoders, one for each attention module.
        places: of encoders with a learned table, the map of positions; None for the encoder's own.
        window_tokens: rows are cut into windows of that many tokens, which are encoded apart.
        reach_tokens: most tokens of a text; None for any number.
    """

    spec: str
    layers: tuple[LayerPlan, ...] = ()
    places: Callable[[Tensor], Tensor] | None = None
    window_tokens: int | None = None
    reach_tokens: int | None = None


def rotary_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Self-attention modules that are handed cos and sin, in layer order."""
    return [
        module
        for module in model.modules()
        if getattr(module, "is_causal", None) is False
        and "position_embeddings" in inspect.signature(module.forward).parameters
    ]


def encoder_info(
    model: PreTrainedModel, name: str, modules: Sequence[nn.Module], table: Table | None
) -> ModelInfo:
    if not modules and table is None:
        raise UnsupportedLayerError(
            f"{name} ({type(model).__name__}) has neither rotary positions nor a learned table of positions that longspan "
            "knows; use an encoder such as BERT, RoBERTa, ModernBERT or EuroBERT"
        )
    config = model.config.get_text_config()
    window = int(config.max_position_embeddings) if table is None else table.window_tokens
    layers = tuple(_layer(model, config, index, module, window) for index, module in enumerate(modules))
    parameter = next(model.parameters())
    return ModelInfo(
        name=name,
        layers=layers,
        window_tokens=window,
        device=parameter.device,
        dtype=parameter.dtype,
        fingerprint=fingerprint(model),
        learned_positions=table is not None,
    )


def _layer(model: PreTrainedModel, config: Any, index: int, module: nn.Module, window: int) -> LayerInfo:
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(module, "head_dim", config.hidden_size // heads))
    types = getattr(config, "layer_types", None)
    sliding = getattr(module, "sliding_window", None)
    return LayerInfo(
        index=index,
        num_heads=heads,
        num_kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=head_dim,
        scale=float(getattr(module, "scaling", head_dim**-0.5)),
        rope=_rope(model, config, types[index] if types else None, window),
        sliding_window_tokens=None if sliding is None else int(sliding),
    )


def _rope(model: PreTrainedModel, config: Any, layer_type: str | None, window: int) -> Rope | None:
    """The rotary embedding of a layer type, from the encoder's own buffers."""
    rotary = next((m.rotary_emb for m in model.modules() if hasattr(m, "rotary_emb")), None)
    prefix = f"{layer_type}_" if hasattr(rotary, f"{layer_type}_inv_freq") else ""
    inv_freq = getattr(rotary, f"{prefix}inv_freq", None)
    if inv_freq is None:
        return None
    parameters = config.rope_parameters[layer_type] if prefix else config.rope_parameters
    return Rope(
        inv_freq=inv_freq.detach().float().clone(),
        scaling=float(getattr(rotary, f"{prefix}attention_scaling", 1.0)),
        theta=float(parameters["rope_theta"]),
        window_tokens=int(parameters.get("original_max_position_embeddings") or window),
        rotary_dims=2 * inv_freq.shape[0],
        rope_type=str(parameters.get("rope_type", "default")),
    )


def encoder_plan(methods: Sequence[ScopedMethod], info: ModelInfo) -> EncoderPlan:
    """Compile methods for an encoder; ValueError where they cannot serve it or each other."""
    spec = canonical(methods)
    for scoped in methods:
        _refuse_what_encoders_lack(scoped, info)
    acting = [scoped for scoped in methods if scoped.method.claims()]
    windowed = next((s for s in acting if isinstance(s.method, Reading)), None)
    if info.learned_positions or windowed is not None:
        for scoped in methods:
            scoped.method.check(info)
        if len(acting) > 1:
            raise ValueError(
                f"{acting[0].name} and {acting[1].name} both {EXCLUSIVE['Positions']}, which only one method can; "
                "keep one of them"
            )
        scope = acting[0].scope if acting else None
        if scope is not None and (scope.layers, scope.heads, scope.phase) != (None, None, None):
            raise ValueError(
                f"{acting[0].name} changes what all layers of {info.name} see; write it without on(...)"
            )
    if windowed is not None:
        return EncoderPlan(spec=spec, window_tokens=_window(windowed, info))
    if not info.learned_positions:
        return EncoderPlan(spec=spec, layers=build_plan(methods, info).layers)
    if not acting:
        return EncoderPlan(spec=spec, reach_tokens=info.window_tokens)
    method = acting[0].method
    assert isinstance(method, Positions)

    def places(positions: Tensor) -> Tensor:
        found = method.places(positions, info.window_tokens)
        if found is None:
            raise UserInputError(
                f"{acting[0].name} says nothing about learned positions, which {info.name} has; choose another method"
            )
        return found

    return EncoderPlan(spec=spec, places=places, reach_tokens=reach_tokens(places, info.window_tokens))


def _refuse_what_encoders_lack(scoped: ScopedMethod, info: ModelInfo) -> None:
    method, claims = scoped.method, scoped.method.claims()
    if isinstance(method, Reading) and method.encoder_window(info.window_tokens) is not None:
        return
    lacking = sorted(claims - {"Positions"})
    what = "adjust attention before a question" if isinstance(method, Steering) else ""
    what = EXCLUSIVE[lacking[0]] if lacking else what
    if what:
        raise UserInputError(
            f"{scoped.name} is a method to {what}, which an encoder has no use for: it reads a text at once and keeps "
            "nothing; use a method of positions (`longspan methods` lists them)"
        )


def _window(scoped: ScopedMethod, info: ModelInfo) -> int:
    assert isinstance(scoped.method, Reading)
    window = scoped.method.encoder_window(info.window_tokens)
    assert window is not None
    if not 3 <= window <= info.window_tokens:
        raise UserInputError(
            f"{scoped.name}: got windows of {window} tokens; {info.name} takes windows of 3 to "
            f"{info.window_tokens:,}, its first and last token included"
        )
    return window
