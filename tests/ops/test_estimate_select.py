"""Selections against torch.topk and against sums in sorted order."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from longspan.ops.estimate.select import top_k, top_p


def _scores(*shape: int, device: str, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def _check_top_k(scores: Tensor, index: Tensor, k: int) -> None:
    """Ascending, distinct, exactly the values that torch.topk has, -1 where there are no more."""
    B, h, N = scores.shape
    assert index.shape == (B, h, k) and index.dtype == torch.int32
    values = scores.float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    best = values.topk(min(k, N), dim=-1).values
    for row, chosen, expected in zip(
        values.flatten(0, 1), index.flatten(0, 1), best.flatten(0, 1), strict=True
    ):
        expected = expected[expected > -torch.inf]
        number = len(expected)
        assert bool((chosen[number:] == -1).all())
        chosen = chosen[:number].long()
        assert bool((chosen.diff() > 0).all()) and bool((chosen >= 0).all()) and bool((chosen < N).all())
        assert torch.equal(row[chosen].sort(descending=True).values, expected)


def _every_way(scores: Tensor, k: int, **settings: object) -> list[Tensor]:
    """The forms of the kernel, forced on sizes for which the first would do."""
    from longspan.ops.estimate.radix_triton import triton_radix_top_k
    from longspan.ops.estimate.select_triton import triton_top_k

    given = {"always_first": 0, "always_last": 0, "lengths": None, **settings}
    found = [top_k(scores, k, backend=backend, **settings) for backend in ("naive", "triton")]  # type: ignore[arg-type]
    found.append(triton_radix_top_k(scores, k, chunk=2048, **given))  # type: ignore[arg-type]
    if k <= 512:
        found.append(triton_top_k(scores, k, chunk=512, **given))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("N", "k"),
    [(1, 1), (1, 4), (63, 1), (63, 63), (63, 100), (1000, 32), (1000, 1000), (5000, 128), (5000, 3000)],
)
def test_top_k_is_that_of_torch(triton_device: str, N: int, k: int) -> None:
    wide = _scores(2, 3, N + 7, device=triton_device)
    wide[..., N:] = 1e9  # a view: nobody reads behind the row
    scores = wide[..., :N]
    scores[0, 1] = scores[0, 1].round()  # many ties
    scores[0, 2] *= 10.0 ** scores[0, 2]  # many sizes
    scores[1, 0, ::3] = -torch.inf
    scores[1, 1] = 3.0  # all equal
    scores[1, 2] = -torch.inf
    for index in _every_way(scores, k):
        _check_top_k(scores, index, k)


def test_equal_scores_are_taken_in_order(triton_device: str) -> None:
    scores = torch.ones(1, 2, 3000, device=triton_device)
    scores[0, 1, 1500:] = 2.0
    for index in _every_way(scores, 40)[1:]:
        assert index[0, 0].tolist() == list(range(40))
        assert index[0, 1].tolist() == list(range(1500, 1540))


def test_nothing_is_written_behind_the_index(triton_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.ones(1, 1, 3000, device=triton_device)
    guarded: list[Tensor] = []

    def empty(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        guarded.append(torch.full((math.prod(shape) + 9,), 77, dtype=dtype, device=device))
        return guarded[-1][:-9].view(shape)

    top_k(scores, 40, backend="triton")  # imports done before
    monkeypatch.setattr(torch, "empty", empty)
    found = _every_way(scores, 40)[1:]
    monkeypatch.undo()
    assert len(found) == 3 and len(guarded) >= 4
    for index in found:
        assert index.tolist() == [[list(range(40))]]
    for x in guarded:
        assert bool((x[-9:] == 77).all()) and not bool((x[:-9] == 77).any())


def test_extreme_scores(triton_device: str) -> None:
    scores = _scores(1, 4, 900, device=triton_device)
    scores[0, 0, 500], scores[0, 0, 600] = torch.inf, 3.4e38
    scores[0, 1, :700] = torch.nan
    scores[0, 2] = -scores[0, 2].abs() * 1e30
    scores[0, 3] = (torch.arange(900, device=triton_device) % 11 - 5) * 1e-42  # subnormal
    scores[0, 3, 7] = -1e38
    for k in (1, 5, 300):
        for index in _every_way(scores, k):
            _check_top_k(scores, index, k)


def test_half_scores(triton_device: str) -> None:
    scores = _scores(1, 2, 700, device=triton_device).half()
    for index in _every_way(scores, 50):
        _check_top_k(scores, index, 50)


@pytest.mark.parametrize(("first", "last", "k"), [(2, 3, 5), (2, 3, 8), (0, 4, 40), (700, 700, 1500)])
def test_first_and_last_are_always_chosen(triton_device: str, first: int, last: int, k: int) -> None:
    lengths = torch.tensor([1300, 40], dtype=torch.int32, device=triton_device)
    scores = _scores(2, 2, 1300, device=triton_device)
    scores[:, :, 0] = -1e30
    scores[0, 0, 1] = -torch.inf
    for index in _every_way(scores, k, always_first=first, always_last=last, lengths=lengths):
        for b, length in enumerate(lengths.tolist()):
            for head in range(2):
                row = scores[b, head, :length].clone()
                finite = row > -torch.inf
                row[:first], row[max(0, length - last) :] = 1e30, 1e30
                row[~finite] = -torch.inf
                number = min(k, int(finite.sum()))
                expected = row.topk(number).indices.sort().values.tolist()
                assert index[b, head].tolist() == expected + [-1] * (k - number)


def test_long_rows_take_the_forms_for_them(triton_device: str) -> None:
    """Rows that no single program holds: two launches for a small k, histograms for a large one."""
    scores = _scores(1, 1, 40000, device=triton_device)
    for k in (50, 9000):
        index = top_k(scores, k, backend="triton")
        _check_top_k(scores, index, k)


def _check_top_p(mass: Tensor, index: Tensor, counts: Tensor, p: float, max_k: int) -> None:
    for row, chosen, count in zip(
        mass.flatten(0, 1), index.flatten(0, 1), counts.flatten().tolist(), strict=True
    ):
        assert bool((chosen[count:] == -1).all()) and bool((chosen[:count] >= 0).all())
        chosen = chosen[:count].long()
        assert bool((chosen.diff() > 0).all())
        held = row[chosen].sort(descending=True).values
        assert torch.equal(held, row.sort(descending=True).values[:count])  # no better one is left out
        if count < min(max_k, int((row > 0).sum())):
            assert float(held.sum()) >= p - 1e-5
        assert float(held[:-1].sum()) < p + 1e-5  # without the least of them the mass is not reached


@pytest.mark.parametrize("backend", ["naive", "triton"])
@pytest.mark.parametrize(("N", "max_k"), [(1, 1), (63, 63), (1000, 40), (1000, 1200), (5000, 700)])
def test_top_p_holds_the_mass_and_no_more(triton_device: str, backend: str, N: int, max_k: int) -> None:
    scores = 3 * _scores(2, 2, N, device=triton_device)
    scores[0, 1, 1::2] = -torch.inf
    scores[1, 0] = scores[1, 0].round()
    for p in (0.1, 0.9):
        index, counts = top_p(scores, p, max_k, backend=backend)
        assert index.shape == (2, 2, max_k) and counts.dtype == torch.int32
        _check_top_p(scores.double().softmax(-1), index, counts, p, max_k)
        index, counts = top_p(scores.exp(), p, max_k, softmax=False, backend=backend)
        weights = scores.double().exp()
        _check_top_p(weights / weights.sum(-1, keepdim=True), index, counts, p, max_k)


@pytest.mark.parametrize("backend", ["naive", "triton"])
def test_top_p_by_hand(triton_device: str, backend: str) -> None:
    mass = torch.tensor([[[4.0, 1.0, 2.0, 1.0, 2.0]], [[1.0, 1.0, 9.0, 9.0, 9.0]]], device=triton_device)
    lengths = torch.tensor([5, 2], dtype=torch.int32, device=triton_device)
    index, counts = top_p(mass, 0.75, 4, softmax=False, lengths=lengths, backend=backend)
    assert index.tolist() == [[[0, 2, 4, -1]], [[0, 1, -1, -1]]] and counts.tolist() == [[3], [2]]
    index, counts = top_p(mass, 1.0, 2, softmax=False, lengths=lengths, backend=backend)
    assert counts.tolist() == [[2], [2]] and index[0, 0, 0] == 0
    nothing = torch.full((1, 1, 9), -torch.inf, device=triton_device)
    index, counts = top_p(nothing, 0.5, 3, backend=backend)
    assert index.tolist() == [[[-1, -1, -1]]] and counts.tolist() == [[0]]


def test_wrong_calls_are_refused() -> None:
    scores = torch.zeros(1, 2, 9)
    with pytest.raises(ValueError, match=r"got scores \[2, 9\]"):
        top_k(scores[0], 1)
    with pytest.raises(ValueError, match="last dimension contiguous"):
        top_k(scores.transpose(1, 2), 1)
    with pytest.raises(ValueError, match="got scores of torch.int64"):
        top_k(scores.long(), 1)
    with pytest.raises(ValueError, match="got k=0; allowed is 1 or more"):
        top_k(scores, 0)
    with pytest.raises(
        ValueError, match="always_first=2, always_last=2; allowed are 0 or more, together k=3 at most"
    ):
        top_k(scores, 3, always_first=2, always_last=2)
    with pytest.raises(ValueError, match="got p=0; allowed is above 0, up to 1"):
        top_p(scores, 0, 3)
    with pytest.raises(ValueError, match=r"got lengths \[1\] of torch.int64"):
        top_k(scores, 3, lengths=torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="cannot run on backend='triton'"):
        top_p(torch.zeros(1, 1, 20000), 0.5, 20000, backend="triton")
