"""The CPU path of `gather_decode` against its naive twin."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from longspan.ops.decode import gather_decode
from longspan.ops.decode.cpu import cpu_gather_decode
from longspan.ops.decode.naive import naive_gather_decode

SCALE = 0.2


def numbers(rows: tuple[int, ...], width: int, upper: int) -> Tensor:
    """Distinct random numbers from -2 to `upper` + 1: `[*rows, width]`, some of them out of range."""
    return (torch.rand(*rows, upper + 4).argsort(dim=-1)[..., :width] - 2).int()


def assert_close(
    found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float = 1e-5
) -> None:
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype
        torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("seed", range(150))
def test_equals_naive(seed: int) -> None:
    torch.manual_seed(seed)
    draw = random.Random(seed)
    B, K, G = draw.choice([1, 2]), draw.choice([1, 2, 3]), draw.choice([1, 2, 4, 8, 16])
    T, page, D = draw.choice([1, 1, 2, 5, 16]), draw.choice([1, 1, 16, 64]), draw.choice([16, 64, 80, 128])
    S = T + draw.choice([0, 1, 63, 129, 300])
    num_pages = -(-(S - T) // page)
    width = draw.choice([0, min(2, num_pages), num_pages, num_pages + 3])
    index = numbers((B, draw.choice([1, K])), width, num_pages)
    q, k, v = torch.randn(B, K * G, T, D), torch.randn(B, K, S, D), torch.randn(B, K, S, D)
    if draw.random() < 0.5:  # tokens before heads, as projections give them
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    found = cpu_gather_decode(q, k, v, index, scale=SCALE, page_tokens=page)
    assert_close(found, naive_gather_decode(q, k, v, index, scale=SCALE, page_tokens=page))


@pytest.mark.parametrize("page", [1, 16])
@pytest.mark.parametrize("T", [1, 3])
def test_keys_that_nobody_visits_may_hold_anything(T: int, page: int) -> None:
    torch.manual_seed(T)
    q, k, v = torch.randn(1, 4, T, 16), torch.randn(1, 2, 203 + T, 16), torch.randn(1, 2, 203 + T, 16)
    last = 203 // page  # cut short by the own tokens where pages are longer than 1
    index = torch.tensor([[[3, -1, 1, 5, -1], [-1, last, 2, -1, 400]]]).int()
    expected = naive_gather_decode(q, k, v, index, scale=SCALE, page_tokens=page)
    visited = torch.zeros(2, 203 + T, dtype=torch.bool)
    visited[:, 203:] = True
    for kv, pages in enumerate(([3, 1, 5], [last, 2])):
        for p in pages:
            visited[kv, p * page : (p + 1) * page] = True
    k[0, ~visited], v[0, ~visited] = torch.nan, torch.nan
    assert torch.isnan(k).any()
    assert_close(cpu_gather_decode(q, k, v, index, scale=SCALE, page_tokens=page), expected)


@pytest.mark.parametrize(
    "index", [torch.zeros(1, 2, 0), torch.full((1, 1, 4), -1), torch.full((1, 2, 1), 99)]
)
def test_own_tokens_alone(index: Tensor) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 3, 16), torch.randn(1, 2, 50, 16), torch.randn(1, 2, 50, 16)
    k[:, :, :47], v[:, :, :47] = torch.nan, torch.nan
    out, _ = cpu_gather_decode(q, k, v, index.int(), scale=SCALE)
    own = torch.nn.functional.scaled_dot_product_attention(
        q, k[:, :, 47:], v[:, :, 47:], is_causal=True, enable_gqa=True, scale=SCALE
    )
    torch.testing.assert_close(out, own, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, n, 64).to(dtype) for h, n in ((8, 2), (2, 300), (2, 300)))
    index = numbers((2, 2), 9, 19)
    found = cpu_gather_decode(q, k, v, index, scale=SCALE, page_tokens=16)
    assert_close(found, naive_gather_decode(q, k, v, index, scale=SCALE, page_tokens=16), tolerance)


def test_views_of_a_store_with_room() -> None:
    torch.manual_seed(2)
    q, k, v = torch.randn(2, 4, 1, 32), torch.randn(2, 2, 200, 32), torch.randn(2, 2, 200, 32)
    room = torch.full((2, 2, 2, 333, 32), torch.nan)
    room[0, :, :, :200], room[1, :, :, :200] = k, v
    for page, index in ((1, numbers((2, 2), 40, 198)), (16, numbers((2, 1), 6, 13))):
        found = cpu_gather_decode(
            q, room[0, :, :, :200], room[1, :, :, :200], index, scale=SCALE, page_tokens=page
        )
        assert_close(found, naive_gather_decode(q, k, v, index, scale=SCALE, page_tokens=page))


def test_an_index_that_does_not_fit() -> None:
    q, k = torch.randn(1, 4, 1, 16), torch.randn(1, 2, 50, 16)
    with pytest.raises(
        ValueError, match=r"got index \[1, 4, 3\]; allowed is \[1, 1 or 2 \(kv heads\), any\]"
    ):
        gather_decode(q, k, k, torch.zeros(1, 4, 3).int(), scale=SCALE, backend="cpu")
