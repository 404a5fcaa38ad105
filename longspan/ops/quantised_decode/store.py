"""A store of keys and values in 8, 4 or 2 bits: its layout, its checks and its growth."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

BITS = (8, 4, 2)
GROUPS = (32, 64, 128, 256)
WORD_BITS = 32
SMALLEST_WORDS = 16  # along channels: the depth of one step of the matrix units
CENTRE = {8: 128.0, 4: 8.0, 2: 1.5}
"""The code that stands for a value of 0, by bits; keys have a stored zero point instead."""


@dataclass(frozen=True, kw_only=True)
class QuantisedKV:
    """Keys and values of NG groups of `group_tokens` tokens each, S = NG * group_tokens.

    Keys have a scale and a zero point per channel and group (few channels are large, and they are so for every token);
    values have one scale per token. With codes x of `bits` bits:

        key = (x + zero[channel]) * scale[channel],    value = (x - CENTRE[bits]) * scale[token]

    A word of 32 bits holds R tokens x C channels, R * C = 32 / bits, see `word_shape`. With W = D / C words along the
    channels and L = group_tokens / R lines along the tokens, field r * C + j (from the lowest bits up) of the word in
    line n, place w is token r * L + n of the group, channel j * W + w. Everything of one group lies together and
    dimension 2 counts groups, so a store grows in a larger buffer by writing whole groups behind; tensors may be slices
    of such buffers along the first three dimensions.

    Args:
        key_codes: int32 `[B, K, NG, L, W]` with L and W of the key bits.
        key_scales: bfloat16 `[B, K, NG, D, 2]`: scale and zero point.
        value_codes: int32 `[B, K, NG, W, L]` with L and W of the value bits.
        value_scales: bfloat16 `[B, K, NG, group_tokens / 2, 2]`: of the tokens n and n + group_tokens / 2.
        key_bits, value_bits: 8, 4 or 2.
        dtype: what `dequantise` returns.
    """

    key_codes: Tensor
    key_scales: Tensor
    value_codes: Tensor
    value_scales: Tensor
    key_bits: int
    value_bits: int
    dtype: torch.dtype

    @property
    def head_dim(self) -> int:
        """D, channels of a head."""
        return self.key_scales.shape[3]

    @property
    def group_tokens(self) -> int:
        """Tokens that share the scales of their keys."""
        return 2 * self.value_scales.shape[3]

    @property
    def num_tokens(self) -> int:
        """S, a multiple of `group_tokens`."""
        return self.key_codes.shape[2] * self.group_tokens

    @property
    def num_bytes(self) -> int:
        """Bytes of codes and scales."""
        return sum(x.numel() * x.element_size() for x in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """The four tensors by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: x for name, x in found.items() if isinstance(x, Tensor)}


@cache
def word_shape(bits: int, head_dim: int) -> tuple[int, int]:
    """`(R, C)`: tokens and channels of a word. Channels first, as long as 16 words or more remain along them."""
    channels = 1
    while (
        channels < WORD_BITS // bits
        and head_dim % (2 * channels) == 0
        and head_dim // (2 * channels) >= SMALLEST_WORDS
    ):
        channels *= 2
    return WORD_BITS // bits // channels, channels


def append(store: QuantisedKV, more: QuantisedKV) -> QuantisedKV:
    """A new store with the groups of `more` behind those of `store`.

    Raises:
        ValueError: they differ in bits, group_tokens, batch, heads or head_dim.
    """
    if (store.key_bits, store.value_bits) != (more.key_bits, more.value_bits):
        raise ValueError(
            f"got bits {store.key_bits}/{store.value_bits} and {more.key_bits}/{more.value_bits} (keys/values); "
            "both stores must have the same"
        )
    ours, theirs = store.tensors(), more.tensors()
    for name, x in ours.items():
        y = theirs[name]
        if x.shape[:2] != y.shape[:2] or x.shape[3:] != y.shape[3:]:
            raise ValueError(
                f"got {name} {list(x.shape)} and {list(y.shape)}; all but dimension 2 (groups) must be equal"
            )
    joined: dict[str, Any] = {name: torch.cat([x, theirs[name]], dim=2) for name, x in ours.items()}
    return replace(store, **joined)


