"""Choosing pages for one query: scores and top k alone, and with attention over 2,048 chosen tokens against dense."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels.baselines import CUDNN, cudnn_decode, random_qkv
from benchmarks.kernels.harness import Case, relative_error
from longspan.ops.backend import Choice, watch_backends
from longspan.ops.decode.paged import page_decode
from longspan.ops.estimate.pages import minmax_pages, naive_page_scores, page_scores
from longspan.ops.estimate.select import select_pages, top_k

KV_HEADS, GROUP, HEAD_DIM = 8, 4, 128
BUDGET_TOKENS = 2048
OUT_OF_CACHE = 200e6  # bytes of all buffer sets together: above the cache of the GPU
ALWAYS = {"always_first": 1, "always_last": 1}
SCALE = HEAD_DIM**-0.5


def cases(quick: bool) -> Iterator[Case]:
    """Alone: scores, top k. Then whole steps from 8K to 1M tokens, with pages of 16, 32 and 64."""
    for num_pages in (2048,) if quick else (2048, 16384, 65536):
        yield _scores(num_pages)
    for row, k in ((16384, 32),) if quick else ((2048, 32), (16384, 32), (65536, 128), (2**20, 2048)):
        yield _top_k(row, k)
    for tokens in (2**17,) if quick else (2**13, 2**15, 2**17, 2**19, 2**20):
        one = 4 * KV_HEADS * tokens * HEAD_DIM
        sets = [random_qkv(1, tokens, seed=i) for i in range(math.ceil(OUT_OF_CACHE / one))]
        for page_tokens in (64,) if quick else (16, 32, 64):
            yield _step(sets, tokens, page_tokens)


def _scores(num_pages: int) -> Case:
    one = 4 * KV_HEADS * num_pages * HEAD_DIM
    sets = []
    for i in range(math.ceil(OUT_OF_CACHE / one)):
        q, a, b = random_qkv(1, num_pages, seed=i)
        sets.append((q, torch.minimum(a, b), torch.maximum(a, b)))

    def ours(q: Tensor, lows: Tensor, highs: Tensor) -> Tensor:
        return page_scores(q, (lows, highs), kind="minmax")

    def plain(q: Tensor, lows: Tensor, highs: Tensor) -> Tensor:
        query = q.view(1, KV_HEADS, GROUP, HEAD_DIM)
        scores = query.clamp(min=0) @ highs.transpose(-1, -2) + query.clamp(max=0) @ lows.transpose(-1, -2)
        return scores.amax(2)

    def error() -> float:
        q, lows, highs = sets[0]
        naive = naive_page_scores(q, lows, highs, scale=1.0, reduce="max", per_head=False, lengths=None)
        return relative_error(ours(*sets[0]), naive)

    return Case(
        op="page_scores",
        case="minmax, 1 query",
        tokens=num_pages,
        error=error,
        tolerance=1e-3,
        ours=[lambda x=x: ours(*x) for x in sets],
        baseline=[lambda x=x: plain(*x) for x in sets],
        baseline_name="torch.matmul, amax",
        num_bytes=one,
        graph=True,
        facts={"pages": num_pages},
    )


def _top_k(row: int, k: int) -> Case:
    generator = torch.Generator("cuda").manual_seed(0)
    scores = torch.randn(1, KV_HEADS, row, device="cuda", generator=generator)

    def error() -> float:
        index = top_k(scores, k)
        values = scores.gather(-1, index.long()).sort(dim=-1, descending=True).values
        ascending = bool((index.diff(dim=-1) > 0).all())
        return relative_error(values, scores.topk(k).values) if ascending else float("inf")

    return Case(
        op="top_k",
        case=f"{KV_HEADS} rows, k {k}",
        tokens=row,
        error=error,
        tolerance=0.0,
        ours=[lambda: top_k(scores, k)],
        baseline=[lambda: scores.topk(k)],
        baseline_name="torch.topk",
        num_bytes=scores.nbytes,
        graph=True,
    )


def _step(sets: list[tuple[Tensor, Tensor, Tensor]], tokens: int, page_tokens: int) -> Case:
    k = BUDGET_TOKENS // page_tokens
    paged = [(*qkv, minmax_pages(qkv[1], page_tokens)) for qkv in sets]

    def ours(q: Tensor, keys: Tensor, values: Tensor, pages: tuple[Tensor, Tensor]) -> Tensor:
        options = {"keep_tokens": BUDGET_TOKENS, "page_tokens": page_tokens, "kind": "minmax", **ALWAYS}
        return page_decode(q, keys, values, pages, scale=SCALE, **options)[0]

    with watch_backends() as seen:
        ours(*paged[0])
    dense = any(choice == Choice("page_decode", "dense") for choice in seen)

    def error() -> float:
        q, keys, values, pages = paged[0]
        if dense:
            every = torch.arange(tokens // page_tokens, device="cuda").expand(1, KV_HEADS, -1)
            return relative_error(ours(*paged[0]), _attend(q, keys, values, every, page_tokens))
        index = select_pages(q, pages, k, kind="minmax", **ALWAYS)
        exact = _attend(q, keys, values, index, page_tokens)
        naive = naive_page_scores(q, *pages, scale=1.0, reduce="max", per_head=False, lengths=None)
        naive[..., 0] = naive[..., -1] = 0  # chosen in any case
        best = naive[..., 1:-1].topk(k - 2).values.sum()
        regret = float(best - naive.gather(-1, index.long()).sum()) / float(best)
        return max(relative_error(ours(*paged[0]), exact), regret)

    page_bytes = sum(x.nbytes for x in paged[0][3])
    return Case(
        op="select_and_decode",
        case=f"{BUDGET_TOKENS} tokens, minmax pages of {page_tokens}",
        tokens=tokens,
        density=1.0 if dense else BUDGET_TOKENS / tokens,
        error=error,
        tolerance=1e-2,
        ours=[lambda x=x: ours(*x) for x in paged],
        baseline=[lambda x=x: cudnn_decode(*x) for x in sets],
        baseline_name=CUDNN,
        num_bytes=4 * KV_HEADS * HEAD_DIM * (tokens if dense else BUDGET_TOKENS)
        + (0 if dense else page_bytes),
        graph=True,
        facts={
            "page_tokens": page_tokens,
            "page_bytes": page_bytes,
            "visits": "everything" if dense else "pages",
        },
    )


def _attend(q: Tensor, keys: Tensor, values: Tensor, index: Tensor, page_tokens: int) -> Tensor:
    """float32 attention of one query over the tokens of chosen pages and the last key."""
    past = keys.shape[2] - 1
    places = (index.long()[..., None] * page_tokens + torch.arange(page_tokens, device=q.device)).flatten(2)
    places = torch.where((places >= 0) & (places < past), places, -1)
    places = torch.nn.functional.pad(places, (0, 1), value=past)
    at = places.clamp(min=0)[..., None].expand(-1, -1, -1, HEAD_DIM)
    chosen_keys, chosen_values = keys.gather(2, at).float(), values.gather(2, at).float()
    query = q.float().view(1, KV_HEADS, GROUP, HEAD_DIM)
    logits = (query @ chosen_keys.transpose(-1, -2) * SCALE).masked_fill(places[:, :, None] < 0, -torch.inf)
    return (logits.softmax(-1) @ chosen_values).view_as(q)
