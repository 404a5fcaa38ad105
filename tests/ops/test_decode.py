"""Decoding over ragged stores and chosen tokens: naive against plain softmax, Triton and CPU against naive."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from longspan.ops.backend import watch_backends
from longspan.ops.decode import Ragged, gather_decode, ragged_decode

SCALE = 0.3
Pair = tuple[Tensor, Tensor]


def contiguous(lengths: Tensor, S: int, D: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Ragged:
    """Keys and values are views of larger buffers, and NaN where no head holds a token."""
    generator = torch.Generator().manual_seed(seed)
    B, K = lengths.shape
    keys, values = (torch.randn(B, K, S + 7, D, generator=generator).to(dtype) for _ in range(2))
    held = torch.arange(S + 7) < lengths[..., None]
    keys[~held], values[~held] = torch.nan, torch.nan
    return Ragged(keys=keys[:, :, :S], values=values[:, :, :S], lengths=lengths.int())


def as_pool(store: Ragged) -> Ragged:
    """The same tokens as a pool, heads in reverse order with two poisoned rows between them."""
    B, K, _, D = store.keys.shape
    gap = store.keys.new_full((2, D), torch.nan)
    starts = torch.zeros(B, K, dtype=torch.int64)
    pools: tuple[list[Tensor], list[Tensor]] = ([gap], [gap])
    at = 2
    for b in reversed(range(B)):
        for k in reversed(range(K)):
            length = int(store.lengths[b, k])
            starts[b, k] = at
            for pool, x in zip(pools, (store.keys, store.values), strict=True):
                pool.extend([x[b, k, :length], gap])
            at += length + 2
    return Ragged(keys=torch.cat(pools[0]), values=torch.cat(pools[1]), lengths=store.lengths, starts=starts)


def as_pages(store: Ragged, page_tokens: int) -> Ragged:
    """The same tokens in shuffled pages; entries behind the last page name no page at all."""
    B, K, S, D = store.keys.shape
    most = -(-S // page_tokens)
    order = torch.randperm(B * K * most + 3, generator=torch.Generator().manual_seed(1))
    table = torch.full((B, K, most + 1), -1)
    pages = [store.keys.new_full((len(order), page_tokens, D), torch.nan) for _ in range(2)]
    for b in range(B):
        for k in range(K):
            length = int(store.lengths[b, k])
            for i in range(-(-length // page_tokens)):
                table[b, k, i] = number = int(order[(b * K + k) * most + i])
                rows = slice(i * page_tokens, min((i + 1) * page_tokens, length))
                for page, x in zip(pages, (store.keys, store.values), strict=True):
                    page[number, : rows.stop - rows.start] = x[b, k, rows]
    return Ragged(keys=pages[0], values=pages[1], lengths=store.lengths, page_table=table.int())


FORMS: dict[str, Callable[[Ragged], Ragged]] = {
    "contiguous": lambda store: store,
    "pool": as_pool,
    "pages of 16": lambda store: as_pages(store, 16),
    "pages of 128": lambda store: as_pages(store, 128),
}


def at(device: str, store: Ragged) -> Ragged:
    fields = {f.name: getattr(store, f.name) for f in dataclasses.fields(store)}
    return Ragged(**{name: None if x is None else x.to(device) for name, x in fields.items()})


def queries(B: int, H: int, T: int, D: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A view whose heads lie behind its tokens, as a projection leaves them."""
    return torch.randn(B, T, H, D, generator=torch.Generator().manual_seed(9)).to(dtype).transpose(1, 2)


