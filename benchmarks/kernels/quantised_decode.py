"""Decoding of one query over a past in 8, 4 or 2 bits, against cuDNN over the same tokens in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.baselines import CUDNN, cudnn_decode, random_qkv
from benchmarks.kernels.harness import Case, relative_error
from longspan.ops.quantised_decode import QuantisedKV, quantise, quantised_decode

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
SCALE = HEAD_DIM**-0.5
GROUP_TOKENS = 128
RECENT_TOKENS = 128
BITS = {"int8": (8, 8), "int4": (4, 4), "k4v2": (4, 2), "int2": (2, 2)}
OUTLIERS = slice(
    5, None, 32
)  # these channels of the keys are shifted by OUTLIER, as those of real models are
OUTLIER = 8.0
CACHE_BYTES = 200e6  # more than the GPU's cache: rotated inputs of this size are never found there
CHECKED_TOKENS = 32 * 1024  # the float32 twin unpacks a whole store: this much of it is compared
TOLERANCE = 5e-3

QKV = tuple[Tensor, Tensor, Tensor]
Given = tuple[Tensor, QuantisedKV, Tensor, Tensor]


def cases(quick: bool) -> Iterator[Case]:
    for kilo in (32,) if quick else (32, 128, 512, 1024):
        for name in BITS:
            yield quantised_case(name, kilo * 1024)


def quantised_case(name: str, tokens: int) -> Case:
    """All but the last RECENT_TOKENS of `tokens` are quantised."""
    key_bits, value_bits = BITS[name]
    full_bytes = 4.0 * KV_HEADS * tokens * HEAD_DIM
    count = max(1, -(-int(CACHE_BYTES * 16) // int(full_bytes * (key_bits + value_bits) / 2)))
    sets = [random_qkv(1, tokens, seed=i) for i in range(count)]
    for _, keys, _ in sets:
        keys[..., OUTLIERS] += OUTLIER
    given = [_given(*qkv, key_bits, value_bits) for qkv in sets]

    read = _num_bytes(given[0])
    facts: dict[str, Any] = {
        "backend": "triton",
        "key_bits": key_bits,
        "value_bits": value_bits,
        "bytes_ratio": round(full_bytes / read, 3),
    }

    def error() -> float:
        q, store, *recent = given[0]
        facts["error_of_full_precision"] = float(f"{_error_of_quantising(sets[0], *given[0]):.2e}")
        part = _first_groups(store, CHECKED_TOKENS // GROUP_TOKENS)
        call = partial(quantised_decode, q, part, *recent, scale=SCALE)
        (out, lse), (want, want_lse) = call(backend="triton"), call(backend="naive")
        return max(relative_error(out, want), relative_error(lse, want_lse))

    return Case(
        op="quantised_decode",
        case=name,
        tokens=tokens,
        density=None,
        error=error,
        tolerance=TOLERANCE,
        ours=[partial(quantised_decode, *each, scale=SCALE, backend="triton") for each in given],
        baseline=[partial(cudnn_decode, *qkv) for qkv in sets],
        baseline_name=f"{CUDNN}, bfloat16",
        flops=4.0 * HEADS * tokens * HEAD_DIM,
        num_bytes=read,
        graph=True,
        facts=facts,
    )


def _given(q: Tensor, keys: Tensor, values: Tensor, key_bits: int, value_bits: int) -> Given:
    past, recent = (
        [x[:, :, :-RECENT_TOKENS] for x in (keys, values)],
        [x[:, :, -RECENT_TOKENS:] for x in (keys, values)],
    )
    store = quantise(*past, key_bits=key_bits, value_bits=value_bits, group_tokens=GROUP_TOKENS)
    return q, store, recent[0], recent[1]


def _first_groups(store: QuantisedKV, groups: int) -> QuantisedKV:
    parts: dict[str, Any] = {name: x[:, :, :groups] for name, x in store.tensors().items()}
    return replace(store, **parts)


def _num_bytes(given: Given) -> float:
    q, store, *recent = given
    return float(store.num_bytes + sum(x.numel() * x.element_size() for x in (q, q, *recent)))


def _error_of_quantising(qkv: QKV, q: Tensor, store: QuantisedKV, keys: Tensor, values: Tensor) -> float:
    """Relative error of the output against attention over the keys and values as they were, on the checked part."""
    past = CHECKED_TOKENS - RECENT_TOKENS
    part = _first_groups(store, past // GROUP_TOKENS)
    out, _ = quantised_decode(q, part, keys, values, scale=SCALE, backend="naive")
    full = [
        torch.cat([x[:, :, :past], y], dim=2).float() for x, y in zip(qkv[1:], (keys, values), strict=True)
    ]
    exact = torch.nn.functional.scaled_dot_product_attention(q.float(), *full, enable_gqa=True)
    return relative_error(out, exact)