def check_quantise(
    keys_BKSD: Tensor, values_BKSD: Tensor, *, key_bits: int, value_bits: int, group_tokens: int
) -> None:
    """Raise ValueError, in one sentence, when these cannot be quantised."""
    shapes = f"keys {list(keys_BKSD.shape)}, values {list(values_BKSD.shape)}"
    if keys_BKSD.dim() != 4 or keys_BKSD.shape != values_BKSD.shape:
        raise ValueError(f"got {shapes}; allowed are keys and values of one shape [B, K, S, D]")
    if keys_BKSD.device != values_BKSD.device or keys_BKSD.dtype != values_BKSD.dtype:
        raise ValueError(
            f"got keys of {keys_BKSD.dtype} on {keys_BKSD.device} and values of {values_BKSD.dtype} on "
            f"{values_BKSD.device}; both must be of one dtype on one device"
        )
    if not keys_BKSD.is_floating_point():
        raise ValueError(f"got keys of {keys_BKSD.dtype}; allowed are floating point types")
    for name, bits in (("key_bits", key_bits), ("value_bits", value_bits)):
        if bits not in BITS:
            raise ValueError(f"got {name}={bits}; allowed are 8, 4 and 2")
    if group_tokens not in GROUPS:
        raise ValueError(f"got group_tokens={group_tokens}; allowed are 32, 64, 128 and 256")
    if keys_BKSD.shape[2] % group_tokens:
        raise ValueError(
            f"got {keys_BKSD.shape[2]} tokens; allowed is a multiple of group_tokens={group_tokens}: keep the rest in "
            "full precision as the recent window"
        )


def check_decode(
    q_BHTD: Tensor, store: QuantisedKV, recent_keys: Tensor, recent_values: Tensor, lengths: Tensor | None
) -> None:
    """Raise ValueError, in one sentence, when shapes, types or devices do not fit; values of tensors are not looked at."""
    shapes = f"q {list(q_BHTD.shape)}, recent keys {list(recent_keys.shape)}, recent values {list(recent_values.shape)}"
    if {q_BHTD.dim(), recent_keys.dim()} != {4} or recent_keys.shape != recent_values.shape:
        raise ValueError(f"got {shapes}; allowed are q [B, H, T, D] and recent keys and values [B, K, W, D]")
    B, H, T, D = q_BHTD.shape
    K, W = recent_keys.shape[1:3]
    if recent_keys.shape[0] != B or recent_keys.shape[3] != D or K == 0 or H % K or not 1 <= T <= min(16, W):
        raise ValueError(
            f"got {shapes}; B and D must be equal, H a multiple of K, T from 1 to 16 and W at least T (the last T recent "
            "tokens are the queries' own)"
        )
    held = (store.key_scales.shape[0], store.key_scales.shape[1], store.head_dim)
    if held != (B, K, D):
        raise ValueError(f"got a store with B, K, D = {held} and {shapes}; the three must be equal")
    tensors = {"recent keys": recent_keys, "recent values": recent_values, **store.tensors()}
    if lengths is not None:
        tensors["lengths"] = lengths
        if lengths.shape != (B, K) or lengths.dtype != torch.int32:
            raise ValueError(
                f"got lengths {list(lengths.shape)} of {lengths.dtype}; allowed is int32 [{B}, {K}]: quantised tokens of "
                "each head in whole groups"
            )
    for name, x in tensors.items():
        if x.device != q_BHTD.device:
            raise ValueError(f"got {name} on {x.device} and q on {q_BHTD.device}; all must be on one device")
        if name.startswith("recent") and x.dtype != q_BHTD.dtype:
            raise ValueError(f"got {name} of {x.dtype}; allowed is the dtype of q, {q_BHTD.dtype}")
    if lengths is not None and not lengths.is_cuda and bool((lengths % store.group_tokens).any()):
        raise ValueError(
            f"got lengths that are not multiples of group_tokens={store.group_tokens}; round them down"
        )
