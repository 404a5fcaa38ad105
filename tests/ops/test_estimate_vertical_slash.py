"""Attention of the last queries of chunks, by key and by distance, and the block table made of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longspan.ops.block_sparse.naive import block_table_mask
from longspan.ops.estimate.vertical_slash import vertical_slash
from longspan.ops.estimate.vertical_slash_table import vertical_slash_table

BACKENDS = ("naive", "triton")


def draw(B: int, H: int, K: int, T: int, S: int, D: int, device: str, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(T + S)
    q = torch.randn(B, H, T, D, generator=generator).to(device, dtype)
    k = torch.randn(B, K, S, D, generator=generator).to(device, dtype)
    return q, k


def by_definition(
    q: Tensor, k: Tensor, scale: float, chunk: int, block: int, last: int, first: list[int]
) -> tuple[Tensor, Tensor]:
    """Plain softmax, one query at a time, and each pair of query and key added where it belongs."""
    (B, H, T, _), (K, S) = q.shape, k.shape[1:3]
    C, M, phase = -(-T // chunk), -(-S // block), (S - T) % block
    columns, offsets = torch.zeros(B, H, C, S), torch.zeros(B, H, C, M)
    for b in range(B):
        for h in range(H):
            for c in range(C):
                end = min(T, (c + 1) * chunk)
                earliest = max(c * chunk, end - last)
                for t in range(earliest, end):
                    p = S - T + t
                    if p < first[b]:
                        continue
                    keys = k[b, h // (H // K), first[b] : p + 1].double().cpu()
                    weights = torch.softmax(keys @ q[b, h, t].double().cpu() * scale, dim=0).float()
                    columns[b, h, c, first[b] : p + 1] += weights
                    place = torch.arange(first[b], p + 1)
                    place, weights = (x[place >= first[b] + t - earliest] for x in (place, weights))
                    distance = (p - place)[None] - phase - torch.arange(M)[:, None] * block
                    share = (1 - distance.abs() / block).clamp(min=0)
                    offsets[b, h, c] += share @ weights
    return columns, offsets


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("B", "H", "K", "T", "S", "D", "chunk", "block", "last", "first"),
    [
        (1, 1, 1, 1, 1, 16, 16, 16, 64, None),
        (1, 4, 1, 100, 229, 16, 64, 64, 64, None),
        (2, 2, 2, 63, 129, 32, 32, 32, 20, (0, 41)),
        (1, 3, 1, 96, 160, 80, 48, 16, 17, None),  # 3 heads in a tile of 4
        (2, 2, 1, 130, 130, 16, 128, 128, 64, (3, 129)),
        (1, 8, 1, 40, 300, 16, 48, 16, 8, None),
    ],
)
def test_equals_plain_softmax(backend, B, H, K, T, S, D, chunk, block, last, first, triton_device) -> None:
    q, k = draw(B, H, K, T, S, D, triton_device)
    places = None if first is None else torch.tensor(first, dtype=torch.int32, device=triton_device)
    for b, place in enumerate(first or ()):
        k[b, :, :place] = torch.nan
        q[b, :, : max(0, place - (S - T))] = torch.nan
    columns, offsets = vertical_slash(
        *(q, k),
        scale=0.4,
        chunk_tokens=chunk,
        block_tokens=block,
        last_queries=last,
        first_place=places,
        backend=backend,
    )
    expected = by_definition(q, k, 0.4, chunk, block, last, list(first or [0] * B))
    torch.testing.assert_close(columns.cpu(), expected[0], atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(offsets.cpu(), expected[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_strided_keys(dtype: torch.dtype, triton_device: str) -> None:
    if triton_device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("the interpreter has no bfloat16")
    q, store = draw(1, 4, 2, 64, 200, 128, triton_device, dtype)
    k = store.transpose(1, 2).contiguous().transpose(1, 2)[:, :, :150]
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    found = vertical_slash(q, k, scale=0.1, backend="triton")
    expected = vertical_slash(q.float(), k.float(), scale=0.1, backend="naive")
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)


def test_last_block_estimate_equals_what_offsets_say_of_real_blocks(triton_device: str) -> None:
    """One row of queries, all of them asked: what offset m says is what the block m before really gets, if attention
    depends on distance alone."""
    S, block = 256, 32
    q, k = torch.zeros(1, 1, block, 16, device=triton_device), torch.zeros(1, 1, S, 16, device=triton_device)
    _, offsets = vertical_slash(q, k, scale=1.0, block_tokens=block, last_queries=block, backend="triton")
    weights = 1 / torch.arange(S - block + 1, S + 1).float()  # uniform attention of each query
    torch.testing.assert_close(
        offsets[0, 0, 0, 1:7].cpu(), weights.sum().expand(6) * block, rtol=0.02, atol=0
    )


TABLES = [
    # B, H, K, T, S, chunk, piece, block, last, first, vertical, slash
    (1, 2, 1, 96, 192, 32, None, 16, 16, None, 40, 33),
    (2, 2, 1, 70, 170, 32, 32, 32, 32, (0, 77), 45, 64),  # S - T is no multiple of the block
    (1, 4, 1, 63, 127, None, None, 16, 10, None, 100, 700),
    (1, 2, 1, 150, 260, 64, 32, 16, 16, None, 40, 33),  # two pieces share an estimate
    (2, 2, 2, 90, 90, 96, 32, 16, 16, (0, 40), 20, 48),  # nothing before the first piece
    (1, 2, 1, 70, 133, None, 16, 16, 16, None, 35, 16),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", TABLES)
def test_table(backend: str, case: tuple, triton_device: str) -> None:
    B, H, K, T, S, chunk, piece, block, last, first, vertical, slash = case
    q, k = draw(B, H, K, T, S, 16, triton_device)
    places = None if first is None else torch.tensor(first, dtype=torch.int32, device=triton_device)
    options = {"scale": 0.5, "chunk_tokens": chunk, "block_tokens": block, "last_queries": last}
    table = vertical_slash_table(
        *(q, k),
        **options,
        local_tokens=piece,
        first_place=places,
        vertical_tokens=vertical,
        slash_tokens=slash,
        mass_bytes=4 * B * H * S * 2,
        backend=backend,
    )
    span = min(chunk or T, -(-T // block) * block)
    span = -(-span // block) * block
    piece = piece or span
    columns, offsets = by_definition(q, k, 0.5, span, block, last, list(first or [0] * B))
    num_slashes = -(-slash // block)
    assert table.columns is not None and table.column_query_tokens == piece
    assert table.index.dtype == table.counts.dtype == table.columns.dtype == torch.int32
    for b, h in ((b, h) for b in range(B) for h in range(H)):
        zero = first[b] if first else 0
        for row in range(-(-T // block)):
            used = table.index[b, h, row, : table.counts[b, h, row]].tolist()
            assert len(set(used)) == len(used)
            assert bool((table.index[b, h, row, len(used) :] == -1).all())
            chunk_place = S - T + row * block // piece * piece
            own = range(chunk_place // block, (S - T + min(T, (row + 1) * block) - 1) // block + 1)
            past = range(zero // block, own.start)
            assert used[: len(own)] == list(own)
            chosen = used[len(own) :]
            assert len(chosen) == min(num_slashes, len(past)) and set(chosen) <= set(past)
            scores = {j: float(offsets[b, h, row * block // span, (S - T) // block + row - j]) for j in past}
            best = sorted(scores.values(), reverse=True)[: len(chosen)]
            torch.testing.assert_close(torch.tensor([scores[j] for j in chosen]), torch.tensor(best))
        for c in range(columns.shape[2]):
            start, e = S - T + c * piece, c * piece // span
            past = range(zero, start)
            found = [s for s in table.columns[b, h, c].tolist() if s >= 0]
            assert found == sorted(set(found)) and set(found) <= set(past)
            assert len(found) == min(vertical, len(past))
            always = set(past[:30])
            assert always <= set(found)
            others = [float(columns[b, h, e, s]) for s in past if s not in always]
            best = sorted(others, reverse=True)[: len(found) - len(always)]
            got = sorted((float(columns[b, h, e, s]) for s in found if s not in always), reverse=True)
            torch.testing.assert_close(torch.tensor(got), torch.tensor(best))
    assert block_table_mask(q, k, table).shape == (B, H, T, S)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_needle_and_a_diagonal_are_found(backend: str, triton_device: str) -> None:
    T, S, D, block = 32, 256, 64, 16
    generator = torch.Generator().manual_seed(0)
    k = torch.nn.functional.normalize(torch.randn(1, 1, S, D, generator=generator), dim=-1)
    diagonal, needle = 101, 77
    q = torch.zeros(1, 2, T, D)
    q[0, 0] = k[0, 0, S - T - diagonal : S - diagonal]  # head 0 looks at what stands 101 tokens before
    q[0, 1] = k[0, 0, needle]  # head 1 at one key
    table = vertical_slash_table(
        q.to(triton_device),
        k.to(triton_device),
        scale=40.0,
        vertical_tokens=1,
        slash_tokens=2 * block,
        block_tokens=block,
        last_queries=16,
        first_tokens=0,
        backend=backend,
    )
    mask = block_table_mask(q.to(triton_device), k.to(triton_device), table)
    rows = torch.arange(T)
    assert bool(mask[0, 0, rows, S - T + rows - diagonal].all())
    assert bool(mask[0, 1, :, needle].all()) and table.columns[0, 1, 0].tolist() == [needle]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"last_queries": 65}, "got last_queries=65; allowed is 1 to 64"),
        ({"chunk_tokens": 24}, "got chunk_tokens=24; allowed is a multiple of block_tokens=16, or None"),
        ({"block_tokens": 48}, "got block_tokens=48; allowed are 16, 32, 64 and 128"),
        (
            {"local_tokens": 24, "chunk_tokens": 32},
            "got local_tokens=24; allowed is a multiple of block_tokens=16 that",
        ),
        ({"slash_tokens": -1}, "got slash_tokens=-1; allowed is 0 or more"),
        ({"first_place": torch.zeros(2, dtype=torch.int32)}, r"got first_place \[2\] of torch.int32"),
    ],
)
def test_errors(change: dict, message: str) -> None:
    q, k = draw(1, 2, 1, 32, 64, 16, "cpu")
    options = {"scale": 1.0, "block_tokens": 16, "vertical_tokens": 4, "slash_tokens": 4} | change
    with pytest.raises(ValueError, match=message):
        vertical_slash_table(q, k, **options)


def test_shape_errors() -> None:
    q, k = draw(1, 3, 2, 8, 16, 16, "cpu")
    with pytest.raises(ValueError, match="H a multiple of K"):
        vertical_slash(q, k, scale=1.0)
    with pytest.raises(ValueError, match="the queries are the last T keys"):
        vertical_slash(k, q[:, :2, :4], scale=1.0)
    with pytest.raises(ValueError, match="both must have one dtype"):
        vertical_slash(k, k.half(), scale=1.0)
