"""Scores of key blocks: means, antidiagonals, 4-bit logits; and the choice of blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from longspan.ops.block_sparse.naive import block_table_mask
from longspan.ops.block_sparse.table import BlockTable
from longspan.ops.estimate.blocks import antidiagonal_scores, mean_block_scores, top_blocks
from longspan.ops.estimate.low_bit import low_bit_block_scores, quantise_low_bit

BACKENDS = ("naive", "triton")
SHAPES = [
    # B, H, K, T, S, D, block, first
    (1, 1, 1, 1, 1, 16, 16, None),
    (1, 4, 1, 63, 129, 16, 16, None),
    (2, 2, 2, 70, 100, 80, 32, (0, 45)),
    (1, 2, 1, 130, 130, 32, 64, (129,)),
]


def draw(case: tuple, device: str) -> tuple[Tensor, Tensor, Tensor | None, list[int]]:
    B, H, K, T, S, D, _, first = case
    generator = torch.Generator().manual_seed(S)
    q, k = torch.randn(B, H, T, D, generator=generator), torch.randn(B, K, S + 3, D, generator=generator)
    for b, place in enumerate(first or ()):
        k[b, :, :place] = torch.nan
        q[b, :, : max(0, place - (S - T))] = torch.nan
    places = None if first is None else torch.tensor(first, dtype=torch.int32, device=device)
    return q.to(device), k.to(device)[:, :, :S], places, list(first or [0] * B)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SHAPES)
def test_mean_block_scores(backend: str, case: tuple, triton_device: str) -> None:
    B, H, K, T, S, _, block, _ = case
    q, k, places, first = draw(case, triton_device)
    scores = mean_block_scores(q, k, block, first_place=places, backend=backend)
    for b in range(B):
        for i in range(-(-T // block)):
            for j in range(-(-S // block)):
                queries = q[b, :, max(i * block, first[b] - (S - T)) : (i + 1) * block]
                keys = k[b, :, max(j * block, first[b]) : (j + 1) * block]
                expected = torch.full((H,), -torch.inf, device=triton_device)
                if queries.shape[1] and keys.shape[1]:
                    expected = (queries.mean(1) * keys.mean(1).repeat_interleave(H // K, 0)).sum(-1)
                torch.testing.assert_close(scores[b, :, i, j], expected, atol=1e-5, rtol=1e-5)


def antidiagonals_by_loops(q: Tensor, k: Tensor, case: tuple, stride: int, scale: float, first: list[int]):
    B, H, K, T, S, _, block, _ = case
    dots = torch.einsum("bhtd,bhsd->bhts", q, k.repeat_interleave(H // K, 1)).double().cpu()
    out = torch.zeros(B, H, -(-T // block), -(-S // block), dtype=torch.float64)
    for b in range(B):
        asking = [a for a in range(-(-T // stride)) if S - T + min(T, (a + 1) * stride) - 1 >= first[b]]
        for a in asking:
            seen, logits = [], []
            for c in range(-(-S // stride)):
                if (c + 1) * stride <= first[b] or c * stride > max(S - T + a * stride, first[b]):
                    continue
                pairs = [(a * stride + stride - 1 - i, c * stride + i) for i in range(stride)]
                pairs = [(t, s) for t, s in pairs if t < T and s < S and min(S - T + t, s) >= first[b]]
                seen.append(c)
                logits.append(sum((dots[b, :, t, s] for t, s in pairs), torch.zeros(H)) * scale / stride)
            weights = torch.softmax(torch.stack(logits, -1), dim=-1)
            row = a * stride // block
            count = sum(other * stride // block == row for other in asking)
            for n, c in enumerate(seen):
                out[b, :, row, c * stride // block] += weights[:, n] / count
    return out.float()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SHAPES)
def test_antidiagonal_scores(backend: str, case: tuple, triton_device: str) -> None:
    q, k, places, first = draw(case, triton_device)
    for stride in (4, 16):
        scores = antidiagonal_scores(
            q, k, block_tokens=case[6], stride=stride, scale=0.7, first_place=places, backend=backend
        )
        expected = antidiagonals_by_loops(q, k, case, stride, 0.7, first)
        torch.testing.assert_close(scores.cpu(), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_planted_column_is_found_by_antidiagonals(backend: str, triton_device: str) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k = (
        torch.randn(1, 1, 64, 32, generator=generator),
        0.1 * torch.randn(1, 1, 256, 32, generator=generator),
    )
    q[..., 0], k[0, 0, 83, 0] = 4.0, 40.0  # every query looks at place 83
    options = {"block_tokens": 16, "stride": 8, "scale": 1.0, "backend": backend}
    scores = antidiagonal_scores(q.to(triton_device), k.to(triton_device), **options)
    assert bool((scores.argmax(-1) == 83 // 16).all()) and float(scores.max(-1).values.min()) > 0.9


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("per_query", [False, True])
def test_low_bit_block_scores(backend: str, case: tuple, per_query: bool, triton_device: str) -> None:
    B, H, K, T, S, _, block, _ = case
    q, k, places, first = draw(case, triton_device)

    def rounded(x: Tensor) -> Tensor:
        step = x.abs().amax(-1, keepdim=True) / 7
        return torch.floor(x / step + 0.5).clamp(-7, 7) * step

    logits = 0.3 * rounded(q) @ rounded(k).repeat_interleave(H // K, 1).transpose(-1, -2)
    place, query = torch.arange(S), torch.arange(S - T, S)[:, None]
    size = 1 if per_query else block
    for reduce in ("max", "logsumexp"):
        options = {"block_tokens": block, "reduce": reduce, "per_query": per_query, "first_place": places}
        scores = low_bit_block_scores(q, k, scale=0.3, **options, backend=backend).cpu()
        assert scores.shape == (B, H, -(-T // size), -(-S // block))
        for b in range(B):
            seen = (place <= query) & (place >= first[b])
            seen_logits = logits[b].cpu().masked_fill(~seen, -torch.inf)
            for i in range(scores.shape[2]):
                for j in range(scores.shape[3]):
                    tile = seen_logits[:, i * size : (i + 1) * size, j * block : (j + 1) * block].flatten(1)
                    expected = tile.amax(1) if reduce == "max" else torch.logsumexp(tile, 1)
                    torch.testing.assert_close(scores[b, :, i, j], expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, triton_device: str) -> None:
    if triton_device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("the interpreter has no bfloat16")
    q, k, _, _ = draw((1, 2, 1, 64, 150, 128, 32, None), triton_device)
    q, k = q.to(dtype), k.to(dtype)
    options = {"block_tokens": 32, "stride": 8, "scale": 0.2}
    torch.testing.assert_close(
        antidiagonal_scores(q, k, **options, backend="triton"),
        antidiagonal_scores(q.float(), k.float(), **options, backend="naive"),
        atol=1e-3,
        rtol=1e-3,
    )
    torch.testing.assert_close(
        mean_block_scores(q, k, 32, backend="triton"),
        mean_block_scores(q.float(), k.float(), 32, backend="naive"),
        atol=1e-4,
        rtol=1e-4,
    )
    for ours, theirs in zip(
        quantise_low_bit(k, backend="triton"), quantise_low_bit(k, backend="naive"), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_quantised_keys_are_used(triton_device: str) -> None:
    q, k, _, _ = draw(SHAPES[1], triton_device)
    keys = quantise_low_bit(k, backend="triton")
    assert int(keys[0].abs().max()) == 7
    error = (keys[0] * keys[1][..., None] - k).abs().amax(-1)
    assert bool((error <= keys[1] * 0.5001).all())
    options = {"scale": 1.0, "block_tokens": 16, "backend": "triton"}
    doubled = low_bit_block_scores(q, k, **options, quantised_keys=(keys[0], 2 * keys[1]))
    torch.testing.assert_close(doubled, 2 * low_bit_block_scores(q, k, **options))


@pytest.mark.parametrize(("T", "S"), [(64, 128), (50, 117)])
def test_top_blocks_by_number(T: int, S: int, triton_device: str) -> None:
    block = 16
    NQ, NK = -(-T // block), -(-S // block)
    scores = torch.randn(2, 3, NQ, NK, generator=torch.Generator().manual_seed(T)).to(triton_device)
    sizes = {"num_queries": T, "num_tokens": S, "block_tokens": block}
    for budget in (1, 4, 100):
        index, counts = top_blocks(scores, **sizes, num_blocks=budget)
        for row in range(NQ):
            own = set(
                range((S - T + row * block) // block, (S - T + min(T, (row + 1) * block) - 1) // block + 1)
            )
            size = min(max(budget, 1 if (S - T) % block == 0 else 2), max(own) + 1)
            for b, h in ((b, h) for b in range(2) for h in range(3)):
                used = index[b, h, row, : counts[b, h, row]].tolist()
                rest = sorted(range(min(own)), key=lambda j: -float(scores[b, h, row, j]))
                assert len(used) == size and own <= set(used)
                assert set(used) == own | set(rest[: size - len(own)])
        table = BlockTable(index=index, counts=counts, block_tokens=block)
        q, k = torch.zeros(2, 3, T, 16, device=triton_device), torch.zeros(2, 3, S, 16, device=triton_device)
        mask = block_table_mask(q, k, table)
        assert bool(mask[:, :, torch.arange(T), S - T + torch.arange(T)].all())


def test_top_blocks_by_mass(triton_device: str) -> None:
    scores = torch.tensor([[0.5, 0.5, 9.0, 9.0], [0.1, 0.6, 0.3, 9.0], [0.4, 0.3, 0.2, 0.1]])
    scores = scores.to(triton_device)[None, None]
    sizes = {"num_queries": 48, "num_tokens": 64, "block_tokens": 16}
    index, counts = top_blocks(scores, **sizes, mass=0.85)
    # own block first: 0.5 + 0.5 of 1; 0.3 + 0.6 of 1; 0.1 + 0.4 + 0.3 is not enough
    assert counts[0, 0].tolist() == [2, 2, 4]
    assert index[0, 0, 1].tolist() == [2, 1, -1, -1]
    _, counts = top_blocks(scores, **sizes, mass=0.45)
    assert counts[0, 0].tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, k: mean_block_scores(q, k, 20), "got block_tokens=20; allowed are 16, 32, 64 and 128"),
        (
            lambda q, k: antidiagonal_scores(q, k, block_tokens=16, stride=32, scale=1.0),
            "got stride=32 with block_tokens=16; allowed are the powers of two from 1 to 16",
        ),
        (
            lambda q, k: low_bit_block_scores(q, k, scale=1.0, block_tokens=16, reduce="mean"),
            "got reduce='mean'; allowed are 'max' and 'logsumexp'",
        ),
        (lambda q, k: quantise_low_bit(q[0]), r"allowed is \[B, h, S, D\] of a float type"),
        (
            lambda q, k: top_blocks(torch.zeros(1, 1, 2, 3), num_queries=32, num_tokens=64, block_tokens=16),
            r"allowed is \[B, h, 2, 4\]",
        ),
        (
            lambda q, k: top_blocks(torch.zeros(1, 1, 2, 4), num_queries=32, num_tokens=64, block_tokens=16),
            "got num_blocks=None and mass=None; give one of them",
        ),
        (
            lambda q, k: top_blocks(
                torch.zeros(1, 1, 2, 4), num_queries=32, num_tokens=64, block_tokens=16, mass=math.inf
            ),
            "got mass=inf; allowed is above 0 and up to 1",
        ),
    ],
)
def test_errors(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 2, 32, 16), torch.zeros(1, 1, 64, 16))
