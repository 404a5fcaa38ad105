"""What a model is: its layers, rotary embeddings and window, read from the model and checked by running it.

Reading a config is not enough: a one-token probe finds layers without rotary embedding and partial rotary, and a parity
run of a few tokens compares every attention layer with stock attention before anything is served.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longspan.engine.plan import Plan
from longspan.engine.run import Run
from longspan.engine.seam import SpanCache, find_attention_modules
from longspan.errors import UnsupportedLayerError
from longspan.model_info import LayerInfo, ModelInfo, Rope
from longspan.roles import Step

PARITY_TOKENS = 12
TOLERANCES = {torch.float32: 2e-4, torch.float64: 2e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}


def inspect_model(model: PreTrainedModel, name: str) -> ModelInfo:
    """Read the layers of a causal language model. Raises UnsupportedLayerError where they are not plain attention."""
    config = model.config.get_text_config(decoder=True)
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedLayerError(
            f"{name} is an encoder-decoder model; longspan serves decoder-only causal language models"
        )
    modules = find_attention_modules(model)
    if not all(getattr(module, "is_causal", True) for module in modules):
        raise UnsupportedLayerError(
            f"{name} ({type(model).__name__}) attends in both directions; use it inside "
            "longspan.applied(encoder, methods), longspan.load is for causal language models"
        )
    if len(modules) != config.num_hidden_layers:
        raise UnsupportedLayerError(
            f"{name} has attention in {len(modules)} of {config.num_hidden_layers} layers; hybrid models are not served yet"
        )
    window = int(config.max_position_embeddings)
    rope_of = cache(
        lambda layer_type: _rope(model, config, layer_type, window)
    )  # what layers share is one object
    layers = tuple(_layer(module, config, rope_of) for module in modules)
    parameter = next(model.parameters())
    return ModelInfo(
        name=name,
        layers=layers,
        window_tokens=window,
        device=parameter.device,
        dtype=parameter.dtype,
        fingerprint=fingerprint(model),
    )


def fingerprint(model: nn.Module) -> str:
    """Short hash of shapes and a sample of weights: two models with the same one can share a saved context."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        flat = value.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _layer(module: nn.Module, config: Any, rope_of: Callable[[str | None], Rope | None]) -> LayerInfo:
    index = int(module.layer_idx)  # type: ignore[arg-type]
    types = getattr(config, "layer_types", None)
    layer_type = types[index] if types else None
    if layer_type not in (None, "full_attention", "sliding_attention"):
        raise UnsupportedLayerError(
            f"layer {index} ({type(module).__name__}) is of type {layer_type}, which is not served yet"
        )
    sliding = getattr(module, "sliding_window", None)
    if sliding is None and (layer_type == "sliding_attention" or layer_type is None):
        sliding = (
            getattr(config, "sliding_window", None)
            if layer_type or not hasattr(config, "use_sliding_window")
            else None
        )
    head_dim = int(getattr(module, "head_dim", config.hidden_size // config.num_attention_heads))
    return LayerInfo(
        index=index,
        num_heads=int(config.num_attention_heads),
        num_kv_heads=int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads),
        head_dim=head_dim,
        scale=float(module.scaling),  # type: ignore[arg-type]
        rope=rope_of(layer_type),
        sliding_window_tokens=None if sliding is None else int(sliding),
    )


def _rope(model: PreTrainedModel, config: Any, layer_type: str | None, window: int) -> Rope | None:
    rotary = getattr(model.get_decoder(), "rotary_emb", None)
    if rotary is None:
        return None
    prefix = f"{layer_type}_" if hasattr(rotary, f"{layer_type}_inv_freq") else ""
    inv_freq = getattr(rotary, f"{prefix}inv_freq", None)
    if inv_freq is None:
        return None
    parameters = config.rope_parameters
    if prefix:
        parameters = parameters[layer_type]
    trained = parameters.get("original_max_position_embeddings") or window
    return Rope(
        inv_freq=inv_freq.detach().float().clone(),
        scaling=float(getattr(rotary, f"{prefix}attention_scaling", 1.0)),
        theta=float(parameters["rope_theta"]),
        window_tokens=int(trained),
        rotary_dims=2 * inv_freq.shape[0],
        rope_type=str(parameters.get("rope_type", "default")),
    )


@torch.no_grad()
def attention_outputs(model: PreTrainedModel, forward: Callable[[Tensor], Any]) -> list[Tensor]:
    """Outputs of every attention layer while `forward` runs the parity tokens, without dropout."""
    outputs: list[Tensor] = []
    training = [module for module in model.modules() if module.training]
    model.eval()
    handles = [
        module.register_forward_hook(lambda m, a, out: outputs.append(out[0].detach()))
        for module in find_attention_modules(model)
    ]
    vocab = model.config.get_text_config(decoder=True).vocab_size
    ids = torch.arange(7, 7 + 31 * PARITY_TOKENS, 31, device=model.device)[None] % vocab
    try:
        forward(ids)
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    return outputs


def check_parity(model: PreTrainedModel, stock: list[Tensor], plan: Plan, name: str) -> None:
    """Compare every attention layer under a dense plan with `stock`; raise naming the first layer that differs."""

    def forward(ids: Tensor) -> None:
        half = PARITY_TOKENS // 2
        cache = SpanCache(run := Run(plan=plan, chunk_tokens=PARITY_TOKENS))
        for part in (slice(0, half), slice(half, None)):
            at = torch.arange(run.seen, run.seen + ids[:, part].shape[1], device=ids.device)[None]
            model(input_ids=ids[:, part], past_key_values=cache, position_ids=at, use_cache=True)

    ours = attention_outputs(model, forward)
    modules = find_attention_modules(model)
    for index, module in enumerate(modules):
        got = torch.cat([ours[index], ours[index + len(modules)]], dim=1)
        wrong = (got - stock[index]).abs().max() / stock[index].abs().max().clamp(min=1e-6)
        if not wrong <= TOLERANCES[got.dtype]:
            mode = "with keys kept before rotation " if plan.pre_rotary else ""
            raise UnsupportedLayerError(
                f"layer {index} ({type(module).__name__}) of {name} does not reproduce its own attention {mode}"
                f"(relative error {float(wrong):.1e}); this model cannot be served with this spec"
            )


@torch.no_grad()
def layers_without_rotary(model: PreTrainedModel, plan: Plan) -> frozenset[int]:
    """Layers whose queries ignore the rotary embedding, found by one token with cos = sin = 0."""
    untouched: set[int] = set()

    def probe(index: int, step: Step) -> None:
        dims = step.layer.rope.rotary_dims if step.layer.rope else 0
        if dims == 0 or bool(step.queries[..., :dims].abs().max() > 0):
            untouched.add(index)

    zero = [
        module.register_forward_pre_hook(_zero_embeddings, with_kwargs=True)
        for module in find_attention_modules(model)
    ]
    try:
        cache = SpanCache(Run(plan=plan, chunk_tokens=1, watchers=[probe]))
        model(input_ids=torch.tensor([[1]], device=model.device), past_key_values=cache, use_cache=True)
    finally:
        for handle in zero:
            handle.remove()
    return frozenset(untouched)


def _zero_embeddings(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    if kwargs.get("position_embeddings") is not None:
        cos, sin = kwargs["position_embeddings"]
        kwargs["position_embeddings"] = (torch.zeros_like(cos), torch.zeros_like(sin))
    return args, kwargs
