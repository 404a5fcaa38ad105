"""Pages in host memory: what is fetched is what was stored, by both backends, whatever the pieces it came in."""

from __future__ import annotations

import pytest
import torch

from longspan.ops.offload import HostPages


def _pages(device: str, pieces: list[int], *, page: int = 4, D: int = 8, K: int = 3, B: int = 2):
    torch.manual_seed(0)
    total = sum(pieces)
    keys, values = (torch.randn(B, K, total, D, device=device) for _ in range(2))
    held = HostPages(
        num_heads=K, head_dim=D, capacity_tokens=total + 5, device=device, page_tokens=page, batch=B,
        dtype=torch.float32,
    )  # fmt: skip
    at = 0
    for piece in pieces:
        held.append(keys[:, :, at : at + piece], values[:, :, at : at + piece])
        at += piece
    return held, keys, values


@pytest.mark.parametrize("backend", ["naive", "triton"])
@pytest.mark.parametrize("pieces", [[32], [1, 1, 1, 1, 28], [3, 18, 11], [5, 2, 25]])
def test_fetches_what_was_stored(triton_device: str, backend: str, pieces: list[int]) -> None:
    held, keys, values = _pages(triton_device, pieces)
    index = (
        torch.stack([torch.randperm(8)[:5] for _ in range(6)]).view(2, 3, 5).to(triton_device, torch.int32)
    )
    got_keys, got_values = held.fetch(index, backend=backend).wait()
    places = (index[..., None].long() * 4 + torch.arange(4, device=index.device)).flatten(2)
    for got, whole in ((got_keys, keys), (got_values, values)):
        assert torch.equal(got, whole.gather(2, places[..., None].expand(-1, -1, -1, 8)))


@pytest.mark.parametrize("backend", ["naive", "triton"])
def test_pages_that_are_not_there_are_zero(triton_device: str, backend: str) -> None:
    held, keys, _ = _pages(triton_device, [10])
    held.pages[:, :, 3:] = float("nan")  # room that holds nothing
    index = torch.tensor([-1, 2, 3, 99, 0], dtype=torch.int32, device=triton_device).expand(2, 3, 5)
    got, _ = held.fetch(index, backend=backend).wait()
    pages = got.unflatten(2, (5, 4))
    assert torch.equal(pages[:, :, 4], keys[:, :, :4]) and torch.equal(pages[:, :, 1, :2], keys[:, :, 8:10])
    assert not pages[:, :, [0, 2, 3]].any() and not pages[:, :, 1, 2:].any()


def test_an_empty_choice_is_empty(triton_device: str) -> None:
    held, _, _ = _pages(triton_device, [10])
    index = torch.zeros(2, 3, 0, dtype=torch.int32, device=triton_device)
    assert held.fetch(index, backend="triton").wait()[0].shape == (2, 3, 0, 8)


def test_bad_input_is_one_sentence(triton_device: str) -> None:
    held, keys, values = _pages(triton_device, [10])
    with pytest.raises(ValueError, match="there is room for 16"):
        held.append(keys, values)
    with pytest.raises(ValueError, match=r"these pages hold \[2, 3, any, 8\]"):
        held.append(keys[..., :4], values[..., :4])
    with pytest.raises(ValueError, match=r"allowed is int32 \[2, 3, any\]"):
        held.fetch(torch.zeros(2, 3, 1, device=triton_device))
    with pytest.raises(ValueError, match="got page_tokens=0"):
        HostPages(num_heads=1, head_dim=8, capacity_tokens=8, device="cpu", page_tokens=0)
    if triton_device == "cpu":
        index = torch.zeros(2, 3, 1, dtype=torch.int32)
        assert held.fetch(index).ready is None  # chosen by itself: naive


@pytest.mark.gpu
def test_a_fetch_runs_beside_the_computation() -> None:
    """The copy and a long product end together in less than the sum of their times."""
    held = HostPages(num_heads=8, head_dim=128, capacity_tokens=2**17, device="cuda")
    held.num_tokens = 2**17
    index = torch.stack([torch.randperm(2048)[:512] for _ in range(8)])[None].cuda().int()
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

    def milliseconds(fetch: bool, compute: bool) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        fetched = held.fetch(index) if fetch else None
        for _ in range(4 if compute else 0):
            a @ a
        if fetched is not None:
            fetched.wait()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    for _ in range(3):
        milliseconds(True, True)
    alone = milliseconds(True, False), milliseconds(False, True)
    both = min(milliseconds(True, True) for _ in range(5))
    assert both < 0.8 * sum(alone), (both, alone)
