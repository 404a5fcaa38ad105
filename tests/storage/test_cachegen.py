"""The codec: each element within half a bin, the bytes as counted, the same each time, and no harm from altered bytes."""

from __future__ import annotations

import struct
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longspan.storage import entropy
from longspan.storage.cachegen import (
    LEVELS,
    Deltas,
    Level,
    chunk_info,
    chunk_spans,
    decode_chunk,
    encode_chunk,
    head_std,
    third_of,
)
from longspan.storage.entropy import cost_bits, decode_block, encode_block
from longspan.storage.layout import HEADER, PAIR, TENSOR

KNOWN = (
    "0100010000000100000082ff88ff00000000000000000000000000000000000780000000000000000000000000000001"
    "240149024b0a24012401e80300008c816d001887"
)
ALL_DELTAS: tuple[Deltas, ...] = ("auto", "paper", "none")


def walk(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Tokens that resemble their neighbours, about channel means far from 0, with an outlier."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    for t in range(1, shape[2]):
        x[:, :, t] = 0.95 * x[:, :, t - 1] + 0.3 * x[:, :, t]
    x = x + 5 * torch.randn((shape[0], shape[1], 1, shape[3]), generator=generator)
    x[0, 0, shape[2] // 2, 0] = 400.0
    return x


def bound(x: Tensor, bins: float) -> Tensor:
    """Half a bin, and what float32 rounds."""
    return 0.5 * bins * head_std(x)[..., None, None] * (1 + 1e-3) + 1e-6 * x.abs()


@pytest.mark.parametrize("deltas", ALL_DELTAS)
@pytest.mark.parametrize("num_tokens", [1, 9, 10, 11, 63, 1000])
def test_every_element_is_within_half_a_bin(num_tokens: int, deltas: Deltas) -> None:
    keys = [walk((2, 1, num_tokens, 6), i) for i in range(3)]
    values = [walk((2, 1, num_tokens, 4), 10 + i) for i in range(3)]
    for level in LEVELS:
        data = encode_chunk(keys, values, level=level, deltas=deltas)
        for sizes, given_, got in zip(
            (level.key_bins, level.value_bins), (keys, values), decode_chunk(data), strict=True
        ):
            for layer, (x, y) in enumerate(zip(given_, got, strict=True)):
                assert y.shape == x.shape and y.dtype == torch.float32
                assert ((x - y).abs() <= bound(x, sizes[layer])).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_dtype_comes_back_or_is_chosen(dtype: torch.dtype) -> None:
    x = [torch.randn(1, 2, 40, 8).to(dtype)]
    data = encode_chunk(x, x)
    assert decode_chunk(data)[0][0].dtype == dtype
    assert decode_chunk(data, dtype=torch.float32)[1][0].dtype == torch.float32
    assert chunk_info(data).dtype == dtype


def test_layers_that_keep_different_numbers_of_tokens() -> None:
    shapes = [(1, 2, 40, 8), (1, 1, 7, 8), (1, 3, 40, 8), (1, 1, 113, 8)]
    keys, values = [walk(s, 1) for s in shapes], [walk(s, 2) for s in shapes]
    data = encode_chunk(keys, values, layers=[0, 0, 1, 1], num_layers=2)
    got = decode_chunk(data)
    assert [tuple(k.shape) for k in got[0]] == shapes == [tuple(v.shape) for v in got[1]]
    assert chunk_info(data).layers == (0, 0, 1, 1)
    for layer, x, y in zip((0, 0, 1, 1), keys, got[0], strict=True):
        assert ((x - y).abs() <= bound(x, LEVELS[2].key_bins[third_of(layer, 2)])).all()


def test_sizes_add_up_and_are_counted_ahead() -> None:
    keys, values = [walk((1, 2, 300, 16), 1)], [walk((1, 2, 300, 16), 2)]
    data = encode_chunk(keys, values, deltas="none")
    info = chunk_info(data)
    head = HEADER.size + PAIR.size + 2 * (TENSOR.size + 4 * 2)
    assert info.header_bytes == head
    assert info.header_bytes + info.block_bytes == len(data)
    assert info.num_elements == 2 * 2 * 300 * 16
    assert info.level == 2 and info.with_anchors == 0


def test_coarser_levels_are_smaller_and_near_what_a_gaussian_takes() -> None:
    x = [torch.randn(1, 4, 1500, 32, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    sizes = [len(encode_chunk(x[:1], x[1:], level=level)) for level in LEVELS]
    assert sizes == sorted(sizes, reverse=True)
    # Of one layer the middle third's bin counts: 1 standard deviation, at which a Gaussian has 2.1 bits.
    bits = 8 * sizes[2] / (2 * x[0].numel())
    assert 2.1 < bits < 2.2


def test_encoding_is_the_same_each_time() -> None:
    keys, values = [walk((1, 2, 500, 16), i) for i in range(2)], [walk((1, 2, 500, 16), i) for i in (5, 6)]
    assert encode_chunk(keys, values) == encode_chunk([k.clone() for k in keys], values)


def test_these_bytes_decode_to_these_symbols_on_every_machine() -> None:
    symbols = np.array([[0, 1, 2, 1, 0, -1, 1000], [7, 7, 7, 7, 7, 7, 7]])
    block = encode_block(symbols)
    assert block.hex() == KNOWN
    assert decode_block(bytes.fromhex(KNOWN), 2, 7).tolist() == symbols.tolist()


def test_deltas_are_kept_where_they_pay() -> None:
    alike = [walk((1, 1, 1500, 32))]
    alike[0][0, 0, 750, 0] = 0.0
    unlike = [torch.randn(1, 1, 1500, 32)]
    data = encode_chunk(alike, unlike)
    assert chunk_info(data).with_anchors == 1
    assert len(data) < len(encode_chunk(alike, unlike, deltas="none"))
    assert chunk_info(encode_chunk(alike, unlike, deltas="paper")).with_anchors == 2


@pytest.mark.parametrize("value", [0.0, 1e-40, 3.5, -1e30])
def test_heads_that_stand_still(value: float) -> None:
    x = [torch.full((1, 2, 25, 4), value)]
    got = decode_chunk(encode_chunk(x, x))[0][0]
    assert ((x[0] - got).abs() <= bound(x[0], LEVELS[2].key_bins[1])).all()


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 40)),
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([1, 3, 100, 2**20]),
)
def test_any_integers_come_back(shape: tuple[int, int], seed: int, spread: int) -> None:
    symbols = np.random.default_rng(seed).normal(0, spread, shape).astype(np.int64)
    block = encode_block(symbols)
    assert (decode_block(block, *shape) == symbols).all()
    assert cost_bits(symbols) > 0


@pytest.mark.parametrize("shape", [(1, 1), (96, 5), (256, 700), (3, 5000), (64, 1024)])
def test_lanes_of_one_and_of_several_channels(shape: tuple[int, int]) -> None:
    symbols = np.random.default_rng(0).geometric(0.3, shape) * np.arange(1, shape[0] + 1)[:, None]
    assert (decode_block(encode_block(symbols), *shape) == symbols).all()


def test_one_lane_at_a_time_reads_the_same() -> None:
    """The format as a loop over Python integers: what `_pop` does to all lanes at once."""
    rng = np.random.default_rng(0)
    coded = rng.binomial(30, 0.2, (6, 50)).astype(np.uint8)
    counts = np.stack([np.bincount(row, minlength=256) for row in coded])
    tables, table_of = entropy._share_tables(counts, 50)
    for joined in (1, 2, 3):
        of = table_of.reshape(-1, joined)
        states, words = entropy._push(coded.reshape(6 // joined, -1), of, tables)
        assert (entropy._pop(states, words, of, tables, 50).reshape(6, 50) == coded).all()
        lanes, left = [int(x) for x in states], [int(w) for w in words]
        for step in range(50 * joined):
            for n, x in enumerate(lanes):
                table = tables[of[n, step // 50]].tolist()
                slot, symbol, start = x % 4096, 0, 0
                while start + table[symbol] <= slot:
                    start, symbol = start + table[symbol], symbol + 1
                assert symbol == coded[n * joined + step // 50, step % 50]
                x = table[symbol] * (x // 4096) + slot - start
                lanes[n] = x * 65536 + left.pop(0) if x < 65536 else x
        assert not left and set(lanes) == {65536}


def test_the_coder_comes_near_the_entropy() -> None:
    symbols = np.rint(np.random.default_rng(0).normal(0, 1.5, (256, 1500)))
    counts = np.unique(symbols, return_counts=True)[1]
    entropy_bytes = -(counts * np.log2(counts / counts.sum())).sum() / 8
    assert len(encode_block(symbols.astype(np.int64))) < 1.03 * entropy_bytes


def test_bits_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="beyond 2\\^31 bins"):
        encode_block(np.array([[0, 2**40]]))
    with pytest.raises(ValueError, match="encode fewer tokens in a chunk"):
        encode_chunk([torch.zeros(1, 1, 2**21, 1)], [torch.zeros(1, 1, 2**21, 1)], deltas="none")


def test_thirds_and_spans() -> None:
    assert [third_of(i, 8) for i in range(8)] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert [third_of(i, 3) for i in range(4)] == [0, 1, 2, 2]
    assert third_of(0, 1) == 1
    assert chunk_spans(3100, 1500) == [(0, 1500), (1500, 3000), (3000, 3100)]


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"keys": []}, "one of each is wanted"),
        ({"layers": [0, 1]}, "one of each is wanted"),
        ({"layers": [-1]}, "allowed are 0 to 65535"),
        ({"deltas": "some"}, "allowed are auto, paper and none"),
        ({"keys": [torch.zeros(1, 2, 0, 4)], "values": [torch.zeros(1, 2, 0, 4)]}, "hold a token"),
        ({"keys": [torch.zeros(1, 3, 5, 4)]}, "same B, K and S"),
        ({"keys": [torch.zeros(1, 2, 5, 4, dtype=torch.float64)]}, "is allowed for all"),
        ({"keys": [torch.full((1, 2, 5, 4), torch.nan)]}, "not finite"),
    ],
)
def test_what_cannot_be_encoded_is_said(change: dict, sentence: str) -> None:
    given_ = {"keys": [torch.zeros(1, 2, 5, 4)], "values": [torch.zeros(1, 2, 5, 4)]} | change
    with pytest.raises(ValueError, match=sentence):
        encode_chunk(**given_)


def test_a_level_without_bins_is_refused() -> None:
    with pytest.raises(ValueError, match="three bin sizes above 0"):
        Level(number=0, key_bins=(0.5, 0.0, 1.0), value_bins=(1.0, 1.0, 1.0))


# altered bytes


def sample(deltas: Deltas = "paper") -> bytes:
    return encode_chunk([walk((1, 2, 21, 3))], [walk((1, 2, 21, 3), 1)], deltas=deltas)


@pytest.mark.parametrize("deltas", ALL_DELTAS)
def test_cut_anywhere_it_raises(deltas: Deltas) -> None:
    data = sample(deltas)
    for end in range(len(data)):
        with pytest.raises(ValueError, match="cut short|begin with"):
            decode_chunk(data[:end])
    with pytest.raises(ValueError, match="1 bytes too many"):
        decode_chunk(data + b"\0")


def test_altered_anywhere_it_raises_or_keeps_its_shape() -> None:
    data = sample()
    rng = np.random.default_rng(0)
    raised = 0
    for at in range(len(data)):
        for flip in (0x80, int(rng.integers(1, 256))):
            altered = bytearray(data)
            altered[at] ^= flip
            begin = time.perf_counter()
            try:
                keys, values = decode_chunk(bytes(altered))
                info = chunk_info(bytes(altered))
                assert sum(t.numel() for t in (*keys, *values)) == info.num_elements
            except ValueError:
                raised += 1
            assert time.perf_counter() - begin < 5
    assert raised > len(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_raise_a_value_error(tail: bytes) -> None:
    for data in (tail, sample()[: HEADER.size] + tail):
        with pytest.raises(ValueError):
            decode_chunk(data)


def test_headers_that_ask_for_too_much_are_refused_at_once() -> None:
    begin = time.perf_counter()
    for fields in ((0, 1, 1, 2**32 - 1), (0, 2**16 - 1, 2**32 - 1, 5), (0, 1, 1, 2**21), (0, 0, 1, 1)):
        data = HEADER.pack(b"LSKV", 1, 2, 0, 1) + PAIR.pack(*fields)
        data += 2 * (TENSOR.pack(1, 0) + struct.pack("<f", 1.0)) + bytes(1000)
        with pytest.raises(ValueError):
            decode_chunk(data)
    with pytest.raises(ValueError, match="are allowed"):
        decode_block(bytes(1000), 2**20, 2**20)
    with pytest.raises(ValueError, match="are allowed"):
        decode_block(bytes(1000), 0, 1)
    assert time.perf_counter() - begin < 1


def test_blocks_with_false_numbers_are_refused() -> None:
    block = encode_block(np.array([[0, 1, 500, 0] * 8]))
    tables, escapes, words = struct.unpack_from("<HII", block)
    for header in (
        (0, escapes, words),
        (entropy.NUM_TABLES + 1, escapes, words),
        (tables, 0, words),
        (tables, escapes, 10**6),
    ):
        with pytest.raises(ValueError, match="again"):
            decode_block(struct.pack("<HII", *header) + block[10:], 1, 32)
