"""Decoding over the best pages: which pages, and when everything is visited."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longspan.ops.backend import watch_backends
from longspan.ops.decode import naive_gather_decode
from longspan.ops.decode.paged import page_decode
from longspan.ops.estimate.pages import mean_pages, minmax_pages

SCALE, PAGE = 0.25, 16


def draw(T: int, S: int, *, B: int = 2, H: int = 4, K: int = 2, D: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(S + T)
    q, k, v = (torch.randn(B, heads, n, D, generator=generator) for heads, n in ((H, T), (K, S), (K, S)))
    return q, k, v


def dense(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    T, S = q.shape[2], k.shape[2]
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    seen = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    logits = (q @ k.transpose(-1, -2) * SCALE).masked_fill(~seen, -torch.inf)
    return logits.softmax(-1) @ v, logits.logsumexp(-1)


@pytest.mark.parametrize("T", [1, 3])
def test_visits_the_pages_with_the_highest_bounds(T: int) -> None:
    q, k, v = draw(T, 200)
    lows, highs = minmax_pages(k, PAGE)
    out, lse = page_decode(
        q, k, v, (lows, highs), scale=SCALE, keep_tokens=64, page_tokens=PAGE, kind="minmax"
    )
    grouped = q.unflatten(1, (2, 2))
    bounds = torch.maximum(
        grouped[..., None, :] * lows[:, :, None, None], grouped[..., None, :] * highs[:, :, None, None]
    )
    scores = bounds.sum(-1).amax((2, 3))
    scores[..., 0] = scores[..., -1] = torch.inf
    index = scores.topk(4).indices.int()
    want, want_lse = naive_gather_decode(q, k, v, index, scale=SCALE, page_tokens=PAGE)
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, want_lse, rtol=1e-5, atol=1e-5)
    assert (out - dense(q, k, v)[0]).abs().max() > 1e-2


def test_a_needle_far_back_is_read() -> None:
    q, k, v = draw(1, 400, B=1)
    k[0, :, 123] = 8 * q[0, ::2, 0]
    pages = minmax_pages(k, PAGE)
    out, _ = page_decode(q, k, v, pages, scale=1.0, keep_tokens=48, page_tokens=PAGE, kind="minmax")
    torch.testing.assert_close(out[0, ::2, 0], v[0, :, 123], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("options", [{"keep_tokens": 100}, {"keep_tokens": 32, "dense_bytes": 1e6}])
def test_visits_everything_where_that_is_little(T: int, options: dict) -> None:
    q, k, v = draw(T, 100)
    with watch_backends() as seen:
        out, lse = page_decode(
            q, k, v, mean_pages(k, PAGE), scale=SCALE, page_tokens=PAGE, kind="mean", **options
        )
    assert ("page_decode", "dense") in {(choice.op, choice.backend) for choice in seen}
    want, want_lse = dense(q, k, v)
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, want_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep_tokens": 15}, "got keep_tokens=15 with pages of 16 tokens"),
        ({"page_tokens": 0}, "page_tokens"),
        (
            {"pages": torch.zeros(2, 2, 6, 16)},
            r"\[2, 2, 6, 16\]; allowed are a page or more, and 7 pages for 100 tokens",
        ),
        ({"kind": "median"}, "kind"),
    ],
)
def test_errors(change: dict, message: str) -> None:
    q, k, v = draw(1, 100)
    options = {"pages": mean_pages(k, PAGE), "keep_tokens": 32, "page_tokens": PAGE, "kind": "mean"} | change
    with pytest.raises(ValueError, match=message):
        page_decode(q, k, v, scale=SCALE, **options)
