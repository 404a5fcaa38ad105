"""The Gluon forward for Hopper GPUs against the readable twin; what it refuses is tested on any machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from longspan.ops.block_sparse.gluon import Config, gluon_block_sparse_prefill, gluon_reason
from longspan.ops.block_sparse.naive import block_table_mask, naive_block_sparse_prefill
from longspan.ops.block_sparse.table import BlockTable

SCALE = 0.11


@pytest.fixture
def hopper() -> str:
    """Skips where the GPU is no Hopper or this Triton has another Gluon; any other reason to refuse fails the test."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("not a GPU of compute capability 9.0")
    triton = pytest.importorskip("triton")
    if not triton.__version__.startswith("3.6."):
        pytest.skip(f"written for triton 3.6, this is {triton.__version__}")
    return "cuda"


def problem(
    T: int, S: int, *, H: int = 4, K: int = 2, D: int = 128, B: int = 1, dtype: torch.dtype = torch.bfloat16,
    device: str = "cuda", seed: int = 0,
) -> list[Tensor]:  # fmt: skip
    rng = torch.Generator().manual_seed(seed)
    shapes = ((B, H, T, D), (B, K, S, D), (B, K, S, D))
    return [torch.randn(shape, generator=rng).to(device, dtype) for shape in shapes]


def random_table(
    T: int, S: int, *, h: int = 1, B: int = 1, N: int = 5, device: str = "cuda", seed: int = 1
) -> BlockTable:
    """Random distinct blocks a row, some out of range, uneven counts, and rows without any."""
    rng = torch.Generator().manual_seed(seed)
    NQ, NB = -(-T // 128), -(-S // 128)
    index = torch.rand(B, h, NQ, NB + 2, generator=rng).argsort(-1)[..., :N] - 1
    counts = torch.randint(0, index.shape[-1] + 1, (B, h, NQ), generator=rng)
    return BlockTable(index=index.to(device, torch.int32), counts=counts.to(device, torch.int32))


def check(data: list[Tensor], table: BlockTable, config: Config | None = None) -> None:
    q, k, v = data
    assert gluon_reason(q, k, v, table) is None
    out, lse = gluon_block_sparse_prefill(q, k, v, table, scale=SCALE, config=config)
    wanted, wanted_lse = naive_block_sparse_prefill(q.float(), k.float(), v.float(), table, scale=SCALE)
    assert out.dtype == q.dtype and out.shape == q.shape and lse.dtype == torch.float32
    torch.testing.assert_close(lse, wanted_lse, atol=2e-4, rtol=1e-5)
    tolerance = 1.2e-2 if q.dtype == torch.bfloat16 else 2e-3
    torch.testing.assert_close(out.float(), wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "T, S", [(1, 1), (63, 63), (129, 129), (300, 300), (1, 500), (65, 1000), (128, 1024), (777, 2049)]
)
def test_lengths(hopper: str, T: int, S: int, groups: int) -> None:
    check(problem(T, S, H=8, K=8 // groups), random_table(T, S))


@pytest.mark.gpu
@pytest.mark.parametrize("h", [1, 2, 8])
def test_heads_of_the_table(hopper: str, h: int) -> None:
    check(problem(513, 900, B=2, H=8, K=2), random_table(513, 900, B=2, h=h))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("D", [64, 128])
def test_types_and_head_dims(hopper: str, D: int, dtype: torch.dtype) -> None:
    check(problem(700, 1500, D=D, dtype=dtype), replace(random_table(700, 1500), window_tokens=100))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "config",
    [
        Config(slots=n, ping_pong=p, persistent=s)
        for n in (4, 5)
        for p in (False, True)
        for s in (False, True)
    ],
    ids=str,
)
def test_launches(hopper: str, config: Config) -> None:
    """More rows than programs, so that a program computes several, some of them without blocks."""
    T, S = 4000, 5000
    check(problem(T, S, H=8, K=2), random_table(T, S, h=8, N=17), config)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "sink, window, first",
    [
        (0, 0, [200, 0]),
        (5, 0, None),
        (300, 0, None),
        (0, 1, None),
        (0, 37, None),
        (0, 500, [3, 0]),
        (128, 256, [128, 130]),
        (40, 37, [0, 600]),
        (10**6, 0, None),
        (0, 10**6, [17, 900]),
    ],
)
@pytest.mark.parametrize("T, S", [(900, 900), (450, 1011), (256, 1024)])
def test_edges(hopper: str, T: int, S: int, sink: int, window: int, first: list[int] | None) -> None:
    place = None if first is None else torch.tensor(first, dtype=torch.int32, device=hopper)
    table = replace(random_table(T, S, B=2), sink_tokens=sink, window_tokens=window, first_place=place)
    check(problem(T, S, B=2), table)


@pytest.mark.gpu
def test_no_blocks_at_all(hopper: str) -> None:
    table = random_table(500, 600, N=3)
    table = replace(table, counts=torch.zeros_like(table.counts))
    q, k, v = problem(500, 600)
    out, lse = gluon_block_sparse_prefill(q, k, torch.full_like(v, torch.nan), table, scale=SCALE)
    assert (out == 0).all() and (lse == -torch.inf).all()


@pytest.mark.gpu
@pytest.mark.parametrize("T, S", [(256, 1024), (300, 1100)])
@pytest.mark.parametrize("sink, window", [(0, 0), (20, 50)])
def test_what_nobody_visits_is_not_a_number(hopper: str, T: int, S: int, sink: int, window: int) -> None:
    q, k, v = problem(T, S)
    place = torch.tensor([70], dtype=torch.int32, device=hopper)
    table = replace(random_table(T, S), first_place=place, sink_tokens=sink, window_tokens=window)
    seen = block_table_mask(q, k, table).any(dim=2).reshape(1, 2, 2, S).any(dim=2)
    assert not seen.all()
    clean = gluon_block_sparse_prefill(q, k, v, table, scale=SCALE)
    k, v = (torch.where(seen[..., None], x, torch.nan) for x in (k, v))
    for x, wanted in zip(gluon_block_sparse_prefill(q, k, v, table, scale=SCALE), clean, strict=True):
        assert torch.equal(x, wanted)


@pytest.mark.gpu
def test_views(hopper: str) -> None:
    """Keys as the head of a larger store, queries and values with tokens before heads."""
    T, S = 300, 700
    store = torch.full((2, 2, 1000, 128), torch.nan, device=hopper, dtype=torch.bfloat16)
    q, k, v = problem(T, S, B=2)
    store[:, :, :S] = k
    q, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, v))
    check([q, store[:, :, :S], v], replace(random_table(T, S, B=2), window_tokens=64))


