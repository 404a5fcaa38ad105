"""Block-sparse prefill: random blocks and the diagonal for every head and row, against FlexAttention and dense cuDNN."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.baselines import CUDNN, cudnn_prefill, random_qkv
from benchmarks.kernels.harness import Case, relative_error
from longspan.ops.block_sparse import BlockTable, block_sparse_prefill, naive_block_sparse_prefill

BLOCK = 128
SCALE = 128**-0.5
FLEX = "compiled FlexAttention, same blocks"


def random_table(tokens: int, density: float, *, heads: int = 32, seed: int = 0) -> BlockTable:
    """For each head and row that share of the blocks before it, at random, and the diagonal block; ascending."""
    rows = tokens // BLOCK
    generator = torch.Generator("cuda").manual_seed(seed)
    before = torch.arange(rows, device="cuda")
    counts = (before * density).round().int()
    most = int(rows * density) + 2
    index = torch.empty(1, heads, rows, most, dtype=torch.int32, device="cuda")
    for head in range(heads):  # a head at a time: the draw is rows x rows
        draw = torch.rand(rows, rows, device="cuda", generator=generator)
        draw = draw.masked_fill(before >= before[:, None], 2.0)
        chosen = draw.topk(min(most, rows), dim=-1, largest=False).indices
        chosen = torch.nn.functional.pad(chosen, (0, most - chosen.shape[-1]))
        place = torch.arange(most, device="cuda")
        chosen = torch.where(place < counts[:, None], chosen, rows)
        chosen = torch.where(place == counts[:, None], before[:, None], chosen)
        index[0, head] = chosen.sort(dim=-1).values
    used = (counts + 1).expand(1, heads, rows).contiguous()
    return BlockTable(index=index.where(index < rows, 0), counts=used, block_tokens=BLOCK)


def visited_pairs(table: BlockTable) -> float:
    """(query, key) pairs of all heads, the diagonal blocks half."""
    blocks = int(table.counts.sum()) - table.counts.numel()
    return blocks * BLOCK**2 + table.counts.numel() * BLOCK * (BLOCK + 1) / 2


def cases(quick: bool) -> Iterator[Case]:
    sizes = [16, 64] if quick else [16, 32, 64, 128, 256, 512]
    for kilo in sizes:
        for density in (0.05, 0.1):
            yield from forward_cases(kilo * 1024, density)
    for kilo in [16] if quick else [16, 32, 64]:
        for density in (0.05, 0.1):
            yield from training_cases(kilo * 1024, density)


def forward_cases(tokens: int, density: float) -> Iterator[Case]:
    q, k, v = random_qkv(tokens, tokens)
    table = random_table(tokens, density)
    pairs = visited_pairs(table)
    shared: dict[str, Any] = {
        "op": "block_sparse",
        "tokens": tokens,
        "density": pairs / (32 * tokens * (tokens + 1) / 2),
        "error": lambda: forward_error(q, k, v, table),
        "tolerance": 1e-2,
        "ours": [partial(block_sparse_prefill, q, k, v, table, scale=SCALE)],
        "flops": 4 * 128 * pairs,
        "graph": tokens <= 65536,
        "facts": {"backend": "triton", "block_tokens": BLOCK},
    }
    blocks = flex_blocks(table, tokens, backward=False)
    baseline = partial(flex(), q, k, v, block_mask=blocks, scale=SCALE, enable_gqa=True)
    yield Case(case=f"forward {density:.0%}", baseline=[baseline], baseline_name=FLEX, **shared)
    del blocks, baseline
    if density < 0.1 or tokens <= 131072:  # a dense call of 512K tokens takes 4 seconds
        dense = partial(cudnn_prefill, q, k, v)
        yield Case(case=f"forward {density:.0%} vs dense", baseline=[dense], baseline_name=CUDNN, **shared)


def training_cases(tokens: int, density: float) -> Iterator[Case]:
    leaves = [x.requires_grad_() for x in random_qkv(tokens, tokens)]
    q, k, v = leaves
    dout = torch.randn_like(q)
    table = random_table(tokens, density)
    pairs = visited_pairs(table)

    def ours() -> object:
        out, _ = block_sparse_prefill(q, k, v, table, scale=SCALE)
        return torch.autograd.grad(out, leaves, dout)

    def baseline() -> object:
        out = flex()(q, k, v, block_mask=blocks, scale=SCALE, enable_gqa=True)
        return torch.autograd.grad(out, leaves, dout)

    def dense() -> object:
        return torch.autograd.grad(cudnn_prefill(q, k, v), leaves, dout)

    blocks = flex_blocks(table, tokens, backward=True)
    shared: dict[str, Any] = {
        "op": "block_sparse",
        "tokens": tokens,
        "density": pairs / (32 * tokens * (tokens + 1) / 2),
        "error": lambda: training_error(tokens),
        "tolerance": 1.5e-2,
        "ours": [ours],
        "flops": 3.5 * 4 * 128 * pairs,
        "graph": tokens <= 65536,  # as forward: in a model the host is ahead
        "facts": {"backend": "triton", "block_tokens": BLOCK},
    }
    yield Case(case=f"forward+backward {density:.0%}", baseline=[baseline], baseline_name=FLEX, **shared)
    yield Case(
        case=f"forward+backward {density:.0%} vs dense", baseline=[dense], baseline_name=CUDNN, **shared
    )


def forward_error(q: Tensor, k: Tensor, v: Tensor, table: BlockTable) -> float:
    """Of two rows of queries and one kv head, each as if it were the end of the text."""
    rows = table.counts.shape[2]
    out, _ = block_sparse_prefill(q, k, v, table, scale=SCALE)
    worst = 0.0
    for row in (rows - 1, rows // 2):
        end = (row + 1) * BLOCK
        part = BlockTable(
            index=table.index[:, 4:8, row : row + 1],
            counts=table.counts[:, 4:8, row : row + 1],
            block_tokens=BLOCK,
        )
        queries = slice(row * BLOCK, end)
        reference, _ = naive_block_sparse_prefill(
            q[:, 4:8, queries].float(), k[:, 1:2, :end], v[:, 1:2, :end], part, scale=SCALE
        )
        worst = max(worst, relative_error(out[:, 4:8, queries], reference))
    return worst


def training_error(tokens: int) -> float:
    """Of the three gradients, on a text of 2048 tokens (the twin holds the whole mask) with the same shape of table."""
    leaves = [x.requires_grad_() for x in random_qkv(2048, 2048, seed=tokens)]
    table = random_table(2048, 0.3, seed=tokens)
    dout = torch.randn_like(leaves[0])
    found = torch.autograd.grad(block_sparse_prefill(*leaves, table, scale=SCALE)[0], leaves, dout)
    wide = [x.detach().float().requires_grad_() for x in leaves]
    out, _ = naive_block_sparse_prefill(*wide, table, scale=SCALE)
    wanted = torch.autograd.grad(out, wide, dout.float())
    return max(relative_error(a, b) for a, b in zip(found, wanted, strict=True))


def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def flex_blocks(table: BlockTable, tokens: int, *, backward: bool) -> Any:
    """The table as FlexAttention takes it: full blocks, and the diagonal, last in its row, as the one partial block."""
    from torch.nn.attention.flex_attention import BlockMask

    rows = tokens // BLOCK
    # As wide as there are blocks, so that one compilation serves every density.
    full = torch.nn.functional.pad(table.index, (0, rows - table.index.shape[3]))
    diagonal = torch.zeros(rows, rows if backward else 1, dtype=torch.int32, device="cuda")
    diagonal[:, 0] = torch.arange(rows)
    return BlockMask.from_kv_blocks(
        kv_num_blocks=torch.ones_like(table.counts),
        kv_indices=diagonal.expand(*table.counts.shape, diagonal.shape[1]).contiguous(),
        full_kv_num_blocks=table.counts - 1,
        full_kv_indices=full,
        BLOCK_SIZE=BLOCK,
        mask_mod=causal,
        seq_lengths=(tokens, tokens),
        compute_q_blocks=backward,
    )


@cache
def flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.config.recompile_limit = 64  # once for each size; past the limit it would run uncompiled
    return torch.compile(flex_attention, dynamic=False)
