"""block_sparse_prefill: the Triton kernel and the public function against the readable twin."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from longspan.ops.backend import watch_backends
from longspan.ops.block_sparse import (
    BlockTable,
    block_sparse_prefill,
    block_table_mask,
    naive_block_sparse_prefill,
)


def problem(
    T: int, S: int, *, H: int = 2, K: int = 1, D: int = 16, B: int = 1, dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> list[Tensor]:  # fmt: skip
    """q, k, v."""
    rng = torch.Generator().manual_seed(T + S)
    shapes = ((B, H, T, D), (B, K, S, D), (B, K, S, D))
    return [torch.randn(shape, generator=rng).to(device, dtype) for shape in shapes]


def random_table(
    T: int, S: int, *, h: int = 1, B: int = 1, N: int = 4, block: int = 16, device: str = "cpu", columns: int = 0,
    column_heads: int = 1, span: int = 2,
) -> BlockTable:  # fmt: skip
    """Distinct blocks a row, some out of range, as many of them used as chance has it (also none)."""
    rng = torch.Generator().manual_seed(T * S + h)
    rows, blocks = -(-T // block), -(-S // block)
    N = min(N, blocks + 2)
    index = torch.rand(B, h, rows, blocks + 2, generator=rng).argsort(-1)[..., :N] - 1
    counts = torch.randint(0, N + 1, (B, h, rows), generator=rng)
    table = BlockTable(
        index=index.to(device, torch.int32), counts=counts.to(device, torch.int32), block_tokens=block
    )
    if columns:
        places = torch.rand(B, column_heads, -(-rows // span), S + 20, generator=rng).argsort(-1) - 10
        places = places[..., :columns].to(device, torch.int32)
        table = replace(table, columns=places, column_query_tokens=span * block)
    return table


def check(data: list[Tensor], table: BlockTable, *, tolerance: float = 2e-5, scale: float = 0.3) -> None:
    """Output and LSE of the kernel equal the twin's, and dense attention over the same keys does not."""
    out, lse = block_sparse_prefill(*data, table, scale=scale, backend="triton")
    wanted, wanted_lse = naive_block_sparse_prefill(*data, table, scale=scale)
    assert out.dtype == data[0].dtype and lse.dtype == torch.float32
    assert not out.isnan().any() and not lse.isnan().any()
    assert (out.float() - wanted.float()).abs().max() <= tolerance * max(1.0, float(wanted.abs().max()))
    seen = wanted_lse > -torch.inf
    assert torch.equal(lse > -torch.inf, seen)
    assert torch.allclose(lse[seen], wanted_lse[seen], rtol=1e-5, atol=2e-5)
    assert not out[~seen].any()


