"""Merging partial attentions: against one softmax over all keys, and Triton against the naive twin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longspan.ops.merge_states import merge_stacked, merge_states


def partials(
    num_parts: int, *, B: int = 2, H: int = 4, T: int = 3, D: int = 32
) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(num_parts)
    return [
        (torch.randn(B, H, T, D, generator=generator), 4 * torch.randn(B, H, T, generator=generator))
        for _ in range(num_parts)
    ]


def emptied(parts: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Row (0, 1) is empty, and poisoned, in all parts; row (1, 2) in all but the last."""
    for i, (out, lse) in enumerate(parts):
        lse[0, 1], out[0, 1] = -torch.inf, torch.nan
        if i < len(parts) - 1:
            lse[1, 2], out[1, 2] = -torch.inf, torch.inf
    return parts


@pytest.mark.parametrize("pieces", [(300,), (1, 299), (129, 100, 71)])
def test_pieces_make_the_whole(pieces: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    logits, values = 3 * torch.randn(2, 4, 5, 300), torch.randn(2, 4, 300, 16)
    parts = [
        (torch.softmax(s, -1) @ v, torch.logsumexp(s, -1))
        for s, v in zip(logits.split(pieces, -1), values.split(pieces, -2), strict=True)
    ]
    out, lse = merge_states(parts)
    torch.testing.assert_close(out, torch.softmax(logits, -1) @ values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, torch.logsumexp(logits, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_parts", [2, 3, 8, 9, 21, 150])
@pytest.mark.parametrize("D", [16, 40])
def test_triton_agrees_and_reads_no_empty_part(num_parts: int, D: int, triton_device: str) -> None:
    parts = [(out.to(triton_device), lse.to(triton_device)) for out, lse in emptied(partials(num_parts, D=D))]
    want = merge_states(parts, backend="naive")
    outs, lses = torch.stack([out for out, _ in parts]), torch.stack([lse for _, lse in parts])
    for got in (
        merge_states(parts, backend="triton"),
        merge_stacked(outs, lses, torch.float32, backend="triton"),
        merge_stacked(outs, lses, torch.float32, backend="naive"),
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    out, lse = want
    assert torch.isfinite(out).all()
    assert (lse[0, 1] == -torch.inf).all() and (out[0, 1] == 0).all()
    last_out, last_lse = parts[-1]
    torch.testing.assert_close(out[1, 2], last_out[1, 2])
    torch.testing.assert_close(lse[1, 2], last_lse[1, 2])
    assert not torch.allclose(out[1, 3], last_out[1, 3], atol=1e-3)


def test_half_precision_is_rounded_once(triton_device: str) -> None:
    parts = [(out.half().to(triton_device), lse.to(triton_device)) for out, lse in partials(5)]
    exact, _ = merge_states([(out.float(), lse) for out, lse in parts], backend="naive")
    for backend in ("triton", "naive"):
        out, lse = merge_states(parts, backend=backend)
        assert out.dtype == torch.float16 and lse.dtype == torch.float32
        assert (out.float() - exact).abs().max() <= 2**-11 * exact.abs().max()


def test_runs_of_slots(triton_device: str) -> None:
    from longspan.ops.merge_states.triton import triton_merge_ranges

    torch.manual_seed(1)
    slots, rows, D = 90, 3, 16
    outs, lses = torch.randn(slots, rows, D), torch.randn(slots, rows)
    first, count = torch.tensor([0, 20, 3, 89]), torch.tensor([3, 70, 0, 1])
    out, lse = torch.full((4 * rows, D), torch.nan), torch.full((4 * rows,), torch.nan)
    tensors = [x.to(triton_device) for x in (outs, lses, first.int(), count.int(), out, lse)]
    triton_merge_ranges(*tensors)
    got_out, got_lse = (x.cpu().unflatten(0, (4, rows)) for x in tensors[4:])
    for r in (0, 1, 3):
        run = slice(int(first[r]), int(first[r] + count[r]))
        want, want_lse = merge_stacked(outs[run, None, None], lses[run, None, None], torch.float32)
        torch.testing.assert_close(got_out[r], want[0, 0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got_lse[r], want_lse[0, 0], rtol=1e-5, atol=1e-5)
    assert (got_out[2] == 0).all() and (got_lse[2] == -torch.inf).all()


def test_gradients_are_those_of_the_whole_softmax() -> None:
    torch.manual_seed(2)
    logits = torch.randn(1, 2, 3, 20, dtype=torch.float32, requires_grad=True)
    values = torch.randn(1, 2, 20, 8)
    # the third piece is hidden from row 0
    hidden = torch.zeros(3, 20, dtype=torch.bool)
    hidden[0, 12:] = True
    masked = logits.masked_fill(hidden, -torch.inf)
    weight = torch.randn(1, 2, 3, 8)
    (want,) = torch.autograd.grad(
        ((torch.softmax(masked, -1) @ values) * weight).sum(), logits, retain_graph=True
    )
    parts = []
    for piece in (slice(0, 5), slice(5, 12), slice(12, 20)):
        lse = torch.logsumexp(masked[..., piece], -1)
        weights = (masked[..., piece] - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
        parts.append((weights @ values[:, :, piece], lse))
    out, _ = merge_states(parts)
    (got,) = torch.autograd.grad((out * weight).sum(), logits)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="gradients are wanted"):
        merge_states(parts, backend="triton")


def test_errors_say_what_is_allowed() -> None:
    (out, lse), (other, _) = partials(2)
    with pytest.raises(ValueError, match="got no parts to merge"):
        merge_states([])
    with pytest.raises(ValueError, match=r"log-sum-exp \[2, 4, 2\]; allowed are those of the first"):
        merge_states([(out, lse), (other, lse[:, :, :2])])
    with pytest.raises(ValueError, match="log-sum-exp of torch.float64; allowed are bfloat16"):
        merge_states([(out, lse), (other, lse.double())])
    with pytest.raises(ValueError, match="parts of torch.float32 and torch.float16; allowed is one dtype"):
        merge_states([(out, lse), (other.half(), lse)])
    with pytest.raises(ValueError, match=r"allowed are \[N, B, H, T, D\]"):
        merge_stacked(out, lse, torch.float32)
    with pytest.raises(ValueError, match="got dtype torch.int32"):
        merge_stacked(out[None], lse[None], torch.int32)
