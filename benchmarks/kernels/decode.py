"""Decoding: a dense store, heads of unequal length, pages, chosen tokens and pages, and several queries with a tree.

The baseline is always cuDNN over a dense store: of the same length, or of the mean length where heads are unequal. Where
only chosen tokens are read, the time without choosing them is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.baselines import CUDNN, cudnn_decode, random_qkv
from benchmarks.kernels.harness import Case, relative_error
from longspan.ops.decode import Ragged, gather_decode, ragged_decode

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
SCALE = HEAD_DIM**-0.5
LENGTHS = (0.1, 3.0, 0.3, 0.9, 1.8, 0.2, 1.2, 0.5)  # of the mean, by kv head
KEPT_TOKENS = 2048
CACHE_BYTES = 200e6  # more than the GPU's cache: rotated inputs of this size are never found there
TOLERANCE = 5e-3

Pair = tuple[Tensor, Tensor]
QKV = tuple[Tensor, Tensor, Tensor]


def cases(quick: bool) -> Iterator[Case]:
    for kilo in (8, 128) if quick else (8, 32, 128, 512, 1024):
        yield dense_case(kilo * 1024)
    for kilo in (32,) if quick else (32, 128):
        yield from uneven_cases(kilo * 1024)
    for kilo in (128,) if quick else (8, 128, 1024):
        yield from chosen_cases(kilo * 1024)
    for num_queries in (16,) if quick else (8, 16):
        yield tree_case(128 * 1024, num_queries)


def dense_case(tokens: int) -> Case:
    sets = _sets(1, tokens)
    stores = [_store(k, v, [tokens] * KV_HEADS) for _, k, v in sets]
    return _ragged("dense", tokens, sets, stores)


def uneven_cases(tokens: int) -> Iterator[Case]:
    """Lengths from 0.1 to 3 times the mean, as one pool of rows, in pages, and in a buffer of the greatest length."""
    lengths = [round(part * tokens) for part in LENGTHS]
    sets = _sets(1, tokens)
    ends = torch.tensor(lengths).cumsum(0)
    starts = (ends - torch.tensor(lengths)).view(1, -1).cuda()
    pools = [
        _store(
            k.view(-1, HEAD_DIM)[: sum(lengths)], v.view(-1, HEAD_DIM)[: sum(lengths)], lengths, starts=starts
        )
        for _, k, v in sets
    ]
    yield _ragged("uneven, pool", tokens, sets, pools)
    for page_tokens in (64, 16):
        even = [tokens] * KV_HEADS
        for name, held in (("even", even), ("uneven", lengths)):
            paged = [_paged(k, v, held, page_tokens) for _, k, v in sets]
            yield _ragged(f"{name}, pages of {page_tokens}", tokens, sets, paged)
    wide = [_store(k, v, lengths) for _, k, v in _sets(1, max(lengths), least=1)]
    yield _ragged("uneven, buffers", tokens, sets[:1], wide)


def chosen_cases(tokens: int) -> Iterator[Case]:
    sets = _sets(1, tokens)
    for page_tokens in (1, 64):
        entries = tokens // page_tokens
        draws = []
        for i in range(max(24, len(sets))):
            generator = torch.Generator("cuda").manual_seed(i)
            draw = torch.rand(1, KV_HEADS, entries - 1, device="cuda", generator=generator)
            draws.append(draw.topk(KEPT_TOKENS // page_tokens, dim=-1).indices.int())
        calls = [
            partial(
                gather_decode,
                *sets[i % len(sets)],
                index,
                scale=SCALE,
                page_tokens=page_tokens,
                backend="triton",
            )
            for i, index in enumerate(draws)
        ]
        yield _case(
            f"chosen, pages of {page_tokens}" if page_tokens > 1 else "chosen tokens",
            tokens,
            calls,
            partial(gather_decode, *sets[0], draws[0], scale=SCALE, page_tokens=page_tokens, backend="naive"),
            sets,
            read_tokens=(KEPT_TOKENS + 1) * KV_HEADS,
            facts=_facts(1, page_tokens),
        )


def tree_case(tokens: int, num_queries: int) -> Case:
    """Every token of a tree sees its ancestors: parent of u is (u - 1) // 2."""
    sets = _sets(num_queries, tokens)
    tree = torch.eye(num_queries, dtype=torch.bool)
    for u in range(1, num_queries):
        tree[u] |= tree[(u - 1) // 2]
    stores = [_store(k, v, [tokens] * KV_HEADS) for _, k, v in sets]
    return _ragged(f"{num_queries} queries in a tree", tokens, sets, stores, tree_mask=tree[None].cuda())


def _sets(num_queries: int, tokens: int, *, least: int = 2) -> list[QKV]:
    num_bytes = 4 * KV_HEADS * tokens * HEAD_DIM
    count = max(least if num_bytes < 1e9 else 1, -(-int(CACHE_BYTES) // num_bytes))
    return [random_qkv(num_queries, tokens, seed=i) for i in range(count)]


def _store(keys: Tensor, values: Tensor, lengths: list[int], **more: Tensor) -> Ragged:
    held = torch.tensor([lengths], dtype=torch.int32, device="cuda")
    return Ragged(keys=keys, values=values, lengths=held, **more)


def _paged(k: Tensor, v: Tensor, lengths: list[int], page_tokens: int) -> Ragged:
    """The memory of a dense store read as pages, in random order."""
    pages = [x.view(-1, page_tokens, HEAD_DIM) for x in (k, v)]
    order = torch.randperm(
        len(pages[0]), device="cuda", generator=torch.Generator("cuda").manual_seed(0)
    ).int()
    used = [-(-n // page_tokens) for n in lengths]
    table = torch.full((1, KV_HEADS, max(used)), -1, dtype=torch.int32, device="cuda")
    at = 0
    for head, count in enumerate(
        used
    ):  # heads whose length is no multiple of a page share the last pages of all
        table[0, head, :count] = order[torch.arange(at, at + count, device="cuda") % len(order)]
        at += count
    return _store(pages[0], pages[1], lengths, page_table=table)


def _ragged(
    name: str, tokens: int, sets: list[QKV], stores: list[Ragged], *, tree_mask: Tensor | None = None
) -> Case:
    run = [
        partial(ragged_decode, q, store, scale=SCALE, tree_mask=tree_mask)
        for (q, _, _), store in zip(sets, stores, strict=True)
    ]
    table = stores[0].page_table
    return _case(
        name,
        tokens,
        [partial(call, backend="triton") for call in run],
        partial(run[0], backend="naive"),
        sets,
        read_tokens=int(stores[0].lengths.sum()),
        facts=_facts(sets[0][0].shape[2], None if table is None else stores[0].keys.shape[1]),
    )


def _case(
    name: str,
    tokens: int,
    calls: list[Callable[[], Pair]],
    reference: Callable[[], Pair],
    sets: list[QKV],
    *,
    read_tokens: int,
    facts: dict[str, Any],
) -> Case:
    def error() -> float:
        (out, lse), (want, want_lse) = calls[0](), reference()
        return max(relative_error(out, want), relative_error(lse, want_lse))

    num_queries = sets[0][0].shape[2]
    return Case(
        op="decode",
        case=name,
        tokens=tokens,
        density=read_tokens / (KV_HEADS * tokens),
        error=error,
        tolerance=TOLERANCE,
        ours=calls,
        baseline=[partial(cudnn_decode, *qkv) for qkv in sets],
        baseline_name=f"{CUDNN}, dense",
        flops=4.0 * num_queries * (HEADS // KV_HEADS) * read_tokens * HEAD_DIM,
        num_bytes=4.0 * read_tokens * HEAD_DIM + 4.0 * HEADS * num_queries * HEAD_DIM,
        graph=True,
        facts={"backend": "triton", **facts},
    )


def _facts(num_queries: int, page_tokens: int | None) -> dict[str, Any]:
    from longspan.ops.decode.triton import config_for

    return asdict(config_for(num_queries * HEADS // KV_HEADS, HEAD_DIM, 2, page_tokens))