@pytest.mark.parametrize("groups", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("T, S", [(1, 1), (1, 300), (63, 63), (129, 140)])
def test_blocks_of_every_grouping(triton_device: str, T: int, S: int, groups: int) -> None:
    data = problem(T, S, H=groups, K=1, device=triton_device)
    check(data, random_table(T, S, device=triton_device))


@pytest.mark.parametrize("h", [1, 2, 6])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_tables_a_head_a_kv_head_or_one(triton_device: str, h: int, block: int) -> None:
    data = problem(140, 190, H=6, K=2, device=triton_device)
    check(data, random_table(140, 190, h=h, block=block, device=triton_device))


@pytest.mark.parametrize("D", [16, 32, 64, 80, 128, 256])
def test_half_precision_and_head_dims(triton_device: str, D: int) -> None:
    table = random_table(129, 300, block=64, columns=20, device=triton_device)
    table = replace(table, sink_tokens=5, window_tokens=40)
    types = [torch.float16] if triton_device == "cpu" else [torch.float16, torch.bfloat16]
    for dtype in types:
        data = problem(129, 300, D=D, dtype=dtype, device=triton_device)
        check(data, table, tolerance=2e-3 if dtype == torch.float16 else 1.6e-2, scale=D**-0.5)


@pytest.mark.parametrize("block, tile", [(64, 32), (64, 64), (32, 32), (16, 32)])
@pytest.mark.parametrize("S, copy_engine", [(340, False), (342, False), (342, True)])
def test_other_launches(triton_device: str, block: int, tile: int, S: int, copy_engine: bool) -> None:
    """S - 150 is a multiple of the blocks (the diagonal goes through the first loop), and is not."""
    from longspan.ops.block_sparse.triton import Config, triton_block_sparse_prefill

    data = problem(150, S, H=3, D=32, dtype=torch.float16, device=triton_device)
    table = random_table(150, S, h=3, block=block, N=6, device=triton_device)
    config = Config(tile_keys=tile, edge_keys=16, num_warps=4, num_stages=2, copy_engine=copy_engine)
    out, lse = triton_block_sparse_prefill(*data, table, scale=0.2, config=config)
    wanted, wanted_lse = naive_block_sparse_prefill(*data, table, scale=0.2)
    assert (out - wanted).abs().max() < 2e-3
    assert torch.allclose(lse, wanted_lse, atol=1e-5)


@pytest.mark.parametrize(
    "sink, window", [(0, 1), (0, 16), (0, 37), (3, 0), (16, 0), (45, 5), (40, 70), (300, 300)]
)
def test_sink_and_window_count_once(triton_device: str, sink: int, window: int) -> None:
    for T, S, block in ((100, 100, 32), (70, 133, 16)):
        table = replace(
            random_table(T, S, block=block, device=triton_device, columns=9),
            sink_tokens=sink,
            window_tokens=window,
        )
        check(problem(T, S, device=triton_device), table)
        check(problem(T, S, device=triton_device), replace(table, counts=table.counts * 0, columns=None))


@pytest.mark.parametrize("column_heads, span", [(1, 1), (2, 2), (4, 3)])
def test_columns(triton_device: str, column_heads: int, span: int) -> None:
    data = problem(70, 120, H=4, K=2, device=triton_device)
    table = random_table(70, 120, h=2, columns=40, column_heads=column_heads, span=span, device=triton_device)
    check(data, table)
    check(data, replace(table, counts=table.counts * 0))
    check(data, replace(table, first_place=torch.tensor([77], dtype=torch.int32, device=triton_device)))


def test_padding_before_first_place(triton_device: str) -> None:
    data = problem(70, 70, B=3, device=triton_device)
    place = torch.tensor([0, 21, 69], dtype=torch.int32, device=triton_device)
    table = replace(random_table(70, 70, B=3, device=triton_device), first_place=place, sink_tokens=30)
    check(data, table)
    out, lse = block_sparse_prefill(*data, replace(table, window_tokens=2), scale=0.3, backend="triton")
    assert (lse[1, :, :21] == -torch.inf).all() and not out[1, :, :21].any()
    assert (lse[2, :, 69] > -torch.inf).all()


def test_memory_that_nobody_visits_may_hold_anything(triton_device: str) -> None:
    """NaN in unvisited keys, beyond the keys in the buffer, and in the gaps of strided views."""
    S, T = 150, 90
    q, k, v = problem(T, S, H=4, K=2, D=32, B=2, device=triton_device)
    table = replace(
        random_table(T, S, h=2, B=2, device=triton_device, columns=11),
        first_place=torch.tensor([5, 40], dtype=torch.int32, device=triton_device),
        sink_tokens=9,
        window_tokens=20,
    )
    unseen = ~block_table_mask(q, k, table).view(2, 2, 2, T, S).any(3).any(2)
    assert unseen.any()
    buffers = []
    for x in (k, v):
        buffer = torch.full((2, S + 100, 2, 48), torch.nan, device=triton_device)
        buffer[:, :S, :, :32] = x.masked_fill(unseen[..., None], torch.nan).transpose(1, 2)
        buffers.append(buffer[:, :S, :, :32].transpose(1, 2))
    queries = torch.full((2, T, 4, 40), torch.nan, device=triton_device)
    queries[..., :32] = q.transpose(1, 2)
    out, lse = block_sparse_prefill(
        queries[..., :32].transpose(1, 2), *buffers, table, scale=0.3, backend="triton"
    )
    wanted, wanted_lse = naive_block_sparse_prefill(q, k, v, table, scale=0.3)
    assert torch.allclose(out, wanted, atol=2e-5)
    assert torch.allclose(lse, wanted_lse, atol=2e-5)


def test_large_logits(triton_device: str) -> None:
    q, k, v = problem(100, 100, device=triton_device)
    check([q * 40, k * 40, v], random_table(100, 100, N=7, device=triton_device), tolerance=1e-4)


def test_the_table_is_not_ignored(triton_device: str) -> None:
    data = problem(100, 100, device=triton_device)
    table = random_table(100, 100, device=triton_device)
    sparse, _ = block_sparse_prefill(*data, table, scale=0.3, backend="triton")
    dense, _ = block_sparse_prefill(*data, replace(table, window_tokens=100), scale=0.3, backend="triton")
    assert (sparse - dense).abs().max() > 0.1


def test_naive_runs_by_itself_with_gradients_on_the_cpu() -> None:
    data = [x.requires_grad_() for x in problem(40, 50)]
    with watch_backends() as seen:
        out, _ = block_sparse_prefill(*data, random_table(40, 50), scale=0.3)
    assert [choice.backend for choice in seen] == ["naive"]
    out.sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in data)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scale": 0.0}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"backend": "cuda"}, "backend"),
        ({"q": (1, 3, 20, 16)}, "multiple"),
        ({"k": (1, 2, 19, 16)}, "shape"),
        ({"table": {"block_tokens": 24}}, "block_tokens=24"),
        ({"table": {"sink_tokens": -1}}, "sink_tokens=-1"),
        ({"table": {"columns": torch.zeros(1, 1, 1, 4, dtype=torch.int32)}}, "column_query_tokens"),
        ({"table": {"counts": torch.zeros(1, 1, 2, dtype=torch.int64)}}, "int32"),
        ({"table": {"first_place": torch.zeros(3, dtype=torch.int32)}}, "first_place"),
    ],
)
def test_wrong_arguments_are_named(change: dict, message: str) -> None:
    q, k, v = torch.zeros(1, 2, 20, 16), torch.zeros(1, 2, 20, 16), torch.zeros(1, 2, 20, 16)
    q, k = (torch.zeros(change[name]) if name in change else x for name, x in (("q", q), ("k", k)))
    table = replace(random_table(20, 20), **change.get("table", {}))
    with pytest.raises(ValueError, match=message):
        block_sparse_prefill(q, k, v, table, scale=change.get("scale", 1.0), backend=change.get("backend"))


