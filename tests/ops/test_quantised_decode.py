"""Decoding over quantised keys and values: packing, errors by bits, and Triton against plain attention."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from longspan.ops.quantised_decode import QuantisedKV, append, dequantise, quantise, quantised_decode
from longspan.ops.quantised_decode.naive import pack, unpack
from longspan.ops.quantised_decode.store import word_shape

TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(
    *,
    T: int = 1,
    W: int = 33,
    S: int = 128,
    G: int = 4,
    D: int = 64,
    B: int = 1,
    bits: tuple[int, int] = (8, 8),
    group: int = 32,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[Tensor, QuantisedKV, Tensor, Tensor]:
    K = 2
    q, keys, values = normal(B, K * G, T, D), normal(B, K, S, D, seed=1), normal(B, K, S, D, seed=2)
    keys[..., 3] += 12.0
    q, keys, values, recent_keys, recent_values = (
        x.to(device, dtype) for x in (q, keys, values, normal(B, K, W, D, seed=3), normal(B, K, W, D, seed=4))
    )
    store = quantise(keys, values, key_bits=bits[0], value_bits=bits[1], group_tokens=group)
    return q, store, recent_keys, recent_values


def relative(x: Tensor, want: Tensor) -> float:
    return float((x.float() - want.float()).norm() / want.float().norm())


def agree(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    assert got[0].dtype == dtype and got[1].dtype == torch.float32
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x.float(), y.float(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("D", [16, 80, 128])
def test_unpack_inverts_pack(bits: int, D: int) -> None:
    codes = torch.randint(0, 2**bits, (2, 3, 64, D), dtype=torch.int32)
    codes[0, 0, 0], codes[0, 0, -1] = 2**bits - 1, 0
    words = pack(codes, bits)
    assert words.dtype == torch.int32 and words.numel() * 32 == codes.numel() * bits
    assert torch.equal(unpack(words, bits, D), codes)


@pytest.mark.parametrize(
    ("bits", "key_bound", "value_bound"), [(8, 0.008, 0.008), (4, 0.11, 0.11), (2, 0.4, 0.4)]
)
def test_errors_by_bits(bits: int, key_bound: float, value_bound: float) -> None:
    keys, values = normal(1, 2, 256, 64), normal(1, 2, 256, 64, seed=1)
    store = quantise(keys, values, key_bits=bits, value_bits=bits, group_tokens=128)
    got_keys, got_values = dequantise(store)
    assert got_keys.dtype == torch.float32 and got_keys.shape == keys.shape
    assert key_bound / 4 < relative(got_keys, keys) < key_bound
    assert value_bound / 4 < relative(got_values, values) < value_bound
    assert store.num_tokens == 256 and store.num_bytes == 2 * 2 * 256 * 64 * bits // 8 + 4 * 2 * (
        2 * 64 + 128
    )


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_outlier_channels_of_keys_do_not_spoil_the_others(bits: int) -> None:
    keys = normal(1, 1, 128, 64)
    keys[..., 5] += 40.0
    got, _ = dequantise(quantise(keys, keys, key_bits=bits, value_bits=8))
    low, high = keys.amin(-1, keepdim=True), keys.amax(-1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    per_token = ((keys - low) / step).round() * step + low
    others = torch.arange(64) != 5
    assert (
        relative(got[..., others], keys[..., others])
        < relative(per_token[..., others], keys[..., others]) / 2
    )
    assert relative(got[..., 5], keys[..., 5]) < 0.02


def test_constant_and_zero_keys_are_exact() -> None:
    keys, values = torch.full((1, 1, 32, 16), 1.5), torch.zeros(1, 1, 32, 16)
    values[..., 7, :] = 0.0
    got_keys, got_values = dequantise(quantise(keys, values, key_bits=4, value_bits=4, group_tokens=32))
    assert torch.equal(got_keys, keys) and torch.equal(got_values, values)


def test_groups_are_independent_and_append() -> None:
    keys, values = normal(1, 2, 96, 32), normal(1, 2, 96, 32, seed=1)

    def made(first: int, last: int) -> QuantisedKV:
        parts = (x[:, :, first:last] for x in (keys, values))
        return quantise(*parts, key_bits=4, value_bits=2, group_tokens=32)

    joined, whole = append(made(0, 32), made(32, 96)), made(0, 96)
    for name, x in whole.tensors().items():
        assert torch.equal(joined.tensors()[name], x)
    with pytest.raises(ValueError, match="must have the same"):
        append(whole, replace(whole, key_bits=8))
    with pytest.raises(ValueError, match="all but dimension 2"):
        append(whole, quantise(keys[:, :1], values[:, :1], key_bits=4, value_bits=2, group_tokens=32))


@pytest.mark.parametrize("T", [1, 5])
def test_naive_is_plain_attention_over_the_dequantised_past_and_the_window(T: int) -> None:
    q, store, recent_keys, recent_values = inputs(T=T, W=9, G=4, bits=(4, 2))
    out, lse = quantised_decode(q, store, recent_keys, recent_values, scale=0.125)
    keys, values = (
        torch.cat([past, x], 2).repeat_interleave(4, 1)
        for past, x in zip(dequantise(store), (recent_keys, recent_values), strict=True)
    )
    for t in range(T):
        seen = keys.shape[2] - T + t + 1
        logits = q[:, :, t : t + 1] @ keys[:, :, :seen].transpose(-1, -2) * 0.125
        torch.testing.assert_close(
            out[:, :, t : t + 1], logits.softmax(-1) @ values[:, :, :seen], rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(lse[:, :, t : t + 1], logits.logsumexp(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("T", "W", "S", "G", "D", "bits", "group"),
    [
        (1, 33, 128, 1, 64, (8, 8), 32),
        (5, 37, 512, 4, 128, (4, 4), 128),
        (16, 17, 128, 4, 64, (4, 2), 64),
        (1, 1, 256, 4, 128, (2, 2), 128),
        (16, 63, 64, 1, 128, (8, 4), 64),
        (1, 7, 256, 4, 64, (2, 8), 256),
        (5, 5, 128, 2, 80, (4, 4), 128),
        (1, 3, 0, 4, 64, (4, 4), 64),
        (2, 9, 64, 16, 64, (4, 4), 64),
        (1, 17, 64, 8, 256, (4, 2), 64),
        (3, 16, 128, 2, 96, (8, 8), 128),
    ],
)
def test_triton_agrees(
    dtype: torch.dtype,
    T: int,
    W: int,
    S: int,
    G: int,
    D: int,
    bits: tuple[int, int],
    group: int,
    triton_device: str,
) -> None:
    if dtype == torch.bfloat16 and triton_device == "cpu":
        pytest.skip("no bfloat16 in Triton's interpreter")
    given = inputs(T=T, W=W, S=S, G=G, D=D, bits=bits, group=group, dtype=dtype, device=triton_device)
    got = quantised_decode(*given, scale=D**-0.5, backend="triton")
    agree(got, quantised_decode(*given, scale=D**-0.5, backend="naive"), dtype)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("D", [16, 64, 80, 96, 128, 256])
def test_what_the_assembly_adds_to_a_field_is_taken_off_again(bits: int, D: int) -> None:
    """The interpreter runs no assembly; this is its arithmetic. Keys of 2 bits with D below 128 were wrong on a GPU."""
    fields = pytest.importorskip("longspan.ops.quantised_decode.fields")
    tokens, channels = word_shape(bits, D)
    alike = fields.tokens_alike(bits, channels)
    for field in range(tokens * channels):
        token, channel = divmod(field, channels)
        taken_off = fields.offset((0 if alike else token) * channels + channel, bits)
        assert float(taken_off) == float(fields.offset(field, bits))


def test_lengths_views_and_unvisited_poison(triton_device: str) -> None:
    q, store, *recent = inputs(B=2, T=3, W=20, bits=(4, 4), group=64, S=256, device=triton_device)
    lengths = torch.tensor([[0, 64], [192, 256]], dtype=torch.int32, device=triton_device)
    want = quantised_decode(q, store, *recent, scale=0.125, lengths=lengths, backend="naive")
    for b, k in ((0, 0), (0, 1), (1, 0)):
        first = int(lengths[b, k]) // 64
        store.key_scales[b, k, first:] = torch.nan
        store.value_scales[b, k, first:] = torch.nan

    def wide(x: Tensor, dim: int) -> Tensor:
        """The same numbers in a larger buffer."""
        return torch.cat([x, torch.zeros_like(x)], dim).narrow(dim, 0, x.shape[dim])

    held = replace(store, **{name: wide(x, 2) for name, x in store.tensors().items()})
    for backend in ("triton", "naive"):
        got = quantised_decode(
            wide(q, 2), held, *(wide(x, 2) for x in recent), scale=0.125, lengths=lengths, backend=backend
        )
        agree(got, want, torch.float32)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("centred", [False, True])
def test_assembly_makes_the_codes(bits: int, centred: bool, triton_device: str) -> None:
    """The instructions that run on a GPU only, followed one by one."""
    from longspan.ops.quantised_decode.fields import CENTRES, assembly, offset

    words = [0x9C3A_71E5, 0x06F8_D24B]
    for field in range(32 // bits):
        halves = followed(assembly(field, bits, centred), words)
        added = -CENTRES[bits] if centred else offset(field, bits)
        for word, half in zip(words, halves, strict=True):
            assert half == (word >> bits * field) % 2**bits + added


def followed(text: str, words: list[int]) -> list[float]:
    """Both float16 of $0 after these instructions."""
    names = {"$1": words[0], "$2": words[1]}

    def read(name: str) -> int:
        return names[name] if name in names else int(name, 0)

    def halves(word: int) -> Tensor:
        return torch.tensor([word & 0xFFFF, word >> 16]).to(torch.uint16).view(torch.float16)

    for name, _, to, rest in re.findall(r"(prmt|shr|shl|lop3|mov|sub)\.([\w.]+) ([$\w]+), ([^;]+);", text):
        x, *more = (read(part) for part in rest.split(", "))
        if name == "prmt":
            both = x | more[0] << 32
            names[to] = sum((both >> 8 * (more[1] >> 4 * i & 15) & 255) << 8 * i for i in range(4))
        elif name == "lop3":
            assert more[2] == 0xEA  # (x & y) | z
            names[to] = x & more[0] | more[1]
        elif name == "sub":
            low, high = (halves(x) - halves(more[0])).view(torch.uint16).tolist()
            names[to] = low | high << 16
        else:
            moved = x if name == "mov" else x >> more[0] if name == "shr" else x << more[0]
            names[to] = moved & 0xFFFF_FFFF
    return [float(half) for half in halves(names["$0"])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key_bits": 3}, "key_bits=3; allowed are 8, 4 and 2"),
        ({"value_bits": 16}, "value_bits=16; allowed"),
        ({"group_tokens": 48}, "group_tokens=48; allowed"),
        ({"group_tokens": 128}, "multiple of group_tokens=128"),
        ({"values_BKSD": torch.zeros(1, 2, 64, 16)}, "of one shape"),
        ({"values_BKSD": torch.zeros(1, 2, 64, 32).half()}, "one dtype on one device"),
        ({"keys_BKSD": torch.zeros(1, 2, 64, 32).int(), "values_BKSD": torch.zeros(1, 2, 64, 32).int()}, "floating"),
    ],
)  # fmt: skip
def test_what_cannot_be_quantised(change: dict[str, Any], message: str) -> None:
    plain = torch.zeros(1, 2, 64, 32)
    given: dict[str, Any] = {
        "keys_BKSD": plain,
        "values_BKSD": plain,
        "key_bits": 8,
        "value_bits": 8,
        "group_tokens": 64,
    }
    with pytest.raises(ValueError, match=message):
        quantise(**(given | change))


def test_what_cannot_be_decoded(triton_device: str) -> None:
    q, store, keys, values = inputs(T=2, W=4)

    def refused(message: str, *given: Any, **more: Any) -> None:
        with pytest.raises(ValueError, match=message):
            quantised_decode(*given, scale=1.0, **more)

    refused("recent values", q, store, keys, values[:, :, 1:])
    refused("H a multiple of K", q[:, :3], store, keys, values)
    refused("W at least T", q, store, keys[:, :, :1], values[:, :, :1])
    refused("T from 1 to 16", normal(1, 8, 17, 64), store, normal(1, 2, 20, 64), normal(1, 2, 20, 64))
    refused("got a store with B, K, D", q[..., :32], store, keys[..., :32], values[..., :32])
    refused("allowed is the dtype of q", q, store, keys.half(), values.half())
    refused("lengths", q, store, keys, values, lengths=torch.zeros(1, 2))
    lengths = torch.tensor([[32, 33]], dtype=torch.int32)
    refused("not multiples of group_tokens=32", q, store, keys, values, lengths=lengths)
    small = inputs(bits=(2, 2), D=16, device=triton_device)
    refused("need a group_tokens of", *small, backend="triton")


@pytest.mark.gpu
def test_an_answer_that_grows_compiles_nothing_anew() -> None:
    from longspan.ops.quantised_decode.triton import quantised_kernel

    def compiled() -> int:
        return len(quantised_kernel.device_caches[torch.cuda.current_device()][0])

    quantised_decode(*inputs(W=33, D=128, S=256, dtype=torch.bfloat16, device="cuda"), scale=0.1)
    before = compiled()
    for W, S in ((34, 256), (48, 256), (1, 288), (16, 512)):
        quantised_decode(*inputs(W=W, D=128, S=S, dtype=torch.bfloat16, device="cuda"), scale=0.1)
    assert compiled() == before
