"""The CPU path of block-sparse prefill against its naive twin."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from longspan.ops.block_sparse import cpu
from longspan.ops.block_sparse.cpu import cpu_block_sparse_prefill
from longspan.ops.block_sparse.naive import block_table_mask, naive_block_sparse_prefill
from longspan.ops.block_sparse.table import BlockTable

SCALE = 0.12


def inputs(
    B: int = 1, H: int = 4, K: int = 2, T: int = 300, S: int = 300, D: int = 16
) -> tuple[Tensor, Tensor, Tensor]:
    return 2 * torch.randn(B, H, T, D), torch.randn(B, K, S, D), torch.randn(B, K, S, D)


def numbers(rows: tuple[int, ...], width: int, upper: int) -> Tensor:
    """Distinct random numbers from -2 to `upper` + 1: `[*rows, width]`, some of them out of range."""
    order = torch.rand(*rows, upper + 4).argsort(dim=-1)[..., :width] - 2
    return order.int()


def random_table(q: Tensor, k: Tensor, draw: random.Random) -> BlockTable:
    B, H, T, _ = q.shape
    K, S = k.shape[1:3]
    block = draw.choice([16, 32, 64, 128])
    num_blocks, rows = -(-S // block), -(-T // block)
    index = numbers((B, draw.choice([1, K, H]), rows), draw.choice([0, 1, 3, num_blocks + 4]), num_blocks)
    table = BlockTable(
        index=index,
        counts=torch.randint(0, index.shape[-1] + 1, index.shape[:3]).int(),
        block_tokens=block,
        sink_tokens=draw.choice([0, 0, 4, 100, 1000]),
        window_tokens=draw.choice([0, 0, 1, 40, 129, 300, 1000]),
        first_place=draw.choice([None, torch.randint(0, S + 1, (B,)).int()]),
    )
    if draw.random() < 0.5:
        span = block * draw.choice([1, 2, 3])
        columns = numbers((B, draw.choice([1, K, H]), -(-T // span)), draw.choice([0, 5, S // 2]), S)
        table = replace(table, columns=columns, column_query_tokens=span)
    return table


def assert_close(
    found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float = 1e-5
) -> None:
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype
        torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("at_once", [2**21, 2**14, 128])
@pytest.mark.parametrize("seed", range(60))
def test_equals_naive(seed: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "SCORES_AT_ONCE", at_once)
    torch.manual_seed(seed)
    draw = random.Random(seed)
    K, G = draw.choice([1, 2]), draw.choice([1, 2, 4])
    S = draw.choice([1, 63, 129, 300, 500])
    T = draw.choice([S, max(1, S // 2), max(1, S // 3), 1])
    q, k, v = inputs(draw.choice([1, 2]), K * G, K, T, S, draw.choice([16, 64, 80]))
    table = random_table(q, k, draw)
    found = cpu_block_sparse_prefill(q, k, v, table, scale=SCALE)
    assert_close(found, naive_block_sparse_prefill(q, k, v, table, scale=SCALE))


@pytest.mark.parametrize("G, D", [(8, 128), (16, 32), (1, 256)])
def test_groups_and_head_dims(G: int, D: int) -> None:
    torch.manual_seed(G)
    q, k, v = inputs(1, 2 * G, 2, 129, 300, D)
    for h in (1, 2, 2 * G):
        index = numbers((1, h, 5), 4, 10)
        table = BlockTable(
            index=index, counts=torch.full((1, h, 5), 4).int(), block_tokens=32, window_tokens=9
        )
        found = cpu_block_sparse_prefill(q, k, v, table, scale=D**-0.5)
        assert_close(found, naive_block_sparse_prefill(q, k, v, table, scale=D**-0.5))


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    q, k, v = (x.to(dtype) for x in inputs(D=64))
    table = random_table(q, k, random.Random(3))
    found = cpu_block_sparse_prefill(q, k, v, table, scale=SCALE)
    assert_close(found, naive_block_sparse_prefill(q, k, v, table, scale=SCALE), tolerance)


@pytest.mark.parametrize("seed", range(8))
def test_keys_that_nobody_visits_may_hold_anything(seed: int) -> None:
    torch.manual_seed(seed)
    draw = random.Random(seed)
    q, k, v = inputs(2, 4, 2, 190, 400)
    table = replace(random_table(q, k, draw), sink_tokens=5, window_tokens=draw.choice([0, 30]))
    expected = naive_block_sparse_prefill(q, k, v, table, scale=SCALE)
    visited = block_table_mask(q, k, table).unflatten(1, (2, 2)).any(2).any(2)
    for x in (k, v):
        x[~visited] = torch.nan
    assert not visited.all()
    assert_close(cpu_block_sparse_prefill(q, k, v, table, scale=SCALE), expected)


def test_queries_that_visit_nothing() -> None:
    q, k, v = inputs(T=129, S=200)
    table = BlockTable(
        index=torch.tensor([0, 1, 12, 3]).int().expand(1, 1, 9, 4),
        counts=torch.tensor([[[0, 1] * 4 + [0]]]).int(),
        block_tokens=16,
        first_place=torch.tensor([14]).int(),
    )
    out, lse = cpu_block_sparse_prefill(q, k, v, table, scale=SCALE)
    assert_close((out, lse), naive_block_sparse_prefill(q, k, v, table, scale=SCALE))
    assert torch.all(out[:, :, :16] == 0) and torch.all(lse[:, :, :16] == -torch.inf)
    assert torch.isfinite(lse[:, :, 16:32]).all()
    for first in (100, 200):
        some = replace(table, first_place=torch.tensor([first]).int(), window_tokens=20)
        out, lse = cpu_block_sparse_prefill(q, k, v, some, scale=SCALE)
        assert_close((out, lse), naive_block_sparse_prefill(q, k, v, some, scale=SCALE))
        assert torch.all(out[:, :, : first - 71] == 0) and torch.all(lse[:, :, : first - 71] == -torch.inf)


def test_strided_views_and_stores_with_room() -> None:
    torch.manual_seed(1)
    q, k, v = inputs(2, 4, 2, 100, 260, 32)
    table = random_table(q, k, random.Random(11))
    expected = naive_block_sparse_prefill(q, k, v, table, scale=SCALE)
    room = torch.full((2, 2, 2, 400, 32), torch.nan)
    room[0, :, :, :260], room[1, :, :, :260] = k, v
    tokens_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    for given in ((q, room[0, :, :, :260], room[1, :, :, :260]), tokens_first):
        assert_close(cpu_block_sparse_prefill(*given, table, scale=SCALE), expected)


def test_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_ONEDNN", None)
    q, k, v = inputs()
    table = random_table(q, k, random.Random(5))
    found = cpu_block_sparse_prefill(q, k, v, table, scale=SCALE)
    assert_close(found, naive_block_sparse_prefill(q, k, v, table, scale=SCALE))


def test_a_whole_table_equals_dense_attention() -> None:
    q, k, v = inputs(T=300, S=300, D=64)
    index = torch.arange(5).int().expand(1, 1, 5, 5)
    table = BlockTable(index=index, counts=torch.full((1, 1, 5), 5).int(), block_tokens=64)
    out, _ = cpu_block_sparse_prefill(q, k, v, table, scale=SCALE)
    dense = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=True, scale=SCALE
    )
    torch.testing.assert_close(out, dense, atol=1e-5, rtol=1e-5)


def test_a_table_that_does_not_fit() -> None:
    q, k, v = inputs(T=300)
    table = BlockTable(index=torch.zeros(1, 3, 5, 1).int(), counts=torch.ones(1, 3, 5).int(), block_tokens=64)
    with pytest.raises(ValueError, match=r"got index \[1, 3, 5, 1\]; allowed is \[1, h, 5, any\]"):
        cpu_block_sparse_prefill(q, k, v, table, scale=SCALE)
