"""The kernel that rotates at attention against the naive twin: bands, plain positions, reading, decoding, odd lengths."""

from __future__ import annotations

import pytest
import torch

from longspan.ops.attend import Rotary
from longspan.ops.rotary_attention import rotary_attention, tables
from longspan.ops.rotary_attention.tables import Tables, kept_tables
from longspan.visit import Band


def _self_extend(window: int = 21) -> tuple[Band, ...]:
    near = Band(low=lambda p: p - window + 1, high=lambda p: p + 1, query=lambda p: p, key=lambda k: k)
    far = Band(
        low=torch.zeros_like,
        high=lambda p: p - window + 1,
        query=lambda p: p // 4 + window - window // 4,
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


BANDS = {
    "plain": (),
    "self_extend": _self_extend(),
    "wide_window": _self_extend(100),  # more than a tile of queries and one of keys
    "dual_chunk": _dual_chunk(),
}
SHAPES = [
    {"T": 1, "S": 1},
    {"T": 63, "S": 63, "H": 2},
    {"T": 150, "S": 300, "B": 2, "H": 2, "K": 1},
    {"T": 1, "S": 257, "H": 8, "K": 2},
    {"T": 5, "S": 200, "B": 2, "H": 6, "K": 2},
    {"T": 16, "S": 129, "H": 16, "K": 1, "D": 32},
    {"T": 17, "S": 90, "D": 80, "H": 2},
    {"T": 64, "S": 64, "H": 1, "K": 1, "D": 64},
    {"T": 70, "S": 71, "B": 2, "H": 4, "K": 1},
    {"T": 131, "S": 403, "H": 2, "D": 80},
    {"T": 65, "S": 222, "H": 4, "K": 1, "D": 128},
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


@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_long_ranges_in_half_precision(triton_device: str, head_dim: int) -> None:
    """Whole tiles of keys, read by the copy engine, or by pointers where strides forbid it."""
    for bands in (*BANDS.values(), _self_extend(300)):
        tensors, given = _case(
            triton_device, bands=bands, H=2, K=1, T=140, S=453, D=head_dim, dtype=torch.float16
        )
        expected, _ = rotary_attention(*(x.float() for x in tensors), **given, backend="naive")
        q, keys, values = tensors
        odd = torch.nn.functional.pad(values, (0, 1))[..., :-1]
        for v in (values, odd):
            out, _ = rotary_attention(q, keys, v, **given, backend="triton")
            assert (out.float() - expected).norm() / expected.norm() < 2e-3


@pytest.mark.parametrize("T", [3, 70])
def test_strides_may_be_any(triton_device: str, T: int) -> None:
    """Tokens before heads, heads between others, and a last dimension that is not contiguous."""
    (q, keys, values), given = _case(triton_device, bands=_self_extend(), B=2, T=T, S=130)
    expected = rotary_attention(q, keys, values, **given, backend="naive")
    strided = q.transpose(1, 2).contiguous().transpose(1, 2)
    between = torch.stack([keys, keys + 1], dim=2).flatten(1, 2)[:, ::2]
    last = values.transpose(2, 3).contiguous().transpose(2, 3)
    got = rotary_attention(strided, between, last, **given, backend="triton")
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("heads_at_once", [1, 2, 6])
def test_copies_of_keys_are_bounded(
    triton_device: str, monkeypatch: pytest.MonkeyPatch, heads_at_once: int
) -> None:
    """Heads, then batch rows, take turns."""
    from longspan.ops.rotary_attention import triton_read

    tensors, given = _case(triton_device, bands=_self_extend(), B=3, H=3, K=3, T=64, S=90)
    expected = rotary_attention(*tensors, **given, backend="triton")
    made: list[int] = []
    turn = triton_read._turn
    monkeypatch.setattr(
        triton_read, "_turn", lambda x, out, *args, **kw: (made.append(out.nbytes), turn(x, out, *args, **kw))
    )
    limit = heads_at_once * 2 * (90 + 64) * 16 * 4
    monkeypatch.setattr(triton_read, "COPY_BYTES", limit)
    got = rotary_attention(*tensors, **given, backend="triton")
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
    assert len(made[1::2]) == {1: 9, 2: 6, 6: 2}[heads_at_once]
    assert max(queries + keys for queries, keys in zip(made[::2], made[1::2], strict=True)) <= limit


def test_maps_are_kept_while_tokens_are_added(triton_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through two ends of a table, with other maps in between, and then again from the start."""
    monkeypatch.setattr(tables, "PAGE_TOKENS", 16)
    (q, keys, values), given = _case(triton_device, T=1, S=60)
    for S in (*range(28, 48, 3), 60, 20):
        for bands in (_self_extend(), _dual_chunk(8), ()):
            given["rotary"] = Rotary(inv_freq=given["rotary"].inv_freq, scaling=1.1, bands=bands)
            for T in (1, 5):
                held = (q.expand(-1, -1, T, -1), keys[:, :, :S], values[:, :, :S])
                got = rotary_attention(*held, **given, backend="triton")
                expected = rotary_attention(*held, **given, backend="naive")
                torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


def _kept(inv_freq: torch.Tensor, bands: tuple[Band, ...], begin: int, stop: int) -> Tables:
    rotary = Rotary(inv_freq=inv_freq, scaling=1.0, bands=bands)
    return kept_tables(rotary, begin=begin, stop=stop, dtype=torch.float32, device=torch.device("cpu"))


def test_layers_share_maps_that_say_the_same() -> None:
    inv_freq = torch.rand(4)
    made = _kept(inv_freq, _dual_chunk(8), 4200, 4201)
    assert (made.begin, made.stop) == (4096, 8192)
    assert _kept(inv_freq, _dual_chunk(8), 4100, 8192) is made  # functions anew, later tokens
    assert _kept(inv_freq, _dual_chunk(16), 4200, 4201) is not made
    assert _kept(inv_freq, (), 4200, 4201) is not made
    assert _kept(inv_freq.clone(), _dual_chunk(8), 4200, 4201) is not made
    assert _kept(inv_freq, _dual_chunk(8), 4200, 4201) is made
    assert _kept(inv_freq, _dual_chunk(8), 4000, 4201).begin == 0
    assert _kept(inv_freq, _dual_chunk(8), 4200, 8193).stop == 12288

    class Map:
        def __call__(self, positions: torch.Tensor) -> torch.Tensor:
            return positions

    odd = [(Band(low=torch.zeros_like, high=lambda p: p + 1, query=Map(), key=Map()),) for _ in range(2)]
    assert _kept(inv_freq, odd[0], 0, 1) is not _kept(inv_freq, odd[1], 0, 1)
    assert _kept(inv_freq, odd[0], 0, 1) is _kept(inv_freq, odd[0], 0, 1)


def test_kept_maps_are_bounded_and_go_with_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_KEPT", type(tables._KEPT)())
    freqs = [torch.rand(4) for _ in range(4)]
    made = [_kept(inv_freq, (), 0, 1) for inv_freq in freqs[:2]]
    monkeypatch.setattr(tables, "KEPT_BYTES", 2 * made[0].num_bytes)
    assert _kept(freqs[0], (), 0, 1) is made[0]
    _kept(freqs[2], (), 0, 1)  # the least recently used goes
    assert _kept(freqs[0], (), 0, 1) is made[0]
    assert _kept(freqs[1], (), 0, 1) is not made[1]
    monkeypatch.setattr(tables, "KEPT_BYTES", 0)
    _kept(freqs[3], (), 0, 1)
    assert len(tables._KEPT) == 1
    freqs.clear()
    assert not tables._KEPT


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
    with pytest.raises(ValueError, match="got scale=0"):
        rotary_attention(q, k, v, **{**given, "scale": 0})
    half = Rotary(inv_freq=given["rotary"].inv_freq[:4], scaling=1.0)
    with pytest.raises(ValueError, match="8 of 16 dims are rotated"):
        rotary_attention(q, k, v, rotary=half, first=0, scale=1.0, backend="triton")
    assert rotary_attention(q, k, v, rotary=half, first=0, scale=1.0)[0].shape == q.shape
