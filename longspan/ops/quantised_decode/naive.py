"""Quantised keys and values by their definition, in float32 on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.ops.quantised_decode.store import CENTRE, QuantisedKV, word_shape

SMALLEST_SCALE = 2.0**-60
LARGEST_ZERO = 2.0**11
"""Of a channel that is nearly constant over a group: its scale is no smaller than what gives this zero point."""
CLIPS = {8: (1.0,), 4: (1.0, 0.9, 0.8), 2: (1.0, 0.85, 0.7, 0.6, 0.5)}
"""Shares of the full range that are tried for each scale; the one with the least squared error is kept. With few levels
it pays to clip the extremes: 2 bits over the range of 128 normal numbers have 2.2 times the squared error of the best."""
HALF_RANGE = {8: 127.5, 4: 7.5, 2: 1.5}
CHUNK_ELEMENTS = 2**25


def pack(codes: Tensor, bits: int) -> Tensor:
    """Words `[..., L, W]` (int32) of the codes `[..., group_tokens, D]` (int32) of groups; see `QuantisedKV`."""
    group, head_dim = codes.shape[-2:]
    tokens, channels = word_shape(bits, head_dim)
    fields = codes.unflatten(-1, (channels, head_dim // channels)).unflatten(-3, (tokens, group // tokens))
    words = torch.zeros_like(fields[..., 0, :, 0, :])
    for r in range(tokens):
        for j in range(channels):
            words |= fields[..., r, :, j, :] << bits * (r * channels + j)
    return words


def unpack(words: Tensor, bits: int, head_dim: int) -> Tensor:
    """Codes `[..., group_tokens, D]` (int32) of words `[..., L, W]`: the inverse of `pack`."""
    tokens, channels = word_shape(bits, head_dim)
    by_field = [(words >> bits * field) & (2**bits - 1) for field in range(tokens * channels)]
    by_token = [torch.cat(by_field[r * channels : (r + 1) * channels], dim=-1) for r in range(tokens)]
    return torch.cat(by_token, dim=-2)


def naive_quantise(
    keys_BKSD: Tensor, values_BKSD: Tensor, *, key_bits: int, value_bits: int, group_tokens: int
) -> QuantisedKV:
    """See `quantise`; works through the groups in chunks, so that little memory is needed beside the store."""
    B, K, S, D = keys_BKSD.shape
    groups = S // group_tokens
    (key_r, key_c), (value_r, value_c) = word_shape(key_bits, D), word_shape(value_bits, D)

    def room(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(B, K, groups, *shape, dtype=dtype, device=keys_BKSD.device)

    store = QuantisedKV(
        key_codes=room(torch.int32, group_tokens // key_r, D // key_c),
        key_scales=room(torch.bfloat16, D, 2),
        value_codes=room(torch.int32, D // value_c, group_tokens // value_r),
        value_scales=room(torch.bfloat16, group_tokens // 2, 2),
        key_bits=key_bits,
        value_bits=value_bits,
        dtype=keys_BKSD.dtype,
    )
    step = max(1, CHUNK_ELEMENTS // (B * K * group_tokens * D))
    for first in range(0, groups, step):
        part = slice(first, min(first + step, groups))
        tokens = slice(part.start * group_tokens, part.stop * group_tokens)
        keys, values = (
            x[:, :, tokens].unflatten(2, (-1, group_tokens)).float() for x in (keys_BKSD, values_BKSD)
        )
        codes, scales = _quantise_keys(keys, key_bits)
        store.key_codes[:, :, part] = pack(codes, key_bits)
        store.key_scales[:, :, part] = scales
        codes, scales = _quantise_values(values, value_bits)
        store.value_codes[:, :, part] = pack(codes, value_bits).transpose(-1, -2)
        store.value_scales[:, :, part] = scales.unflatten(-1, (2, -1)).transpose(-1, -2)
    return store


def _quantise_keys(keys: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes `[..., tokens, D]` and `(scale, zero)` `[..., D, 2]` of keys `[..., tokens, D]`."""
    low, high = keys.amin(-2, keepdim=True), keys.amax(-2, keepdim=True)
    centre, half = (low + high) / 2, (high - low) / 2
    best: tuple[Tensor, Tensor] | None = None
    for clip in CLIPS[bits]:
        start = centre - clip * half
        floor = (start.abs() / LARGEST_ZERO).clamp(min=SMALLEST_SCALE)
        scale = torch.maximum(2 * clip * half / (2**bits - 1), floor).bfloat16()
        pair = torch.stack([scale, (start / scale).bfloat16()], dim=-1)
        error = (_keys(_key_codes(keys, pair, bits), pair) - keys).square().sum(-2, keepdim=True)
        best = (pair, error) if best is None else _better(best, (pair, error))
    assert best is not None
    pair = best[0]
    return _key_codes(keys, pair, bits).int(), pair.squeeze(-3)


