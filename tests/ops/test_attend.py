"""The fast attention path against the naive twin: every visit, position form, bias, grouped heads, odd lengths."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from longspan.ops.attend import Problem, Rotary, attend, last_attention, naive_attend
from longspan.ops.attend.gather import table_of_gather
from longspan.ops.attend.partial import partial_attend
from longspan.ops.backend import watch_backends
from longspan.ops.merge_states import merge_states
from longspan.visit import Band, BlockTable, Dense, Gather, PerHead, Ranges, Visit

D = 16
WINDOW = 11
KINDS = ("dense", "ranges", "shared", "per kv head", "per head", "table", "compact", "mixed")


def _bands() -> tuple[Band, ...]:
    near = Band(low=lambda p: p - WINDOW + 1, high=lambda p: p + 1, query=lambda p: p, key=lambda p: p)
    far = Band(
        low=torch.zeros_like,
        high=lambda p: p - WINDOW + 1,
        query=lambda p: p // 4 + WINDOW - WINDOW // 4,
        key=lambda p: p // 4,
    )
    return near, far


def _positions(form: str, B: int, K: int, T: int, S: int) -> tuple[Tensor, int | None]:
    if form == "contiguous":
        return torch.arange(5, 5 + S).expand(B, 1, S), 5
    if form == "holes":  # every kv head kept other tokens
        kept = torch.stack([torch.randperm(4 * S)[:S] for _ in range(B * K)]).sort(-1).values.view(B, K, S)
        kept[..., S - T :] = torch.arange(4 * S, 4 * S + T)
        return kept, None
    pad = 3 * torch.arange(B)[:, None, None]
    at = torch.arange(S).expand(B, 1, S)
    return torch.where(at < pad, -1, at - pad), None


def _visit(kind: str, B: int, H: int, K: int, T: int, past: int, rng: random.Random) -> Visit:
    if kind == "dense":
        return Dense()
    if kind == "ranges":
        return Ranges(sink_tokens=7, window_tokens=20)
    if kind == "mixed":
        few = torch.arange(min(4, past)).expand(B, 1, 1, -1)
        rest = tuple(range(2, H))
        return PerHead(
            parts=(((0,), Dense()), (rest, Ranges(sink_tokens=2, window_tokens=9)), ((1,), Gather(index=few)))
        )
    if kind == "table":
        return _table(B, H, T, past + T)
    heads = {"shared": 1, "compact": 1, "per kv head": K, "per head": H}[kind]
    block = None if kind == "compact" else -(-T // 3)
    rows = 1 if block is None else -(-T // block)
    index = torch.full((B, heads, rows, min(past, 13)), -1)
    for b, h, n in itertools.product(range(B), range(heads), range(rows)):
        chosen = sorted(rng.sample(range(past), rng.randint(0, index.shape[-1])))
        index[b, h, n, : len(chosen)] = torch.tensor(chosen, dtype=torch.long)
    return Gather(index=index, query_block_tokens=block, compact=kind == "compact")


def _table(B: int, H: int, T: int, S: int) -> BlockTable:
    """A third of the blocks and two single keys for each query head, a sink and the tokens right before each query."""
    rows, blocks = -(-T // 16), -(-S // 16)
    return BlockTable(
        index=torch.rand(B, H, rows, blocks).argsort(-1).int(),
        counts=torch.randint(0, blocks // 3 + 1, (B, H, rows)).int(),
        block_tokens=16,
        columns=torch.rand(B, H, -(-rows // 2), S).argsort(-1)[..., :2].int(),
        column_query_tokens=32,
        sink_tokens=3,
        window_tokens=5,
    )


def make_problem(
    kind: str, *, form: str = "contiguous", rotary: str = "none", bias: str = "none",
    heads: tuple[int, int, int] = (2, 8, 2), T: int = 33, S: int = 129, seed: int = 0,
) -> Problem:  # fmt: skip
    torch.manual_seed(seed)
    B, H, K = heads
    keys, values = (
        torch.randn(B, K, S + 7, D)[:, :, :S],
        torch.randn(B, K, S + 7, D)[:, :, :S],
    )  # spare room behind
    positions, start = _positions(form, B, K, T, S)
    inv_freq = 1 / 10000 ** (torch.arange(0, D // 2, 2).float() / (D // 2))
    given = {"none": None, "plain": (), "bands": _bands()}[rotary]
    return Problem(
        queries=torch.randn(B, H, T, D),
        keys=keys,
        values=values,
        query_positions=positions[:, 0, S - T :],
        key_positions=positions,
        num_new=T,
        scale=0.3,
        visit=_visit(kind, B, H, K, T, S - T, random.Random(seed)),
        rotary=None if given is None else Rotary(inv_freq=inv_freq, scaling=1.1, bands=given),
        bias={"none": None, "shared": torch.randn(B, 1, S), "per head": torch.randn(B, H, S)}[bias],
        contiguous_from=start,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rotary", ["none", "plain", "bands"])
def test_fast_equals_naive(kind: str, rotary: str) -> None:
    if kind == "compact" and rotary == "none":
        pytest.skip("renumbering needs keys before rotation")
    forms = ("contiguous", "holes") if kind == "compact" else ("contiguous", "holes", "padded")
    shapes = [
        ((1, 4, 4), 1, 1),
        ((1, 8, 2), 1, 50),
        ((2, 8, 2), 33, 33),
        ((2, 4, 1), 64, 129),
        ((1, 8, 2), 63, 1063),
    ]
    for form, bias, (heads, T, S) in itertools.product(forms, ("none", "shared", "per head"), shapes):
        problem = make_problem(kind, form=form, rotary=rotary, bias=bias, heads=heads, T=T, S=S)
        torch.testing.assert_close(
            attend(problem),
            naive_attend(problem),
            atol=1e-4,
            rtol=1e-4,
            msg=lambda m, at=(form, bias, T, S): f"{at}: {m}",
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rotary", ["none", "plain", "bands"])
def test_last_attention_is_that_of_the_last_query(kind: str, rotary: str) -> None:
    if kind == "compact" and rotary != "plain":
        pytest.skip("renumbering needs keys before rotation, and takes the place of bands")
    shapes = [((1, 4, 4), 1, 1), ((1, 8, 2), 1, 50), ((2, 8, 2), 33, 129), ((2, 4, 1), 7, 129)]
    forms = ("contiguous", "holes") if kind == "compact" else ("contiguous", "holes", "padded")
    for form, bias, (heads, T, S) in itertools.product(forms, ("none", "shared", "per head"), shapes):
        problem = make_problem(kind, form=form, rotary=rotary, bias=bias, heads=heads, T=T, S=S)
        weights, places = last_attention(problem)
        table = torch.zeros(*weights.shape[:2], S + 1).scatter_add_(
            2, torch.where(places < 0, S, places), weights
        )
        values = problem.values.repeat_interleave(problem.num_groups, dim=1)
        torch.testing.assert_close(table[..., S], torch.zeros_like(table[..., S]))
        torch.testing.assert_close(
            (table[..., None, :S] @ values)[:, :, 0],
            naive_attend(problem)[:, :, -1],
            atol=1e-4,
            rtol=1e-4,
            msg=lambda m, at=(form, bias, T, S): f"{at}: {m}",
        )


@pytest.mark.parametrize("kind", ["dense", "ranges", "per head", "mixed"])
def test_bfloat16_stays_close_to_float32(kind: str) -> None:
    problem = make_problem(kind, heads=(1, 8, 2), T=64, S=300)
    half = {name: getattr(problem, name).bfloat16() for name in ("queries", "keys", "values")}
    low = Problem(**{**vars(problem), **half})
    error = (attend(low).float() - naive_attend(problem)).abs().max()
    assert error < 0.05


def test_keys_outside_the_visit_do_not_matter() -> None:
    """Poison every key that is not visited: a path that reads one returns NaN."""
    problem = make_problem("shared", heads=(1, 8, 2), T=1, S=200)
    assert isinstance(problem.visit, Gather)
    expected = attend(problem)
    chosen = set(problem.visit.index[0, 0, 0].tolist()) | {199}
    others = [i for i in range(200) if i not in chosen]
    problem.keys[:, :, others] = float("nan")
    problem.values[:, :, others] = float("nan")
    assert torch.equal(attend(problem), expected)


def test_a_range_does_not_read_the_middle() -> None:
    problem = make_problem("ranges", heads=(1, 8, 2), T=16, S=400)
    expected = attend(problem)
    problem.keys[:, :, 40:300] = float("nan")
    problem.values[:, :, 40:300] = float("nan")
    assert torch.equal(attend(problem), expected)


def test_padding_queries_give_zero() -> None:
    problem = make_problem("dense", form="padded", heads=(2, 8, 2), T=33, S=33)
    out = attend(problem)
    assert torch.equal(out[1, :, :3], torch.zeros_like(out[1, :, :3])) and out[1, :, 3:].abs().min() > 0


def test_partials_merge_to_the_whole() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 5, D), torch.randn(1, 2, 90, D), torch.randn(1, 2, 90, D)
    whole, lse = partial_attend(q, k, v, scale=0.2)
    parts = [
        partial_attend(q, k[:, :, cut], v[:, :, cut], scale=0.2)
        for cut in (slice(0, 7), slice(7, 60), slice(60, 90))
    ]
    nothing = partial_attend(q, k[:, :, :3], v[:, :, :3], scale=0.2, mask=torch.zeros(5, 3, dtype=torch.bool))
    merged, total = merge_states([*parts, nothing])
    torch.testing.assert_close(merged, whole)
    torch.testing.assert_close(total, lse)
    assert torch.isinf(nothing[1]).all() and not nothing[0].any()


def single_row(heads: int, T: int, past: int) -> Problem:
    """Queries that share one row of chosen keys, some slots of it unused."""
    problem = make_problem("shared", heads=(2, 8, 2), T=T, S=past + T)
    index = torch.rand(2, heads, 1, past).argsort(-1)[..., :13].sort(-1).values
    index[0, 0, 0, 9:] = -1
    return replace(problem, visit=Gather(index=index))


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize(("T", "past"), [(33, 96), (130, 256), (1, 16)])
def test_chosen_keys_as_a_table(heads: int, T: int, past: int) -> None:
    problem = single_row(heads, T, past)
    assert isinstance(problem.visit, Gather)
    table = table_of_gather(problem, problem.visit)
    torch.testing.assert_close(naive_attend(replace(problem, visit=table)), naive_attend(problem))
    torch.testing.assert_close(
        attend(replace(problem, visit=table)), naive_attend(problem), rtol=1e-4, atol=1e-5
    )


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize(("T", "past"), [(33, 96), (130, 256), (33, 97)])
def test_chosen_keys_on_cuda(heads: int, T: int, past: int) -> None:
    problem = single_row(heads, T, past)
    moved = {name: x.cuda() for name, x in vars(problem).items() if isinstance(x, Tensor)}
    on_gpu = Problem(**{**vars(problem), **moved, "visit": _to_cuda(problem.visit)})
    with watch_backends() as seen:
        out = attend(on_gpu)
    chosen = {choice.backend for choice in seen if choice.op == "attend"}
    assert ("block_sparse_prefill" in chosen) == (past % 16 == 0)
    torch.testing.assert_close(out.cpu(), naive_attend(problem), rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_equals_naive(kind: str, dtype: torch.dtype) -> None:
    for form, rotary, T in itertools.product(("contiguous", "holes"), ("plain", "bands"), (1, 63)):
        problem = make_problem(kind, form=form, rotary=rotary, heads=(1, 8, 2), T=T, S=T + 200)
        moved = {
            n: getattr(problem, n).cuda()
            for n in ("queries", "keys", "values", "query_positions", "key_positions")
        }
        for name in ("queries", "keys", "values"):
            moved[name] = moved[name].to(dtype)
        assert problem.rotary is not None
        turned = Rotary(inv_freq=problem.rotary.inv_freq.cuda(), scaling=1.1, bands=problem.rotary.bands)
        visit = _to_cuda(problem.visit)
        on_gpu = Problem(**{**vars(problem), **moved, "rotary": turned, "visit": visit})
        tolerance = 1e-4 if dtype == torch.float32 else 6e-2
        torch.testing.assert_close(
            attend(on_gpu).float().cpu(), naive_attend(problem), atol=tolerance, rtol=tolerance
        )


def _to_cuda(visit: Visit) -> Visit:
    if isinstance(visit, BlockTable):
        moved = {name: x.cuda() for name, x in vars(visit).items() if isinstance(x, Tensor)}
        return replace(visit, **moved)
    if isinstance(visit, Gather):
        return Gather(
            index=visit.index.cuda(), query_block_tokens=visit.query_block_tokens, compact=visit.compact
        )
    if isinstance(visit, PerHead):
        return PerHead(parts=tuple((heads, _to_cuda(part)) for heads, part in visit.parts))
    return visit