def test_the_last_dimension_must_be_contiguous(triton_device: str) -> None:
    q, k, v = problem(20, 20, device=triton_device)
    with pytest.raises(ValueError, match=r"k\.contiguous\(\)"):
        turned = k.mT.contiguous().mT
        block_sparse_prefill(
            q, turned, v, random_table(20, 20, device=triton_device), scale=1.0, backend="triton"
        )


@pytest.mark.gpu
def test_large_offsets_and_a_cuda_graph() -> None:
    """Keys past the 2^31st element, and a captured call."""
    S, T, block = 1 << 20, 256, 128
    generator = torch.Generator("cuda").manual_seed(0)
    k, v = (
        torch.randn(1, S, 24, 128, device="cuda", dtype=torch.bfloat16, generator=generator).transpose(1, 2)
        for _ in range(2)
    )
    q = torch.randn(1, 24, T, 128, device="cuda", dtype=torch.bfloat16, generator=generator)
    index = torch.tensor([[3, 8000, 8190], [5, 8100, 8191]], device="cuda", dtype=torch.int32)
    table = BlockTable(
        index=index[None, None], counts=torch.full((1, 1, 2), 3, device="cuda", dtype=torch.int32)
    )
    places = (index.long()[:, :, None] * block + torch.arange(block, device="cuda")).reshape(2, -1)
    block_sparse_prefill(q, k, v, table, scale=0.1, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, _ = block_sparse_prefill(q, k, v, table, scale=0.1, backend="triton")
    graph.replay()
    for row in range(2):
        queries = q[:, :, row * block : (row + 1) * block].float()
        keys, values = (x[:, :, places[row]].float() for x in (k, v))
        query_places = S - T + row * block + torch.arange(block, device="cuda")
        hidden = places[row] > query_places[:, None]
        weights = (queries @ keys.transpose(-1, -2) * 0.1).masked_fill(hidden, -torch.inf).softmax(-1)
        found = out[:, :, row * block : (row + 1) * block].float()
        assert (found - weights @ values).norm() < 1e-2 * (weights @ values).norm()
