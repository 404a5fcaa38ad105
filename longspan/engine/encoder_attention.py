"""Attention of encoders, which looks both ways: registered with transformers, told by a context variable what a forward wants.

A band of a method says how far a query stands from the keys before it. An encoder's query sees the keys behind it as well,
and they stand as far from it as it stands, under the same bands, from them: distance(i, j) = -distance(j, i).

Axis legend: B batch, t queries of a piece, T tokens, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from longspan.engine.plan import LayerPlan
from longspan.engine.seam import cos_and_sin
from longspan.errors import UnsupportedLayerError, UserInputError
from longspan.model_info import Rope
from longspan.ops.rotary import angles, rotate
from longspan.visit import Band

NAME = "longspan_encoder"
PIECE_LOGITS = (
    2**24
)  # logits of a piece of queries that are held at once; bounds the memory of bands and windows


@dataclass(frozen=True, kw_only=True)
class EncoderCall:
    """What one forward tells its attention layers.

    Args:
        layers: each attention module's plan.
        positions: int64 `[1 or B, T]`.
        lengths: int64 `[B]`, tokens of each row up to its last one that is not padding.
    """

    layers: dict[nn.Module, LayerPlan]
    positions: Tensor
    lengths: Tensor
    turned: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def embeddings(self, plan: LayerPlan, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin `[1 or B, T, rotary_dims]` of a layer with new frequencies; layers that share them share these."""
        rope = plan.info.rope
        assert rope is not None
        if id(rope) not in self.turned:
            self.turned[id(rope)] = self._turn(plan, rope, dtype)
        return self.turned[id(rope)]

    def _turn(self, plan: LayerPlan, rope: Rope, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if not plan.growing:
            return cos_and_sin(rope, self.positions, dtype)
        assert plan.positions is not None
        at, rows = self.positions.expand(len(self.lengths), -1), []
        for row, length in zip(at, self.lengths.tolist(), strict=True):
            grown = plan.positions.rope_at(rope, length)
            assert grown is not None
            rows.append(cos_and_sin(grown, row, dtype))
        return torch.stack([cos for cos, _ in rows]), torch.stack([sin for _, sin in rows])


CALL: ContextVar[EncoderCall | None] = ContextVar("longspan_encoder_call", default=None)


def register() -> None:
    """Make the attention function and its mask builder known to transformers."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask_builder)


def before_attention(
    module: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]] | None:
    """Pre-hook of an attention module: new cos and sin, or none where attention rotates by itself."""
    plan, (cos, sin) = _call().layers[module], kwargs["position_embeddings"]
    if plan.bands:
        kwargs["position_embeddings"] = torch.ones_like(cos), torch.zeros_like(sin)
    elif plan.new_rope:
        kwargs["position_embeddings"] = _call().embeddings(plan, cos.dtype)
    else:
        return None
    return args, kwargs


def _call() -> EncoderCall:
    call = CALL.get()
    if call is None:
        raise UserInputError(
            "inside longspan.applied a part of the encoder was called by itself; call the model that was given to it"
        )
    return call


def _mask_builder(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Hand the 2-D padding mask through: no 4-D mask is ever made."""
    return attention_mask


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if softcap is not None or s_aux is not None:
        what = "logit soft-capping" if softcap is not None else "attention sinks of its own"
        raise UnsupportedLayerError(f"{type(module).__name__} has {what}, which longspan does not serve yet")
    if attention_mask is not None and attention_mask.dim() != 2:
        raise UserInputError(
            "longspan builds its own masks; pass a 2-D attention_mask of [batch, tokens] with 0 for padding"
        )
    call = _call()
    plan = call.layers[module]
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if plan.positions is not None:
        # A query of an encoder sees the whole text, as the last one of a causal model does.
        last = (call.lengths - 1)[:, None].expand(-1, query.shape[2])
        factor = plan.positions.logit_scale(last, plan.info)
        if factor is not None:
            query = query * factor[:, None, :, None].to(query.dtype)
    real = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if plan.bands:
        rope = plan.info.rope
        assert rope is not None
        out = banded_attention(query, key, value, real, call.positions, rope, plan.bands, dropout)
    elif sliding_window is not None:
        out = _sliding(query, key, value, real, sliding_window, dropout)
    else:
        mask = None if real is None else real[:, None, None]
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=1.0)
    return out.transpose(1, 2), None


def _pieces(num_tokens: int, num_keys: int, rows: int) -> Iterator[slice]:
    size = max(1, PIECE_LOGITS // (num_keys * rows))
    return (slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size))


def _sliding(
    query: Tensor, key: Tensor, value: Tensor, real: Tensor | None, window: int, dropout: float
) -> Tensor:
    """Every query sees the keys less than `window` places before and behind it."""
    T, outs = query.shape[2], []
    for piece in _pieces(T, min(T, 3 * window), query.shape[0] * query.shape[1]):
        near = slice(max(0, piece.start - window + 1), min(T, piece.stop + window - 1))
        at = torch.arange(T, device=query.device)
        mask = ((at[piece, None] - at[None, near]).abs() < window)[None, None]
        if real is not None:
            mask = mask & real[:, None, None, near]
        # A padded query may see nothing: its output is not read, and must not be NaN.
        mask = mask | (~mask.any(-1, keepdim=True))
        outs.append(
            scaled_dot_product_attention(
                query[:, :, piece],
                key[:, :, near],
                value[:, :, near],
                attn_mask=mask,
                dropout_p=dropout,
                scale=1.0,
            )
        )
    return torch.cat(outs, dim=2)


def banded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    real: Tensor | None,
    positions: Tensor,
    rope: Rope,
    bands: tuple[Band, ...],
    dropout: float = 0.0,
) -> Tensor:
    """Attention `[B, H, T, D]` in both directions under bands.

    Args:
        query, key, value: `[B, H, T, D]`, not rotated, the scale of the logits in the queries.
        real: bool `[B, T]`, False for padding, or None.
        positions: int64 `[1 or B, T]`.
        rope: the frequencies that queries and keys turn by.
        bands: for the keys up to each query; those behind it are told by swapping the two.
        dropout: share of the weights that is dropped.
    """

    def turned(x: Tensor, place: Callable[[Tensor], Tensor]) -> Tensor:
        cos, sin = angles(place(positions), rope.inv_freq, rope.scaling, x.dtype)
        return rotate(x, cos[:, None], sin[:, None])

    p, outs = positions, []
    directions = [
        (
            band,
            forward,
            turned(query, band.query if forward else band.key),
            turned(key, band.key if forward else band.query),
        )
        for band in bands
        for forward in (True, False)
    ]
    for piece in _pieces(query.shape[2], key.shape[2], query.shape[0] * query.shape[1]):
        q, k = p[:, piece, None], p[:, None, :]
        logits = query.new_full((*query.shape[:2], q.shape[1], key.shape[2]), -torch.inf)
        for band, forward, queries, keys in directions:
            of, seen = (q, k) if forward else (k, q)
            member = (band.low(of) <= seen) & (seen < band.high(of)) & ((k <= q) == forward)
            if bool(member.any()):
                logits = torch.where(member[:, None], queries[:, :, piece] @ keys.mT, logits)
        if real is not None:
            logits = logits.masked_fill(~real[:, None, None], -torch.inf)
        weights = drop(logits.softmax(-1, dtype=torch.float32).to(value.dtype), dropout)
        outs.append(weights @ value)
    return torch.cat(outs, dim=2)
