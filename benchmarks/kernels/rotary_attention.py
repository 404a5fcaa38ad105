"""Keys rotated inside attention (self-extend's two bands) against cuDNN over keys that were rotated before."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels.baselines import CUDNN, cudnn_decode, random_qkv
from benchmarks.kernels.harness import Case, relative_error
from longspan.ops.attend import Rotary
from longspan.ops.rotary_attention import naive_rotary_attention, rotary_attention
from longspan.visit import Band

WINDOW, GROUP, HEAD_DIM = 1024, 8, 128


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
                    error=lambda q=q, k=k, v=v, given=given: _error(q, k, v, given),
                    tolerance=2e-2,
                    ours=[lambda q=q, k=k, v=v, given=given: rotary_attention(q, k, v, **given)],
                    baseline=[lambda q=q, k=k, v=v: cudnn_decode(q, k, v)],
                    baseline_name=f"{CUDNN}, keys rotated before, no mask",
                    flops=4 * HEAD_DIM * 32 * T * (tokens - T / 2),
                    num_bytes=k.nbytes + v.nbytes,
                    graph=T == 1,
                )


def self_extend() -> tuple[Band, ...]:
    near = Band(low=lambda p: p - WINDOW + 1, high=lambda p: p + 1, query=lambda p: p, key=lambda k: k)
    far = Band(
        low=torch.zeros_like,
        high=lambda p: p - WINDOW + 1,
        query=lambda p: p // GROUP + WINDOW - WINDOW // GROUP,
        key=lambda k: k // GROUP,
    )
    return near, far


def _error(q: Tensor, k: Tensor, v: Tensor, given: dict) -> float:
    """The last 64 queries of the first kv head's group."""
    out, _ = rotary_attention(q, k, v, **given)
    cut = (slice(None), slice(0, 4), slice(-64, None))
    wanted, _ = naive_rotary_attention(q[cut].float(), k[:, :1].float(), v[:, :1].float(), **given)
    return relative_error(out[cut].float(), wanted)
