"""Keys rotated inside attention (self-extend's two bands) against cuDNN over keys that were rotated before.

A decode call makes its maps of positions, as a graph that is captured must; so do 32 layers together, for all of them. When
reading, maps that are kept from one call to the next are not counted: a model makes them once a chunk for all layers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels.baselines import CUDNN, cudnn_decode, random_qkv
from benchmarks.kernels.harness import Case, relative_error
from longspan.ops.attend import Rotary
from longspan.ops.rotary_attention import naive_rotary_attention, rotary_attention
from longspan.ops.rotary_attention.tables import build_tables
from longspan.ops.rotary_attention.triton import triton_rotary_attention
from longspan.visit import Band

WINDOW, GROUP, HEAD_DIM, LAYERS = 1024, 8, 128, 32


def cases(quick: bool) -> Iterator[Case]:
    inv_freq = 1 / 500000 ** (torch.arange(0, HEAD_DIM, 2, device="cuda").float() / HEAD_DIM)
    for name, bands in (("own positions", ()), ("self-extend", self_extend())):
        given = {
            "rotary": Rotary(inv_freq=inv_freq, scaling=1.0, bands=bands),
            "first": 0,
            "scale": HEAD_DIM**-0.5,
        }
        for T, sizes in ((4096, (32768, 131072)), (1, (8192, 131072, 524288))):
            for tokens in sizes[:1] if quick else sizes:
                q, k, v = random_qkv(T, tokens)
                yield Case(
                    op="rotary_attention",
                    case=f"{name}, {'decode' if T == 1 else f'chunk of {T}'}",
                    tokens=tokens,
                    error=lambda q=q, k=k, v=v, given=given: _error(
                        rotary_attention(q, k, v, **given)[0], q, k, v, given
                    ),
                    tolerance=2e-2,
                    ours=[lambda q=q, k=k, v=v, given=given: rotary_attention(q, k, v, **given)],
                    baseline=[lambda q=q, k=k, v=v: cudnn_decode(q, k, v)],
                    baseline_name=f"{CUDNN}, keys rotated before, no mask",
                    flops=4 * HEAD_DIM * 32 * T * (tokens - T / 2),
                    num_bytes=k.nbytes + v.nbytes,
                    graph=T == 1,
                )
        for tokens in (8192,) if quick else (8192, 131072):
            yield _layers_case(name, given, tokens)


def _layers_case(name: str, given: dict, tokens: int) -> Case:
    stores = [random_qkv(1, tokens, seed=seed) for seed in range(4)]  # more than a cache holds
    layers = [stores[i % len(stores)] for i in range(LAYERS)]
    return Case(
        op="rotary_attention",
        case=f"{name}, decode, maps shared by {LAYERS} layers",
        tokens=tokens,
        error=lambda: _error(_attend_layers(layers, given)[0], *stores[0], given),
        tolerance=2e-2,
        ours=[lambda: _attend_layers(layers, given)],
        baseline=[lambda: [cudnn_decode(*layer) for layer in layers]],
        baseline_name=f"{CUDNN}, keys rotated before, no mask",
        flops=LAYERS * 4 * HEAD_DIM * 32 * (tokens - 1 / 2),
        num_bytes=sum(k.nbytes + v.nbytes for _, k, v in layers),
        graph=True,
    )


def _attend_layers(layers: list[tuple[Tensor, Tensor, Tensor]], given: dict) -> list[Tensor]:
    q, k, _ = layers[0]
    stop = given["first"] + k.shape[2]
    tables = build_tables(given["rotary"], begin=stop - 1, stop=stop, dtype=q.dtype, device=q.device)
    return [triton_rotary_attention(*layer, **given, tables=tables)[0] for layer in layers]


def self_extend() -> tuple[Band, ...]:
    near = Band(low=lambda p: p - WINDOW + 1, high=lambda p: p + 1, query=lambda p: p, key=lambda k: k)
    far = Band(
        low=torch.zeros_like,
        high=lambda p: p - WINDOW + 1,
        query=lambda p: p // GROUP + WINDOW - WINDOW // GROUP,
        key=lambda k: k // GROUP,
    )
    return near, far


def _error(out: Tensor, q: Tensor, k: Tensor, v: Tensor, given: dict) -> float:
    """Of the last 64 queries of the first kv head's group."""
    cut = (slice(None), slice(0, 4), slice(-64, None))
    wanted, _ = naive_rotary_attention(q[cut].float(), k[:, :1].float(), v[:, :1].float(), **given)
    return relative_error(out[cut].float(), wanted)
