"""Estimates for sparse prefill: what building an index costs, against the attention it is to spare."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels.baselines import CUDNN, cudnn_decode, cudnn_prefill, random_qkv
from benchmarks.kernels.harness import Case, relative_error
from longspan.ops.estimate.blocks import antidiagonal_scores, mean_block_scores
from longspan.ops.estimate.low_bit import low_bit_block_scores
from longspan.ops.estimate.vertical_slash import naive_vertical_slash, vertical_slash
from longspan.ops.estimate.vertical_slash_table import vertical_slash_table

HEADS, GROUP, HEAD_DIM = 32, 4, 128
SCALE = HEAD_DIM**-0.5
CHUNK, BLOCK, ASKED = 4096, 64, 64
VERTICAL, SLASH = 500, 700  # MInference's budgets
CHECKED_QUERIES = 256


def cases(quick: bool) -> Iterator[Case]:
    for tokens in (2**15,) if quick else (2**15, 2**17, 2**19, 2**20):
        yield _estimate(tokens)
    for queries, tokens in ((2**15, 2**15),) if quick else ((2**15, 2**15), (2**17, 2**17), (8192, 2**20)):
        yield _table(queries, tokens)
    for tokens in (2**15,) if quick else (2**15, 2**17):
        q, k, v = random_qkv(tokens, tokens)
        yield _blocks("mean_block_scores", q, k, v)
        yield _blocks("antidiagonal_scores", q, k, v)
        yield _blocks("low_bit_block_scores", q, k, v)


def _estimate(tokens: int) -> Case:
    """One chunk at the end of a text; today's way holds the probabilities of its last queries in memory."""
    q, k, _ = random_qkv(CHUNK, tokens)

    def plain() -> tuple[Tensor, Tensor]:
        asked = q[:, :, -ASKED:].reshape(1, HEADS // GROUP, GROUP * ASKED, HEAD_DIM)
        weights = (asked @ k.transpose(-1, -2)).view(1, HEADS, ASKED, tokens).float().mul_(SCALE)
        later = torch.ones(ASKED, ASKED, dtype=torch.bool, device="cuda").triu(1)
        weights[..., -ASKED:].masked_fill_(later, -torch.inf)
        torch.softmax(weights, dim=-1, out=weights)
        stride = (HEADS * ASKED * tokens, ASKED * tokens, tokens + 1, 1)
        return weights.sum(2), weights.as_strided((1, HEADS, ASKED, tokens - ASKED + 1), stride).sum(2)

    def error() -> float:
        ours = vertical_slash(q, k, scale=SCALE, block_tokens=BLOCK)
        naive = naive_vertical_slash(
            *(q[:, :GROUP], k[:, :1]),
            scale=SCALE,
            chunk_tokens=CHUNK,
            block_tokens=BLOCK,
            last_queries=ASKED,
            first_place=None,
        )
        return max(relative_error(a[:, :GROUP], b) for a, b in zip(ours, naive, strict=True))

    return Case(
        op="vertical_slash",
        case="estimate of one chunk",
        tokens=tokens,
        error=error,
        tolerance=5e-3,
        ours=[lambda: vertical_slash(q, k, scale=SCALE, block_tokens=BLOCK)],
        baseline=[plain],
        baseline_name="torch, probabilities in memory",
        flops=2 * 2 * HEADS * ASKED * tokens * HEAD_DIM,
        num_bytes=2 * k.nbytes + 4 * HEADS * tokens,
        graph=True,
        facts={"asked_queries": ASKED, "block_tokens": BLOCK},
    )


def _table(queries: int, tokens: int) -> Case:
    """The whole index, chunk by chunk, against attention of the same queries."""
    q, k, v = random_qkv(queries, tokens)
    budgets = {"vertical_tokens": VERTICAL, "slash_tokens": SLASH}

    def ours() -> object:
        return vertical_slash_table(q, k, scale=SCALE, chunk_tokens=CHUNK, block_tokens=BLOCK, **budgets)

    def error() -> float:
        """Of the attention that the best columns of the last chunk hold: the share that the chosen ones miss."""
        columns, _ = naive_vertical_slash(
            *(q[:, :GROUP, -CHUNK:], k[:, :1]),
            scale=SCALE,
            chunk_tokens=CHUNK,
            block_tokens=BLOCK,
            last_queries=ASKED,
            first_place=None,
        )
        scores = columns[:, :, 0, : tokens - CHUNK].clone()
        scores[..., :30] = 1e4  # always chosen
        chosen = ours().columns[:, :GROUP, -1].long()  # type: ignore[attr-defined]
        return relative_error(scores.gather(2, chosen).sum(2), scores.topk(VERTICAL).values.sum(2))

    causal = queries == tokens
    pairs = sum(range(tokens - queries + CHUNK, tokens + 1, CHUNK))  # keys before each chunk's end
    return Case(
        op="vertical_slash_table",
        case=f"index of {queries} queries",
        tokens=tokens,
        error=error,
        tolerance=1e-5,
        ours=[ours],
        baseline=[lambda: cudnn_prefill(q, k, v) if causal else cudnn_decode(q, k, v)],
        baseline_name=CUDNN,
        flops=2 * 2 * HEADS * ASKED * pairs * HEAD_DIM,
        num_bytes=2 * 2 * (HEADS // GROUP) * pairs * HEAD_DIM,
        facts={"queries": queries, "chunk_tokens": CHUNK, "block_tokens": BLOCK, **budgets},
    )


def _blocks(op: str, q: Tensor, k: Tensor, v: Tensor) -> Case:
    tokens = k.shape[2]
    pairs = HEADS * tokens * tokens / 2
    stride = 16

    def score(q: Tensor, k: Tensor, backend: str | None) -> Tensor:
        if op == "mean_block_scores":
            return mean_block_scores(q, k, 128, backend=backend)
        if op == "antidiagonal_scores":
            options = {"block_tokens": 128, "stride": stride, "scale": SCALE}
            return antidiagonal_scores(q, k, **options, backend=backend)
        return low_bit_block_scores(q, k, scale=SCALE, block_tokens=128, backend=backend)

    def error() -> float:
        ours = score(q, k, None)[:, :GROUP, -CHECKED_QUERIES // 128 :]
        naive = score(q[:, :GROUP, -CHECKED_QUERIES:], k[:, :1], "naive")
        visited = naive > -torch.inf
        assert torch.equal(visited, ours > -torch.inf)
        return relative_error(ours[visited], naive[visited])

    flops = {
        "mean_block_scores": 2 * HEADS * (tokens / 128) ** 2 * HEAD_DIM,
        "antidiagonal_scores": 2 * 2 * pairs * HEAD_DIM / stride,
        "low_bit_block_scores": pairs * HEAD_DIM,  # 8-bit products run at twice the rate of 16-bit ones
    }[op]
    return Case(
        op=op,
        case=f"stride {stride}" if op == "antidiagonal_scores" else "blocks of 128",
        tokens=tokens,
        error=error,
        tolerance=5e-3,
        ours=[lambda: score(q, k, None)],
        baseline=[lambda: cudnn_prefill(q, k, v)],
        baseline_name=CUDNN,
        flops=flops,
        num_bytes=q.nbytes + k.nbytes,
        facts={"block_tokens": 128},
    )