def plain(q: Tensor, store: Ragged, tree: Tensor | None = None) -> Pair:
    """Softmax of one whole matrix over the contiguous form, its mask built pair by pair."""
    B, H, T, _ = q.shape
    K, S = store.keys.shape[1:3]
    mask = torch.zeros(B, H, T, S, dtype=torch.bool)
    for b in range(B):
        for h in range(H):
            length = int(store.lengths[b, h // (H // K)])
            for t in range(T):
                for s in range(length):
                    u = s - (length - T)
                    mask[b, h, t, s] = u < 0 or (u <= t if tree is None else bool(tree[b % len(tree), t, u]))
    keys, values = (x.nan_to_num(0.0).repeat_interleave(H // K, 1) for x in (store.keys, store.values))
    logits = (q @ keys.transpose(-1, -2) * SCALE).masked_fill(~mask, -torch.inf)
    return torch.softmax(logits, -1).nan_to_num(0.0) @ values, torch.logsumexp(logits, -1)


def close(got: Pair, want: Pair, tolerance: float = 2e-5) -> None:
    assert got[0].dtype == want[0].dtype and got[1].dtype == torch.float32
    torch.testing.assert_close(got[0].float().cpu(), want[0].float().cpu(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(got[1].cpu(), want[1].cpu(), rtol=tolerance, atol=tolerance)


def tree_of(B: int, T: int) -> Tensor:
    tree = torch.rand(B, T, T, generator=torch.Generator().manual_seed(4)) < 0.5
    return tree | torch.eye(T, dtype=torch.bool)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", ["naive", "cpu"])
@pytest.mark.parametrize("trees", [0, 1, 2])
def test_plain_softmax(form: str, backend: str, trees: int) -> None:
    store = contiguous(torch.tensor([[70, 0], [33, 5]]), 70, 16)
    q, tree = queries(2, 4, 5, 16), tree_of(trees, 5) if trees else None
    want = plain(q, store, tree)
    close(ragged_decode(q, FORMS[form](store), scale=SCALE, tree_mask=tree, backend=backend), want)
    assert (want[1][0, 2:] == -torch.inf).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("T", "tree"), [(1, False), (5, True), (16, False)])
def test_triton_on_every_form(form: str, T: int, tree: bool, triton_device: str) -> None:
    store = contiguous(torch.tensor([[300, 1], [0, 129]]), 300, 32)
    moved, q = at(triton_device, FORMS[form](store)), queries(2, 2, T, 32).to(triton_device)
    mask = tree_of(2, T).to(triton_device) if tree else None
    got = ragged_decode(q, moved, scale=SCALE, tree_mask=mask, backend="triton")
    close(got, ragged_decode(q, moved, scale=SCALE, tree_mask=mask, backend="naive"))
    assert torch.isfinite(got[0]).all() and (got[0][1, 0] == 0).all()


@pytest.mark.parametrize("page_tokens", [16, 128])
def test_pages_outside_visit_nothing(page_tokens: int, triton_device: str) -> None:
    whole = contiguous(torch.tensor([[300, 290]]), 300, 32)
    store = as_pages(whole, page_tokens)
    assert store.page_table is not None
    holes = store.page_table.clone()
    holes[0, 0, 1], holes[0, 1, 0] = -1, len(store.keys)
    q = queries(1, 4, 2, 32)
    # what is left, closed up: own tokens are the last ones either way
    kept = [
        torch.arange(300) // page_tokens != 1,
        (torch.arange(300) >= page_tokens) & (torch.arange(300) < 290),
    ]
    lengths = torch.tensor([[int(rows.sum()) for rows in kept]])
    closed = contiguous(lengths, 300, 32)
    for k, rows in enumerate(kept):
        closed.keys[0, k, : lengths[0, k]] = whole.keys[0, k, rows]
        closed.values[0, k, : lengths[0, k]] = whole.values[0, k, rows]
    want = plain(q, closed)
    for backend, device in (("naive", "cpu"), ("cpu", "cpu"), ("triton", triton_device)):
        moved = at(device, dataclasses.replace(store, page_table=holes))
        close(ragged_decode(q.to(device), moved, scale=SCALE, backend=backend), want)


@pytest.mark.parametrize(
    ("groups", "T", "D"),
    [(1, 1, 16), (2, 3, 64), (4, 5, 80), (8, 2, 128), (16, 9, 128), (3, 7, 96), (16, 1, 256)],
)
def test_triton_heads_and_widths(groups: int, T: int, D: int, triton_device: str) -> None:
    store = at(triton_device, contiguous(torch.tensor([[129]]), 129, D))
    q = queries(1, groups, T, D).to(triton_device)
    close(
        ragged_decode(q, store, scale=D**-0.5, backend="triton"),
        ragged_decode(q, store, scale=D**-0.5, backend="naive"),
    )


def test_triton_half_precision(triton_device: str) -> None:
    dtypes = [torch.float16, torch.bfloat16] if triton_device == "cuda" else [torch.float16]
    for dtype in dtypes:
        store = contiguous(torch.tensor([[200, 0, 77]]), 200, 64, dtype)
        q = queries(1, 6, 3, 64, dtype).to(triton_device)
        for form in FORMS.values():
            moved = at(triton_device, form(store))
            got = ragged_decode(q, moved, scale=0.125, backend="triton")
            close(
                got,
                ragged_decode(q, moved, scale=0.125, backend="naive"),
                4e-3 if dtype == torch.float16 else 3e-2,
            )


@pytest.mark.parametrize("waves", [1, 3])
@pytest.mark.parametrize("tma", [False, True])
def test_cuts_of_the_work(waves: int, tma: bool, triton_device: str) -> None:
    """One tile a program, several heads a program, more programs than tiles: the result stays."""
    from longspan.ops.decode.triton import config_for, triton_ragged_decode

    usual = config_for(4, 32, 4)
    config = dataclasses.replace(
        usual, block_tokens=16, least_tiles=2, most_waves=waves, programs_per_sm=3, tma=tma
    )
    forms = ("contiguous", "pool", "pages of 16")
    for i, lengths in enumerate(([100] * 4, [1, 0, 299, 2], [0, 0, 0, 0], [16, 0, 0, 1], [9] * 4)):
        store = FORMS[forms[i % 3]](contiguous(torch.tensor([lengths]), 304, 32))
        moved, q = at(triton_device, store), queries(1, 4, 1, 32).to(triton_device)
        want = ragged_decode(q, moved, scale=SCALE, backend="naive")
        close(triton_ragged_decode(q, moved, scale=SCALE, config=config), want)


def chosen(B: int, h: int, N: int, num_pages: int) -> Tensor:
    """Distinct entries in any order, some of them outside on both sides."""
    generator = torch.Generator().manual_seed(N)
    rows = [torch.randperm(num_pages + 4, generator=generator)[:N] - 2 for _ in range(B * h)]
    return torch.stack(rows).view(B, h, N).int()


@pytest.mark.parametrize(
    ("page_tokens", "N", "h", "T"),
    [(1, 70, 2, 1), (1, 0, 1, 3), (16, 9, 2, 1), (7, 12, 1, 2), (64, 4, 2, 3), (128, 3, 1, 16)],
)
def test_gather(page_tokens: int, N: int, h: int, T: int, triton_device: str) -> None:
    B, K, S, D = 2, 2, 300, 32
    buffer = torch.randn(2, B, S + 9, K, D, generator=torch.Generator().manual_seed(3)).transpose(2, 3)
    k, v = buffer[0, :, :, :S], buffer[1, :, :, :S]
    index = chosen(B, h, N, -(-S // page_tokens))
    visited = torch.zeros(B, K, S, dtype=torch.bool)
    visited[:, :, S - T :] = True
    for b in range(B):
        for kv in range(K):
            for p in index[b, kv % h].tolist():
                if p >= 0:
                    visited[b, kv, p * page_tokens : min((p + 1) * page_tokens, S - T)] = True
    k[~visited], v[~visited] = torch.nan, torch.nan
    q = queries(B, 4, T, D)
    mask = (visited[:, :, None] & (torch.arange(S) <= torch.arange(S - T, S)[:, None])).repeat_interleave(
        2, 1
    )
    keys, values = (x.nan_to_num(0.0).repeat_interleave(2, 1) for x in (k, v))
    logits = (q @ keys.transpose(-1, -2) * SCALE).masked_fill(~mask, -torch.inf)
    want = torch.softmax(logits, -1) @ values, torch.logsumexp(logits, -1)
    close(gather_decode(q, k, v, index, scale=SCALE, page_tokens=page_tokens, backend="naive"), want)
    moved = [x.to(triton_device) for x in (q, buffer[0], buffer[1], index)]
    moved[1:3] = [x[:, :, :S] for x in moved[1:3]]
    close(gather_decode(*moved, scale=SCALE, page_tokens=page_tokens, backend="triton"), want)


def test_what_runs(triton_device: str) -> None:
    store = at(triton_device, contiguous(torch.tensor([[40]]), 40, 16))
    q = queries(1, 2, 1, 16).to(triton_device)
    with watch_backends() as seen:
        ragged_decode(q, store, scale=SCALE)
        ragged_decode(q.clone().requires_grad_(), store, scale=SCALE)
    ran = {choice.backend for choice in seen}
    assert ran == {"triton" if triton_device == "cuda" else "cpu", "naive"}


def test_gradients_reach_queries_and_keys() -> None:
    store = contiguous(torch.tensor([[40, 20]]), 40, 16)
    keys, q = store.keys.nan_to_num(0.0).requires_grad_(), queries(1, 4, 2, 16).requires_grad_()
    store = dataclasses.replace(store, keys=keys, values=store.values.nan_to_num(0.0))
    want = torch.autograd.grad(plain(q, store)[0].square().sum(), (q, keys))
    got = torch.autograd.grad(ragged_decode(q, store, scale=SCALE)[0].square().sum(), (q, keys))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_errors_of_ragged_stores() -> None:
    store = contiguous(torch.tensor([[40, 20]]), 40, 16)
    q = queries(1, 4, 2, 16)

    def fails(message: str, q: Tensor = q, tree: Tensor | None = None, **changed: Tensor | None) -> None:
        with pytest.raises(ValueError, match=message):
            ragged_decode(q, dataclasses.replace(store, **changed), scale=SCALE, tree_mask=tree)

    fails("got 17 queries; allowed is 1 to 16", q=queries(1, 4, 17, 16))
    fails("allowed is one K in all, and H a multiple", q=queries(1, 3, 2, 16))
    fails("allowed are q .* one shape", values=store.values[:, :, :39])
    fails(
        "without starts; allowed is starts with the pool form",
        keys=store.keys[0, 0],
        values=store.values[0, 0],
    )
    fails("with page_table; allowed is page_table with the paged form", page_table=torch.zeros(1, 1, 3).int())
    fails("got lengths of torch.int64; allowed is torch.int32", lengths=store.lengths.long())
    fails("got keys of torch.float16; allowed is torch.float32", keys=store.keys.half())
    fails(r"that end at 41; allowed are lengths", lengths=torch.tensor([[41, 0]]).int())
    fails("got lengths from -1", lengths=torch.tensor([[-1, 0]]).int())
    fails(r"got tree_mask \[3, 2, 2\]; allowed is \[1 or B, T, T\]", tree=tree_of(3, 2))
    fails("got tree_mask of torch.int64; allowed is torch.bool", tree=tree_of(1, 2).long())
    strided = store.keys.repeat_interleave(2, -1)[..., ::2]
    fails("got keys with strides .* without gaps", keys=strided)
    fails("got starts from -1", **vars(dataclasses.replace(as_pool(store), starts=torch.tensor([[-1, 3]]))))


def test_errors_of_gather() -> None:
    q, k, index = queries(1, 4, 2, 16), torch.randn(1, 2, 30, 16), torch.zeros(1, 1, 3).int()
    for message, arguments, page_tokens in (
        ("allowed is .*1 or 2 .kv heads., any", (q, k, k, index.expand(1, 3, 3)), 1),
        ("got page_tokens=0", (q, k, k, index), 0),
        ("got index of torch.int64", (q, k, k, index.long()), 1),
        ("S at least T", (q, k[:, :, :1], k[:, :, :1], index), 1),
        ("k and v of one shape", (q, k, k[:, :, :9], index), 1),
        ("got k of torch.float16", (q, k.half(), k.half(), index), 1),
    ):
        with pytest.raises(ValueError, match=message):
            gather_decode(*arguments, scale=SCALE, page_tokens=page_tokens)
