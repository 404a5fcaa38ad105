"""The one seam to transformers: attention function, mask builder, cache object and hooks, attached and detached exactly.

A forward that carries a `SpanCache` runs its attention through the cache's run; every other forward of an attached
model keeps stock attention. Nothing is patched: the attention function and the mask builder are registered under the
name "longspan" in transformers' own registries, and one pre-hook a layer hands the rotary embedding to the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from longspan.engine.attention import NewTokens, attend_layer
from longspan.engine.run import Run, StopForward
from longspan.errors import UnsupportedLayerError
from longspan.model_info import Rope
from longspan.ops.rotary import angles

NAME = "longspan"


@dataclass(frozen=True)
class _Handle:
    """What `SpanCache.update` returns instead of tensors; the attention function opens it."""

    run: Run
    index: int
    keys: Tensor
    values: Tensor

    def __getattr__(self, name: str) -> Any:
        raise UnsupportedLayerError(
            f"layer {self.index} works on its cached keys between cache and attention (it asks for .{name}), "
            "as latent attention does; longspan does not serve such layers yet"
        )


class _SpanLayer(CacheLayerMixin):
    """A layer's face towards transformers; the tensors live in the run."""

    is_croppable = True
    supports_early_init = False

    def __init__(self, run: Run, index: int) -> None:
        super().__init__()
        self.run, self.index = run, index
        self.is_sliding = run.plan.layers[index].info.sliding_window_tokens is not None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.is_initialized = True
        handle = _Handle(self.run, self.index, key_states, value_states)
        return handle, handle

    def get_seq_length(self) -> int:
        return self.run.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.run.seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.20

    def reset(self) -> None:
        raise ValueError("a longspan cache cannot be reset in place; start a new one")


