"""Decoding over quantised keys and values: 1 to 16 queries over a past in 8, 4 or 2 bits and a recent window in full.

Keys are quantised per channel in groups of tokens, with scale and zero point, because the outliers of keys stand in a
few channels for all tokens; values per token, symmetric. With groups of 128 tokens and 128 channels a key takes bits +
0.25 and a value bits + 0.125: 8 bits are 1.95 times fewer bytes than bfloat16, 4 bits 3.82 times, keys in 4 and values in
2 bits 5.02 times, 2 bits 7.3 times. The codes are turned into numbers in registers; the scales never touch them there:
those of keys are folded into the queries, those of values into the softmax.
"""

from __future__ import annotations

from torch import Tensor

from longspan.ops.backend import choose, triton_reason
from longspan.ops.quantised_decode.naive import naive_dequantise, naive_quantise, naive_quantised_decode
from longspan.ops.quantised_decode.store import (
    SMALLEST_WORDS,
    QuantisedKV,
    append,
    check_decode,
    check_quantise,
    word_shape,
)

__all__ = [
    "QuantisedKV",
    "append",
    "dequantise",
    "kernel_reason",
    "quantise",
    "quantised_decode",
    "served_quantised_decode",
]


def quantise(
    keys_BKSD: Tensor,
    values_BKSD: Tensor,
    *,
    key_bits: int,
    value_bits: int,
    group_tokens: int = 128,
    backend: str | None = None,
) -> QuantisedKV:
    """Quantise whole groups of tokens.

    Args:
        keys_BKSD, values_BKSD: of one floating point dtype, any strides, finite.
        key_bits, value_bits: 8, 4 or 2.
        group_tokens: tokens that share a scale and a zero point per key channel, 32, 64, 128 or 256; S is a multiple of
            it. Each doubling halves the 32 / group_tokens bits an element that these take.
        backend: "naive" or None.

    Raises:
        ValueError: shapes, dtypes, bits or sizes outside these; nothing was launched.
    """
    check_quantise(
        keys_BKSD, values_BKSD, key_bits=key_bits, value_bits=value_bits, group_tokens=group_tokens
    )
    choose("quantise", {"naive": None}, backend)
    return naive_quantise(
        keys_BKSD, values_BKSD, key_bits=key_bits, value_bits=value_bits, group_tokens=group_tokens
    )


def dequantise(store: QuantisedKV) -> tuple[Tensor, Tensor]:
    """Keys and values `[B, K, S, D]` in `store.dtype`."""
    keys, values = naive_dequantise(store)
    return keys.to(store.dtype), values.to(store.dtype)


def quantised_decode(
    q_BHTD: Tensor,
    store: QuantisedKV,
    recent_keys_BKWD: Tensor,
    recent_values_BKWD: Tensor,
    *,
    scale: float,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of 1 to 16 queries over the quantised past and a recent window in full precision.

    Args:
        q_BHTD: float32, float16 or bfloat16, T from 1 to 16, H a multiple of K.
        store: the past, before the window; all T queries see all of it.
        recent_keys_BKWD, recent_values_BKWD: dtype of q, W >= T tokens; the last T are the queries' own, query t sees the
            window up to and with own token t.
        scale: of the logits, such as D ** -0.5.
        lengths: int32 `[B, K]`, quantised tokens of each head that are visited, whole groups, at most
            `store.num_tokens`; None for all. On CUDA values are not checked: they are rounded down to whole groups and
            clamped.
        backend: "triton", "naive" or None.

    float16 and bfloat16 queries are multiplied in float16, which holds every code exactly; queries, key scales and their
    products must then stay below 65504. Stores are read 8 or 16 rows (queries times heads of a kv head) at a time: 64 rows
    cost nearly four times as much as 16.

    Returns:
        out `[B, H, T, D]` in q's dtype and the natural log-sum-exp `[B, H, T]` in float32.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; nothing was launched.
    """
    check_decode(q_BHTD, store, recent_keys_BKWD, recent_values_BKWD, lengths)
    reason = kernel_reason(q_BHTD, store, recent_keys_BKWD, recent_values_BKWD, forced=backend == "triton")
    chosen = choose("quantised_decode", {"triton": reason, "naive": None}, backend)
    if chosen == "triton":
        from longspan.ops.quantised_decode.triton import triton_quantised_decode

        return triton_quantised_decode(
            q_BHTD, store, recent_keys_BKWD, recent_values_BKWD, scale=scale, lengths=lengths
        )
    return naive_quantised_decode(
        q_BHTD, store, recent_keys_BKWD, recent_values_BKWD, scale=scale, lengths=lengths
    )


def kernel_reason(q_BHTD: Tensor, store: QuantisedKV, *recent: Tensor, forced: bool = False) -> str | None:
    """Why the kernel cannot serve these, None when it can; `forced` as in `triton_reason`. Of a store it takes lines of tokens,
    and words of channels, 16 at a time."""
    reason = triton_reason(q_BHTD, *recent, forced=forced)
    if reason is not None:
        return reason
    for bits in (store.key_bits, store.value_bits):
        tokens, channels = word_shape(bits, store.head_dim)
        if store.head_dim // channels < SMALLEST_WORDS or store.group_tokens // tokens < SMALLEST_WORDS:
            return (
                f"{bits} bits of head_dim {store.head_dim} need a group_tokens of {SMALLEST_WORDS * tokens} or more, and "
                f"a head_dim of {SMALLEST_WORDS} or more"
            )
    return None
