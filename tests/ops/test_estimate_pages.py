"""Page summaries and scores against plain loops, and the bound they promise; channels and clusters of keys."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longspan.ops.estimate.centroids import centroid_scores, k_means, tokens_of
from longspan.ops.estimate.channels import channel_scores, label_channels, label_keys
from longspan.ops.estimate.pages import mean_pages, minmax_pages, page_scores
from longspan.ops.estimate.select import select_pages, top_k, top_p

TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def _draw(*shape: int, device: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def _dtypes(device: str) -> tuple[torch.dtype, ...]:
    return (torch.float32, torch.float16) + ((torch.bfloat16,) if device == "cuda" else ())


@pytest.mark.parametrize("backend", ["naive", "triton"])
@pytest.mark.parametrize(
    ("S", "page_tokens", "D"), [(1, 16, 16), (63, 16, 80), (129, 24, 64), (300, 64, 32), (45, 1, 16)]
)
def test_summaries_are_those_of_each_page(
    triton_device: str, backend: str, S: int, page_tokens: int, D: int
) -> None:
    for dtype in _dtypes(triton_device):
        store = _draw(2, S + 9, 3, D, device=triton_device, dtype=dtype).transpose(1, 2)
        store[:, :, S:] = torch.nan  # room behind the stored tokens
        keys = store[:, :, :S]
        mean = mean_pages(keys, page_tokens, backend=backend)
        lows, highs = minmax_pages(keys, page_tokens, backend=backend)
        pages = keys.split(page_tokens, dim=2)
        assert mean.shape == lows.shape == highs.shape == (2, 3, len(pages), D)
        assert mean.dtype == lows.dtype == dtype
        for i, page in enumerate(pages):
            torch.testing.assert_close(mean[:, :, i], page.float().mean(2).to(dtype))
            assert torch.equal(lows[:, :, i], page.amin(2))
            assert torch.equal(highs[:, :, i], page.amax(2))


@pytest.mark.parametrize("backend", ["naive", "triton"])
def test_appended_tokens_change_only_their_pages(triton_device: str, backend: str) -> None:
    keys = _draw(1, 2, 150, 16, device=triton_device)
    out = (
        torch.full((1, 2, 20, 16), torch.nan, device=triton_device),
        torch.empty(1, 2, 20, 16, device=triton_device),
    )
    minmax_pages(keys[:, :, :70], 16, out=out, backend=backend)
    keys[:, :, :60] = 99.0  # nobody reads them again
    lows, highs = minmax_pages(keys, 16, start_page=70 // 16, out=out, backend=backend)
    fresh = minmax_pages(_draw(1, 2, 150, 16, device=triton_device), 16, backend="naive")
    assert torch.equal(lows, fresh[0]) and torch.equal(highs, fresh[1])
    assert lows.data_ptr() == out[0].data_ptr() and bool(out[0][:, :, 10:].isnan().all())
    same = mean_pages(keys[:, :, :32], 16, start_page=2, out=out[0], backend=backend)
    assert torch.equal(same, fresh[0][:, :, :2])


def _by_hand(q: Tensor, pages: tuple[Tensor, ...], G: int) -> Tensor:
    """[B, K, G, T, P] by the definition: channel by channel."""
    query = q.float().unflatten(1, (-1, G))[:, :, :, :, None]
    products = [query * x.float()[:, :, None, None] for x in pages]
    return torch.stack(products).amax(0).sum(-1)


@pytest.mark.parametrize("backend", ["naive", "triton"])
@pytest.mark.parametrize(
    ("G", "T", "P", "D"),
    [(1, 1, 1, 16), (4, 1, 63, 128), (2, 3, 65, 80), (8, 1, 129, 64), (16, 2, 40, 32), (3, 5, 33, 256)],
)
def test_scores_are_the_definition(triton_device: str, backend: str, G: int, T: int, P: int, D: int) -> None:
    B, K = 2, 2
    lengths = torch.tensor([P, max(0, P - 20)], dtype=torch.int32, device=triton_device)
    for dtype in _dtypes(triton_device):
        q = _draw(B, T, K * G, D, device=triton_device, dtype=dtype).transpose(1, 2)
        buffers = _draw(2, B, K, P + 5, D, device=triton_device, dtype=dtype, seed=1)
        buffers[:, :, :, P:] = torch.nan
        low, high = buffers.amin(0)[:, :, :P], buffers.amax(0)[:, :, :P]
        for kind, pages in (("mean", (low,)), ("minmax", (low, high))):
            exact = _by_hand(q, pages, G) * 0.5
            for reduce in ("max", "sum"):
                for per_head in (False, True):
                    over = (3,) if per_head else (2, 3)
                    expected = exact.amax(over) if reduce == "max" else exact.sum(over)
                    expected = expected.reshape(B, -1, P)
                    got = page_scores(
                        q,
                        pages if kind == "minmax" else low,
                        kind=kind,
                        scale=0.5,
                        reduce=reduce,
                        per_head=per_head,
                        lengths=lengths if per_head else None,
                        backend=backend,
                    )
                    assert got.dtype == torch.float32 and got.shape == expected.shape
                    if per_head:
                        expected[1, :, int(lengths[1]) :] = -torch.inf
                    tolerance = TOLERANCE[dtype] if dtype == torch.float32 else 1e-4
                    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * D**0.5)


def test_nobody_reads_pages_behind_the_length(triton_device: str) -> None:
    q = _draw(2, 4, 1, 32, device=triton_device)
    lows, highs = (_draw(2, 2, 50, 32, device=triton_device, seed=i) for i in (1, 2))
    lengths = torch.tensor([17, 0], dtype=torch.int32, device=triton_device)
    lows[0, :, 17:], highs[1] = torch.nan, torch.nan
    index = select_pages(q, (lows, highs), 4, kind="minmax", lengths=lengths, backend="triton")
    assert int(index[0].min()) >= 0 and int(index[0].max()) < 17
    assert bool((index[1] == -1).all())


@pytest.mark.parametrize("backend", ["naive", "triton"])
def test_minmax_bounds_every_token(triton_device: str, backend: str) -> None:
    for dtype in _dtypes(triton_device):
        q = _draw(1, 4, 1, 64, device=triton_device, dtype=dtype)
        keys = _draw(1, 2, 300, 64, device=triton_device, dtype=dtype, seed=1)
        bound = page_scores(
            q, minmax_pages(keys, 16, backend=backend), kind="minmax", per_head=True, backend=backend
        )
        tokens = q.float() @ keys.float().repeat_interleave(2, 1).transpose(-1, -2)
        slack = bound.repeat_interleave(16, -1)[..., :300] - tokens[:, :, 0]
        assert float(slack.min()) >= -1e-4
        single = page_scores(
            q, minmax_pages(keys, 1, backend=backend), kind="minmax", per_head=True, backend=backend
        )
        torch.testing.assert_close(
            single, tokens[:, :, 0], rtol=1e-4, atol=1e-3
        )  # and is tight for one token


@pytest.mark.parametrize("backend", ["naive", "triton"])
def test_select_pages_finds_the_planted_page(triton_device: str, backend: str) -> None:
    q = _draw(1, 4, 1, 32, device=triton_device)
    keys = 0.1 * _draw(1, 2, 500, 32, device=triton_device, seed=1)
    keys[0, 0, 333], keys[0, 1, 77] = q[0, 1, 0], q[0, 2, 0]
    for kind, pages in (
        ("mean", mean_pages(keys, 16, backend=backend)),
        ("minmax", minmax_pages(keys, 16, backend=backend)),
    ):
        index = select_pages(q, pages, 3, kind=kind, always_first=1, always_last=1, backend=backend)
        assert index.tolist() == [[[0, 333 // 16, 31], [0, 77 // 16, 31]]]


@pytest.mark.parametrize("backend", ["naive", "triton"])
def test_channels_hold_the_scores(triton_device: str, backend: str) -> None:
    heavy = torch.tensor([[1, 5, 9], [0, 30, 31]])
    keys = 1e-3 * _draw(1, 2, 200, 32, device=triton_device)
    for head in range(2):
        keys[0, head, :, heavy[head]] *= 1e4
    q = _draw(1, 6, 2, 32, device=triton_device, seed=1)
    channels = label_channels(keys, 3)
    assert channels.tolist() == heavy.tolist()
    scores = channel_scores(
        q, label_keys(keys, channels), channels, scale=0.25, per_head=True, reduce="sum", backend=backend
    )
    exact = 0.25 * (q @ keys.repeat_interleave(3, 1).transpose(-1, -2)).sum(2)
    torch.testing.assert_close(scores, exact, rtol=1e-2, atol=2e-2)
    q[..., :16] *= 1e-4  # what queries do not ask for is worth nothing
    assert label_channels(keys, 2, q_BHTD=q)[1].tolist() == [30, 31]


def test_k_means_finds_separated_clusters(triton_device: str) -> None:
    centers = 20 * _draw(2, 2, 8, 16, device=triton_device)
    label = torch.arange(200, device=triton_device) * 7 % 8
    keys = centers[:, :, label] + 0.1 * _draw(2, 2, 200, 16, device=triton_device, seed=1)
    found = k_means(keys, 8, iterations=3, seed=3)
    distance = torch.cdist(found.means_BKCD, centers)
    assert float(distance.amin(-1).max()) < 0.5 and float(distance.amin(-2).max()) < 0.5
    for b in range(2):
        for head in range(2):
            starts, order = found.starts_BKC[b, head].tolist(), found.order_BKS[b, head]
            assert starts[0] == 0 and starts[-1] == 200 and sorted(order.tolist()) == list(range(200))
            for c in range(8):
                tokens = order[starts[c] : starts[c + 1]]
                assert len(tokens) == 25 and len(set(label[tokens.long()].tolist())) == 1
                assert tokens.tolist() == sorted(tokens.tolist())


@pytest.mark.parametrize("backend", ["naive", "triton"])
def test_tokens_of_the_best_clusters(triton_device: str, backend: str) -> None:
    keys = _draw(1, 2, 120, 16, device=triton_device)
    found = k_means(keys, 7, iterations=4)
    q = _draw(1, 4, 1, 16, device=triton_device, seed=1)
    scores = centroid_scores(q, found, scale=0.5, backend=backend)
    exact = 0.5 * (q @ found.means_BKCD.repeat_interleave(2, 1).transpose(-1, -2))
    torch.testing.assert_close(scores, exact[:, :, 0].unflatten(1, (2, 2)).amax(2), rtol=1e-5, atol=1e-5)
    counted = centroid_scores(q, found, scale=0.5, count_tokens=True, backend=backend)
    sizes = found.starts_BKC.diff(dim=-1)
    torch.testing.assert_close(counted, scores + sizes.float().log())
    chosen, counts = top_p(counted, 0.8, 5, backend=backend)
    tokens = tokens_of(found, chosen, 120)
    for head in range(2):
        picked = [c for c in chosen[0, head].tolist() if c >= 0]
        assert len(picked) == int(counts[0, head])
        starts, order = found.starts_BKC[0, head].tolist(), found.order_BKS[0, head].tolist()
        expected = [t for c in picked for t in order[starts[c] : starts[c + 1]]]
        assert tokens[0, head].tolist() == expected + [-1] * (120 - len(expected))
        assert tokens_of(found, chosen, 9)[0, head].tolist() == (expected + [-1] * 9)[:9]


def test_k_means_with_as_many_centroids_as_keys(triton_device: str) -> None:
    keys = _draw(1, 1, 6, 16, device=triton_device).repeat(
        1, 1, 2, 1
    )  # every key twice: some clusters stay empty
    found = k_means(keys, 12, iterations=2)
    assert bool(torch.isfinite(found.means_BKCD).all())
    best = top_k(centroid_scores(keys[:, :, :1], found, count_tokens=True), 12)
    assert int((best >= 0).sum()) == int((found.starts_BKC.diff(dim=-1) > 0).sum())


def test_wrong_calls_are_refused() -> None:
    keys, q = torch.zeros(1, 2, 40, 16), torch.zeros(1, 4, 1, 16)
    with pytest.raises(ValueError, match=r"got page_tokens=0; allowed is 1 to 1024"):
        mean_pages(keys, 0)
    with pytest.raises(ValueError, match=r"got start_page=1; allowed is 0 to 3"):
        mean_pages(keys, 16, start_page=1)
    with pytest.raises(ValueError, match=r"got out \[1, 2, 2, 16\]; allowed is \[1, 2, 3 or more, 16\]"):
        mean_pages(keys, 16, out=keys[:, :, :2])
    with pytest.raises(ValueError, match=r"got 1 tensors of pages for kind='minmax'"):
        page_scores(q, keys, kind="minmax")
    with pytest.raises(ValueError, match="got kind='median'"):
        page_scores(q, keys, kind="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="H a multiple of K"):
        page_scores(q[:, :3], keys, kind="mean")
    with pytest.raises(ValueError, match="got pages of torch.float16"):
        page_scores(q, keys.half(), kind="mean")
    with pytest.raises(ValueError, match=r"got lengths \[2\] of torch.int32"):
        page_scores(q, keys, kind="mean", lengths=torch.zeros(2, dtype=torch.int32))
    with pytest.raises(ValueError, match="got num_channels=17; allowed is 1 to the head dimension, 16"):
        label_channels(keys, 17)
    with pytest.raises(ValueError, match="num_centroids=41"):
        k_means(keys, 41)