class SpanCache(Cache):
    """A run as transformers sees it: counts every token seen, whatever is kept of them."""

    def __init__(self, run: Run) -> None:
        self.run = run
        super().__init__(layers=[_SpanLayer(run, index) for index in range(len(run.plan.layers))])

    def __bool__(self) -> bool:
        # Phi3 throws a truthy cache away where its long rotary factors would start
        return False

    def crop(self, tokens_to_remove: int) -> None:
        keep = self.run.seen + tokens_to_remove if tokens_to_remove <= 0 else tokens_to_remove
        self.run.crop(self.run.seen - keep)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.run.select_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        batch = self.run.layers[0].slabs[0].keys.shape[0]
        self.run.select_rows(torch.arange(batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.run.select_rows(indices)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Any,
    value: Any,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if not isinstance(key, _Handle):
        mask = _stock_mask(query, key, attention_mask, sliding_window)
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scale, **kwargs)
    if softcap is not None or s_aux is not None:
        what = "logit soft-capping" if softcap is not None else "attention sinks of its own"
        raise UnsupportedLayerError(
            f"layer {module.layer_idx} ({type(module).__name__}) has {what}, which longspan does not serve yet"
        )
    run = key.run
    index = int(module.layer_idx)  # type: ignore[arg-type]
    if run.cut is not None:
        return run.cut(index, query, key.keys, key.values, scale), None
    positions, first, padded = _positions(run, query, attention_mask, position_ids)
    new = NewTokens(
        queries=query,
        keys=key.keys,
        values=key.values,
        positions=positions,
        first=first,
        padded=padded,
        scale=scale,
    )
    out = attend_layer(run, index, new)
    if index == run.stop_after_layer:
        raise StopForward
    return out.transpose(1, 2), None


def _positions(
    run: Run, query: Tensor, mask: Tensor | None, position_ids: Tensor | None
) -> tuple[Tensor, int | None, bool]:
    """Positions `[B, T]` of the new tokens, -1 for padding; the first where they are p, p+1, ... in every row; and whether
    there is padding. Every layer of a forward gets the same tensors, so they are looked at once: reading a value off a
    GPU waits for it."""
    B, _, T, _ = query.shape
    held = run.forward_positions
    if held is not None and held[0] is position_ids and held[1] is mask and held[2] == run.seen:
        known = held[3]
        if known[0].shape == (B, T):
            return known
    at = position_ids
    if at is None:
        at = torch.arange(run.seen, run.seen + T, device=query.device)[None]
    at = at.to(torch.int64).expand(B, T)
    if mask is not None and mask.dim() != 2:
        raise ValueError(
            "longspan builds its own masks; pass a 2-D attention_mask of [batch, tokens] with 0 for padding"
        )
    found: tuple[Tensor, int | None, bool]
    if mask is not None and not bool(mask.all()):
        found = torch.where(mask[:, -T:].bool(), at, -1), None, True
    else:
        first = int(at[0, 0])
        plain = torch.arange(first, first + T, device=at.device)
        found = at, first if bool((at == plain).all()) else None, False
    run.forward_positions = position_ids, mask, run.seen, found
    return found


def _stock_mask(query: Tensor, key: Tensor, mask: Tensor | None, sliding_window: int | None) -> Tensor:
    """The boolean `[B, 1, T, S]` mask that stock attention would have used: causal, padded, sliding."""
    T, S = query.shape[2], key.shape[2]
    at, row = torch.arange(S, device=key.device), torch.arange(S - T, S, device=key.device)[:, None]
    allowed = at <= row
    if sliding_window is not None:
        allowed = allowed & (row - at < sliding_window)
    if mask is None:
        return allowed[None, None]
    return allowed[None, None] & mask[:, None, None, -S:].bool()


def _mask_builder(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Hand the 2-D padding mask through: no 4-D mask is ever made."""
    return attention_mask


_SEAMS: WeakKeyDictionary[PreTrainedModel, Seam] = WeakKeyDictionary()


class Seam:
    """Attaches longspan to one model; counts its users and detaches with the last. One seam a model: `Seam.of(model)`."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Seam:
        if model not in _SEAMS:
            _SEAMS[model] = cls(model)
        return _SEAMS[model]

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = ref(model)
        self.attention_modules = find_attention_modules(model)
        self._users = 0
        self._previous = ""
        self._training: WeakSet[nn.Module] = WeakSet()
        self._handles: list[Any] = []

    def attach(self) -> None:
        self._users += 1
        if self._users > 1:
            return
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, _mask_builder)
        model = self._model()
        assert model is not None
        self._training = WeakSet(module for module in model.modules() if module.training)
        model.eval()
        self._previous = model.config._attn_implementation
        model.set_attn_implementation(NAME)
        self._handles = [
            module.register_forward_pre_hook(_before_attention, with_kwargs=True)
            for module in self.attention_modules
        ]

    def detach(self) -> None:
        if self._users == 0:
            return
        self._users -= 1
        if self._users > 0:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        model = self._model()
        if model is not None:
            model.set_attn_implementation(self._previous)
        for module in self._training:
            module.training = True


def is_own_hook(hook: object) -> bool:
    """Whether a hook on a module is the seam's."""
    return hook is _before_attention


def _before_attention(
    module: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]] | None:
    cache, embeddings = kwargs.get("past_key_values"), kwargs.get("position_embeddings")
    if not isinstance(cache, SpanCache) or embeddings is None:
        return None
    cos, sin = embeddings
    plan = cache.run.plan.layers[int(module.layer_idx)]  # type: ignore[arg-type]
    if plan.pre_rotary:
        kwargs["position_embeddings"] = (torch.ones_like(cos), torch.zeros_like(sin))
    elif plan.new_rope:
        rope, positions = plan.info.rope, kwargs.get("position_ids")
        assert rope is not None
        if positions is None:
            positions = torch.arange(cache.run.seen, cache.run.seen + cos.shape[1], device=cos.device)[None]
        kwargs["position_embeddings"] = cos_and_sin(rope, positions, cos.dtype)
    else:
        return None
    return args, kwargs


def cos_and_sin(rope: Rope, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin `[..., rotary_dims]` of integer positions `[...]`."""
    cos, sin = angles(positions, rope.inv_freq, rope.scaling, dtype)
    if rope.start_inv_freq is None:
        return cos, sin
    early = (positions < rope.start_tokens)[..., None]
    first_cos, first_sin = angles(positions, rope.start_inv_freq, rope.scaling, dtype)
    return torch.where(early, first_cos, cos), torch.where(early, first_sin, sin)


def find_attention_modules(model: nn.Module) -> list[nn.Module]:
    """The decoder's self-attention modules in layer order."""
    found = [
        module
        for _, module in model.named_modules()
        if hasattr(module, "layer_idx")
        and "Attention" in type(module).__name__
        and hasattr(module, "scaling")
    ]
    indices = [int(module.layer_idx) for module in found]
    if not found or sorted(indices) != list(range(len(found))):
        raise UnsupportedLayerError(
            f"{type(model).__name__} has no plain decoder self-attention in every layer (found layers {sorted(set(indices))}); "
            "longspan serves causal language models such as Llama, Qwen, Mistral, Gemma and Phi"
        )
    return sorted(found, key=lambda module: int(module.layer_idx))