def _key_codes(keys: Tensor, pair: Tensor, bits: int) -> Tensor:
    scale, zero = pair.float().unbind(-1)
    return (keys / scale - zero).round().clamp(0, 2**bits - 1)


def _keys(codes: Tensor, pair: Tensor) -> Tensor:
    scale, zero = pair.float().unbind(-1)
    return (codes + zero) * scale


def _quantise_values(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes `[..., tokens, D]` and scales `[..., tokens]` of values `[..., tokens, D]`."""
    highest = values.abs().amax(-1, keepdim=True)
    best: tuple[Tensor, Tensor] | None = None
    for clip in CLIPS[bits]:
        scale = (clip * highest / HALF_RANGE[bits]).clamp(min=SMALLEST_SCALE).bfloat16().unsqueeze(-1)
        made = (_value_codes(values, scale, bits) - CENTRE[bits]) * scale[..., 0]
        error = (made - values).square().sum(-1, keepdim=True)
        best = (scale, error) if best is None else _better(best, (scale, error))
    assert best is not None
    return _value_codes(values, best[0], bits).int(), best[0].flatten(-3)


def _value_codes(values: Tensor, scale: Tensor, bits: int) -> Tensor:
    return (values / scale.float()[..., 0] + CENTRE[bits]).round().clamp(0, 2**bits - 1)


def _better(best: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    less = other[1] < best[1]
    return torch.where(less.unsqueeze(-1), other[0], best[0]), torch.minimum(other[1], best[1])


def naive_dequantise(store: QuantisedKV) -> tuple[Tensor, Tensor]:
    """Keys and values `[B, K, S, D]` in float32."""
    codes = unpack(store.key_codes, store.key_bits, store.head_dim)
    keys = _keys(codes, store.key_scales.unsqueeze(-3))
    token_scale = store.value_scales.float().transpose(-1, -2).flatten(-2)
    codes = unpack(store.value_codes.transpose(-1, -2), store.value_bits, store.head_dim)
    values = (codes - CENTRE[store.value_bits]) * token_scale.unsqueeze(-1)
    return keys.flatten(2, 3), values.flatten(2, 3)


def naive_quantised_decode(
    q_BHTD: Tensor,
    store: QuantisedKV,
    recent_keys_BKWD: Tensor,
    recent_values_BKWD: Tensor,
    *,
    scale: float,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `quantised_decode`: the store in float32, one softmax over it and the recent window."""
    B, H, T, _ = q_BHTD.shape
    K, W = recent_keys_BKWD.shape[1:3]
    S = store.num_tokens
    device = q_BHTD.device
    held = torch.full((B, K), S, device=device) if lengths is None else lengths
    past_BKS = torch.arange(S, device=device) < held.unsqueeze(-1)
    past_keys, past_values = (torch.where(past_BKS.unsqueeze(-1), x, 0.0) for x in naive_dequantise(store))
    keys, values = (
        torch.cat([past, recent.float()], dim=2).repeat_interleave(H // K, dim=1)
        for past, recent in ((past_keys, recent_keys_BKWD), (past_values, recent_values_BKWD))
    )
    place_T = torch.arange(T, device=device)
    own_TW = torch.arange(W, device=device) <= (W - T + place_T).unsqueeze(-1)
    visible = torch.cat(
        [past_BKS.unsqueeze(2).expand(B, K, T, S), own_TW.expand(B, K, T, W)], dim=-1
    ).repeat_interleave(H // K, dim=1)
    logits = (q_BHTD.float() @ keys.transpose(-1, -2) * scale).masked_fill(~visible, float("-inf"))
    lse = logits.logsumexp(-1)
    out = (logits - lse.unsqueeze(-1)).exp() @ values
    return out.to(q_BHTD.dtype), lse
