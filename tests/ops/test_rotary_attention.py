"""The kernel that rotates at attention against the naive twin: bands, plain positions, reading, decoding, odd lengths."""

from __future__ import annotations

import pytest
import torch

from longspan.ops.attend import Rotary
from longspan.ops.rotary_attention import rotary_attention
from longspan.visit import Band

WINDOW = 21


def _self_extend() -> tuple[Band, ...]:
    near = Band(low=lambda p: p - WINDOW + 1, high=lambda p: p + 1, query=lambda p: p, key=lambda k: k)
    far = Band(
        low=torch.zeros_like,
        high=lambda p: p - WINDOW + 1,
        query=lambda p: p // 4 + WINDOW - WINDOW // 4,
        key=lambda k: k // 4,
    )
    return near, far


def _dual_chunk(size: int = 16) -> tuple[Band, ...]:
    """Keys of the query's own chunk, of the one before, and of all others."""
    own = Band(
        low=lambda p: p // size * size, high=lambda p: p + 1, query=lambda p: p % size, key=lambda k: k % size
    )
    before = Band(
        low=lambda p: (p // size - 1) * size,
        high=lambda p: p // size * size,
        query=lambda p: torch.clamp(p % size + size, max=3 * size // 2),
        key=lambda k: k % size,
    )
    others = Band(
        low=torch.zeros_like,
        high=lambda p: (p // size - 1) * size,
        query=lambda p: torch.full_like(p, 2 * size - 1),
        key=lambda k: k % size,
    )
    return own, before, others


def _case(device: str, *, B=1, H=4, K=2, T=33, S=129, D=16, dtype=torch.float32, bands=(), seed=0):
    torch.manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, device=device, dtype=dtype)  # noqa: E731
    q, keys, values = draw(B, H, T, D), draw(B, K, S + 9, D), draw(B, K, S + 9, D)
    keys[:, :, S:] = float("nan")  # room behind the tokens
    values[:, :, S:] = float("nan")
    inv_freq = (1 / 100 ** (torch.arange(0, D, 2).float() / D)).to(device)
    rotary = Rotary(inv_freq=inv_freq, scaling=1.1, bands=bands)
    given = {"rotary": rotary, "first": 5, "scale": D**-0.5}
    return (q, keys[:, :, :S], values[:, :, :S]), given


BANDS = {"plain": (), "self_extend": _self_extend(), "dual_chunk": _dual_chunk()}
SHAPES = [
    {"T": 1, "S": 1},
    {"T": 63, "S": 63, "H": 2},
    {"T": 150, "S": 300, "B": 2, "H": 2, "K": 1},
    {"T": 1, "S": 257, "H": 8, "K": 2},
    {"T": 5, "S": 200, "B": 2, "H": 6, "K": 2},
    {"T": 16, "S": 129, "H": 16, "K": 1, "D": 32},
    {"T": 17, "S": 90, "D": 80, "H": 2},
]


@pytest.mark.parametrize("bands", BANDS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(f"{k}{v}" for k, v in s.items()))
def test_equals_naive(triton_device: str, bands: str, shape: dict[str, int]) -> None:
    tensors, given = _case(triton_device, bands=BANDS[bands], **shape)
    out, lse = rotary_attention(*tensors, **given, backend="triton")
    expected, expected_lse = rotary_attention(*tensors, **given, backend="naive")
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(lse, expected_lse, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close(triton_device: str, dtype: torch.dtype) -> None:
    if triton_device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("the interpreter has no bfloat16")
    for shape in ({"T": 64, "S": 190}, {"T": 1, "S": 190}):
        tensors, given = _case(triton_device, bands=_self_extend(), dtype=dtype, **shape)
        out, _ = rotary_attention(*tensors, **given, backend="triton")
        expected, _ = rotary_attention(*(x.float() for x in tensors), **given, backend="naive")
        assert (out.float() - expected).norm() / expected.norm() < (
            2e-3 if dtype == torch.float16 else 1.5e-2
        )


def test_position_maps_matter(triton_device: str) -> None:
    """A kernel that rotates by the tokens' own positions gives something else."""
    tensors, given = _case(triton_device, bands=_self_extend(), T=40, S=200)
    out, _ = rotary_attention(*tensors, **given, backend="triton")
    given["rotary"] = Rotary(inv_freq=given["rotary"].inv_freq, scaling=1.1)
    plain, _ = rotary_attention(*tensors, **given, backend="triton")
    assert (out - plain).abs().max() > 0.1


def test_a_band_may_leave_everything_out(triton_device: str) -> None:
    nothing = Band(low=torch.zeros_like, high=torch.zeros_like, query=lambda p: p, key=lambda k: k)
    for T in (1, 40):
        tensors, given = _case(triton_device, bands=(nothing,), T=T, S=77)
        out, lse = rotary_attention(*tensors, **given, backend="triton")
        assert not out.any() and bool((lse == -torch.inf).all())


def test_bad_input_is_one_sentence(triton_device: str) -> None:
    (q, k, v), given = _case(triton_device)
    with pytest.raises(ValueError, match="H a multiple of K"):
        rotary_attention(q[:, :3], k, v, **given)
    half = Rotary(inv_freq=given["rotary"].inv_freq[:4], scaling=1.0)
    with pytest.raises(ValueError, match="8 of 16 dims are rotated"):
        rotary_attention(q, k, v, rotary=half, first=0, scale=1.0, backend="triton")
    assert rotary_attention(q, k, v, rotary=half, first=0, scale=1.0)[0].shape == q.shape
