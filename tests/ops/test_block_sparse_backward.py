"""Gradients of block-sparse attention against autograd through the readable twin."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from longspan.ops.block_sparse.naive import block_table_mask, naive_block_sparse_prefill
from longspan.ops.block_sparse.table import BlockTable


def problem(
    T: int, S: int, *, H: int = 4, K: int = 2, D: int = 32, B: int = 1, dtype: torch.dtype = torch.float32,
    device: str = "cpu", seed: int = 0,
) -> list[Tensor]:  # fmt: skip
    """q, k, v, dout, dlse."""
    rng = torch.Generator().manual_seed(seed)
    shapes = ((B, H, T, D), (B, K, S, D), (B, K, S, D), (B, H, T, D))
    tensors = [torch.randn(shape, generator=rng).to(device, dtype) for shape in shapes]
    return [*tensors, torch.randn(B, H, T, generator=rng).to(device)]


def random_table(
    T: int, S: int, *, h: int = 1, B: int = 1, N: int = 3, block: int = 16, seed: int = 1, device: str = "cpu",
    columns: int = 0, span: int = 2, column_heads: int = 1,
) -> BlockTable:  # fmt: skip
    """Random distinct blocks a row, some out of range; some rows empty."""
    rng = torch.Generator().manual_seed(seed)
    NQ, NB = -(-T // block), -(-S // block)
    N = min(N, NB + 2)
    index = torch.rand(B, h, NQ, NB + 2, generator=rng).argsort(-1)[..., :N] - 1
    counts = torch.randint(0, N + 1, (B, h, NQ), generator=rng)
    table = BlockTable(
        index=index.to(device, torch.int32), counts=counts.to(device, torch.int32), block_tokens=block
    )
    if columns:
        NC = -(-NQ // span)
        chosen = torch.rand(B, column_heads, NC, S + 2, generator=rng).argsort(-1)[..., :columns] - 1
        table = replace(table, columns=chosen.to(device, torch.int32), column_query_tokens=span * block)
    return table


def expected(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, dlse: Tensor | None, table: BlockTable
) -> list[Tensor]:
    """out, lse and the gradients, in float32."""
    leaves = [x.detach().float().requires_grad_() for x in (q, k, v)]
    out, lse = naive_block_sparse_prefill(*leaves, table, scale=0.3)
    loss = (out * dout.float()).sum()
    if dlse is not None:
        loss = loss + torch.where(lse > -torch.inf, lse * dlse, 0.0).sum()
    return [out.detach(), lse.detach(), *torch.autograd.grad(loss, leaves)]


def check(data: list[Tensor], table: BlockTable, *, with_lse: bool = True, tolerance: float = 2e-5) -> None:
    from longspan.ops.block_sparse.backward import block_sparse_backward

    q, k, v, dout, dlse = data
    out, lse, *wanted = expected(q, k, v, dout, dlse if with_lse else None, table)
    found = block_sparse_backward(
        q, k, v, out.to(q.dtype), lse, dout, dlse if with_lse else None, table, scale=0.3
    )
    for name, x, reference in zip("qkv", found, wanted, strict=True):
        assert x.dtype == q.dtype and x.shape == reference.shape
        assert torch.isfinite(x).all(), name
        difference = (x.float() - reference).abs().max() / reference.abs().max().clamp(min=1e-6)
        assert difference < tolerance, (name, float(difference))


@pytest.mark.parametrize(
    "T, S, groups",
    [(1, 1, 1), (1, 1, 4), (63, 63, 2), (129, 129, 4), (50, 131, 4), (17, 100, 1)],
)
def test_blocks(triton_device: str, T: int, S: int, groups: int) -> None:
    data = problem(T, S, H=4, K=4 // groups, device=triton_device)
    check(data, random_table(T, S, h=1, device=triton_device))


@pytest.mark.parametrize("h, column_heads", [(1, 4), (2, 4), (4, 2)])
def test_heads_of_the_table(triton_device: str, h: int, column_heads: int) -> None:
    data = problem(35, 50, device=triton_device)
    check(data, random_table(35, 50, h=h, columns=9, column_heads=column_heads, device=triton_device))


@pytest.mark.parametrize(
    "sink, window, columns, first",
    [
        (0, 0, 0, [20]),
        (5, 0, 0, None),
        (0, 1, 0, None),
        (0, 37, 0, None),
        (40, 37, 0, [3]),
        (0, 0, 11, None),
        (5, 20, 70, [9]),
        (5, 20, 7, [95]),
        (10**6, 0, 0, None),
        (0, 10**6, 3, [17]),
        (2, 0, 3, [500]),
    ],
)
def test_edges(triton_device: str, sink: int, window: int, columns: int, first: list[int] | None) -> None:
    T, S = 45, 101
    table = random_table(T, S, columns=columns, device=triton_device)
    place = None if first is None else torch.tensor(first, dtype=torch.int32, device=triton_device)
    table = replace(table, sink_tokens=sink, window_tokens=window, first_place=place)
    check(problem(T, S, H=2, K=1, device=triton_device), table)


def test_two_batch_entries_of_different_padding(triton_device: str) -> None:
    table = random_table(40, 50, B=2, columns=12, device=triton_device)
    place = torch.tensor([0, 21], dtype=torch.int32, device=triton_device)
    check(
        problem(40, 50, B=2, H=2, K=1, device=triton_device),
        replace(table, first_place=place, sink_tokens=3, window_tokens=9),
    )


def test_many_blocks(triton_device: str) -> None:
    """More key blocks than one word of the bitmap holds, and more key blocks than are divided among programs."""
    data = problem(100, 633, H=1, K=1, D=16, device=triton_device)
    check(data, random_table(100, 633, N=12, device=triton_device))


@pytest.mark.parametrize("block", [32, 64, 128])
def test_block_sizes(triton_device: str, block: int) -> None:
    data = problem(140, 200, H=1, K=1, device=triton_device)
    table = random_table(140, 200, block=block, columns=5, span=1, device=triton_device)
    check(data, replace(table, sink_tokens=4, window_tokens=30))


@pytest.mark.parametrize("D", [80, 128, 256])
def test_head_dims(triton_device: str, D: int) -> None:
    data = problem(40, 60, H=2, K=1, D=D, device=triton_device)
    check(data, replace(random_table(40, 60, columns=5, device=triton_device), window_tokens=3))


def test_half_precision(triton_device: str) -> None:
    data = problem(150, 170, H=1, K=1, D=64, dtype=torch.float16, device=triton_device)
    table = replace(
        random_table(150, 170, block=64, columns=9, span=1, device=triton_device), window_tokens=20
    )
    check(data, table, tolerance=4e-3)


def test_bfloat16(triton_device: str) -> None:
    if triton_device == "cpu":
        pytest.skip("no bfloat16 in the interpreter")
    data = problem(1000, 1500, H=8, K=2, D=128, dtype=torch.bfloat16, device=triton_device)
    table = random_table(1000, 1500, block=128, N=6, columns=90, span=2, device=triton_device)
    check(data, replace(table, window_tokens=200, sink_tokens=7), tolerance=2e-2)


def test_without_gradient_of_lse(triton_device: str) -> None:
    data = problem(50, 50, H=2, K=1, device=triton_device)
    check(data, random_table(50, 50, device=triton_device), with_lse=False)


def test_views_and_a_dout_of_stride_zero(triton_device: str) -> None:
    q, k, v, dout, dlse = problem(50, 70, H=2, K=1, device=triton_device)
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    k = torch.cat([k, torch.full_like(k, torch.nan)], dim=2)[:, :, :70]
    v = torch.cat([v, torch.full_like(v, torch.nan)], dim=2)[:, :, :70]
    check([q, k, v, dout[..., :1].expand_as(q), dlse], random_table(50, 70, device=triton_device))


def test_poisoned_memory_that_nobody_visits(triton_device: str) -> None:
    """NaN keys that no query visits, NaN queries that visit nothing: nothing of it shows, and their gradients are zero."""
    from longspan.ops.block_sparse.backward import block_sparse_backward

    q, k, v, dout, dlse = problem(45, 101, device=triton_device)
    place = torch.tensor([61], dtype=torch.int32, device=triton_device)
    table = replace(
        random_table(45, 101, h=4, columns=9, device=triton_device), first_place=place, window_tokens=6
    )
    out, lse, *wanted = expected(q, k, v, dout, dlse, table)
    mask = block_table_mask(q, k, table)
    keys = mask.any(dim=2).unflatten(1, (2, 2)).any(dim=2)
    dead = ~mask.any(dim=-1)
    assert not keys.all() and dead.any()
    k, v = (torch.where(keys[..., None], x, torch.nan) for x in (k, v))
    q = torch.where(dead[..., None], torch.nan, q)
    found = block_sparse_backward(q, k, v, out, lse, dout, dlse, table, scale=0.3)
    for x, reference in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, reference, atol=2e-5, rtol=2e-5)
    assert (found[0][dead] == 0).all() and (found[1][~keys] == 0).all()


def test_readable_twin_gives_zero_to_empty_rows() -> None:
    q, k, v, dout, dlse = problem(40, 40)
    table = random_table(40, 40)
    table = replace(table, counts=torch.zeros_like(table.counts))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, lse = naive_block_sparse_prefill(*leaves, table, scale=0.3)
    assert (out == 0).all() and (lse == -torch.inf).all()
    for x in torch.autograd.grad((out * dout).sum() + (lse * dlse)[lse > -torch.inf].sum(), leaves):
        assert (x == 0).all()


def test_through_autograd(triton_device: str) -> None:
    from longspan.ops.block_sparse.autograd import block_sparse_autograd

    q, k, v, dout, dlse = problem(70, 90, device=triton_device)
    table = replace(random_table(70, 90, columns=5, device=triton_device), window_tokens=3)
    wanted = expected(q, k, v, dout, dlse, table)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, lse = block_sparse_autograd(*leaves, table, scale=0.3)
    grads = torch.autograd.grad((out * dout).sum() + (lse * dlse).sum(), leaves)
    for x, reference in zip((out, lse, *grads), wanted, strict=True):
        torch.testing.assert_close(x, reference, atol=3e-5, rtol=3e-5)
    only_lse = torch.autograd.grad(block_sparse_autograd(*leaves, table, scale=0.3)[1].sum(), leaves)
    wanted = expected(q, k, v, torch.zeros_like(dout), torch.ones_like(dlse), table)
    for x, reference in zip(only_lse, wanted[2:], strict=True):
        torch.testing.assert_close(x, reference, atol=3e-5, rtol=3e-5)