@pytest.mark.gpu
def test_in_a_graph(hopper: str) -> None:
    data = problem(1000, 1500)
    table = random_table(1000, 1500)
    check(data, table)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = gluon_block_sparse_prefill(*data, table, scale=SCALE)
    for x in data:
        x.copy_(torch.randn_like(x))
    graph.replay()
    wanted, wanted_lse = naive_block_sparse_prefill(*(x.float() for x in data), table, scale=SCALE)
    torch.testing.assert_close(lse, wanted_lse, atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(out.float(), wanted, atol=1.2e-2, rtol=1.2e-2)


def test_reasons() -> None:
    """On tensors of the CPU: what is wrong with the call is named before the device is."""
    q, k, v = problem(130, 200, device="cpu")
    table = random_table(130, 200, device="cpu")
    columns = torch.zeros(1, 1, 2, 4, dtype=torch.int32)
    apart = torch.empty(1, 2, 200, 129, dtype=k.dtype)[..., :128]
    shifted = torch.empty(2 * 200 * 128 + 1, dtype=k.dtype)[1:].view(1, 2, 200, 128)
    cases = [
        ((q.float(), k.float(), v.float(), table), "torch.float32 is not one of bfloat16 and float16"),
        ((q[..., :80], k[..., :80], v[..., :80], table), "head_dim 80 is not one of 64 and 128"),
        ((q, k, v, replace(table, block_tokens=64)), "block_tokens is 64, not 128"),
        ((q, k, v, replace(table, columns=columns, column_query_tokens=128)), "the table has columns"),
        ((q, apart, v, table), "the start and strides of k are not"),
        ((q, k, shifted, table), "the start and strides of v are not"),
        ((q, k[:, :1].expand(1, 2, 200, 128), v, table), "the start and strides of k are not"),
        ((q, k, v.transpose(2, 3).contiguous().transpose(2, 3), table), "the start and strides of v are not"),
        ((q, k, v, table), "the tensors are on cpu, not on a CUDA device"),
    ]
    for arguments, message in cases:
        assert str(gluon_reason(*arguments)).startswith(message)


@pytest.mark.parametrize("slots, D, most", [(3, 128, 5), (6, 128, 5), (13, 64, 12)])
def test_slots_out_of_range(slots: int, D: int, most: int) -> None:
    data = problem(130, 200, D=D, device="cpu")
    message = f"got slots={slots}; allowed are 4 to {most} for head_dim {D}"
    with pytest.raises(ValueError, match=message):
        gluon_block_sparse_prefill(
            *data, random_table(130, 200, device="cpu"), scale=SCALE, config=Config(slots=slots)
        )
