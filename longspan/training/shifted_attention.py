"""Shifted sparse attention of LongLoRA: attention within groups of a quarter of the row, half of the heads half a group on.

For training only: a module that is not trained attends to everything before it. Registered with transformers as
"longspan_shifted"; "longspan_shifted_leaking" is the published variant whose last group sees the row's end from its beginning.

Axis legend: B batch, T tokens, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from longspan.errors import UnsupportedLayerError, UserInputError

NAME = "longspan_shifted"
LEAKING = "longspan_shifted_leaking"
GROUPS = 4  # groups of a row: the paper's quarter


def register(*, leak: bool = False) -> str:
    """Register the attention with transformers; its name there."""
    name = LEAKING if leak else NAME
    AttentionInterface.register(name, partial(_attention, leak=leak))
    AttentionMaskInterface.register(name, _refuse_padding)
    return name


def shifted_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    leak: bool = False,
) -> Tensor:
    """Output `[B, H, T, D]` of causal attention within groups of ceil(T / 4) tokens.

    The first half of the heads has groups from token 0 on, the others from half a group on; what is left in front is a group
    of its own. `leak` puts it behind the last tokens instead, as the authors' code without FlashAttention does: its tokens
    then see the row's end, which is what they are trained to predict.

    Args:
        query: `[B, H, T, D]`, rotated. key, value: `[B, K, T, D]`.
    """
    H, T = query.shape[1], query.shape[2]
    if H < 2:
        raise UserInputError(
            f"shifted attention moves half of a layer's heads, and this one has {H}; train with the scheme full"
        )
    group = -(-T // GROUPS)
    shift, half = group // 2, H // 2
    attend = partial(_grouped, group=group, scale=scale, dropout=dropout)
    plain = attend(*_heads(query, key, value, 0, half))
    moved = _heads(query, key, value, half, H)
    if leak:
        turned = attend(*(x.roll(-shift, dims=2) for x in moved)).roll(shift, dims=2)
    else:
        parts = [(0, shift), (shift, T)] if shift else [(0, T)]
        turned = torch.cat([attend(*(x[:, :, start:stop] for x in moved)) for start, stop in parts], dim=2)
    return torch.cat([plain, turned], dim=1)


def _heads(query: Tensor, key: Tensor, value: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query heads `[start, stop)` with their kv heads; these are repeated where the cut goes through one."""
    groups = query.shape[1] // key.shape[1]
    if start % groups == 0 and stop % groups == 0:
        shared = slice(start // groups, stop // groups)
        return query[:, start:stop], key[:, shared], value[:, shared]
    own = torch.arange(start, stop, device=key.device) // groups
    return query[:, start:stop], key[:, own], value[:, own]


def _grouped(
    query: Tensor, key: Tensor, value: Tensor, *, group: int, scale: float | None, dropout: float
) -> Tensor:
    """Causal attention within groups counted from the first token; the last may be shorter."""
    T = query.shape[2]
    if group >= T:
        return _causal(query, key, value, scale=scale, dropout=dropout)
    spare = -T % group  # behind the last token, where no causal query looks
    folded = (_fold(F.pad(x, (0, 0, 0, spare)) if spare else x, group) for x in (query, key, value))
    out = _causal(*folded, scale=scale, dropout=dropout)
    B, H = query.shape[:2]
    return out.unflatten(0, (B, -1)).transpose(1, 2).reshape(B, H, T + spare, -1)[:, :, :T]


def _fold(x: Tensor, group: int) -> Tensor:
    """`[B, h, N * group, D]` as `[B * N, h, group, D]`."""
    return x.unflatten(2, (-1, group)).transpose(1, 2).flatten(0, 1)


def _causal(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, dropout: float) -> Tensor:
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        is_causal=True,
        scale=scale,
        dropout_p=dropout,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    leak: bool,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function as transformers calls it; output `[B, T, H, D]`. Layers with a sliding window of their own keep it."""
    if attention_mask is not None:
        raise UserInputError(
            "shifted attention makes its own masks, and this model brought one; pass a 2-D attention_mask without zeros, or none"
        )
    if softcap is not None or s_aux is not None:
        what = "logit soft-capping" if softcap is not None else "attention sinks of its own"
        raise UnsupportedLayerError(
            f"layer {module.layer_idx} ({type(module).__name__}) has {what}, which shifted attention does not serve; train "
            "with the scheme full"
        )
    if module.training and sliding_window is None:
        out = shifted_attention(query, key, value, scale=scaling, dropout=dropout, leak=leak)
    else:
        out = _stock(query, key, value, scaling, dropout, sliding_window)
    return out.transpose(1, 2).contiguous(), None


def _stock(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, dropout: float, sliding_window: int | None
) -> Tensor:
    """What the model itself would do: T new queries over all S keys, or over those in its window."""
    T, S = query.shape[2], key.shape[2]
    if sliding_window is None and T == S:
        return _causal(query, key, value, scale=scale, dropout=dropout)
    row, at = torch.arange(S - T, S, device=key.device)[:, None], torch.arange(S, device=key.device)
    seen = at <= row
    if sliding_window is not None:
        seen &= row - at < sliding_window
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=seen,
        scale=scale,
        dropout_p=dropout,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _refuse_padding(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> None:
    """No mask is made: groups are cut by place, so every row must be full."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise UserInputError(
            "shifted attention cuts rows into groups by place, and this batch has padding; give rows of one length without it"
        )
