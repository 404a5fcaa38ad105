"""The entropy coder behind the stored caches: range asymmetric numeral systems, many lanes at a time, in numpy.

A lane is one state of 32 bits that gives and takes words of 16 bits; every numpy operation moves all lanes by one symbol.
Each channel (row of symbols) names one of at most NUM_TABLES frequency tables, which travel with the symbols: rows whose
symbols are spread alike share a table. Tables are integers that add up to 2^12 and decoding is integer arithmetic
alone, so that every machine reads the same symbols out of the same bytes. An integer too far from its row's centre takes an
escape symbol, and is stored as it is.

Axis legend: C channels, T symbols of each, N lanes; a lane holds C / N whole channels, one behind the other.

    block = encode_block(symbols)             # integers [C, T]
    symbols = decode_block(block, C, T)

Paper: "Asymmetric numeral systems: entropy coding combining speed of Huffman coding with compression rate of arithmetic
coding" (2013); lanes that share one stream of words: "Interleaved entropy coders" (2014).
*Differs from the paper* "CacheGen" (2023), which this serves: that has an arithmetic coder, with a profiled table for each channel
of each layer.
*Fails when*: few channels have few symbols each; 5 bytes a channel and 2 bytes a lane are then most of what is stored.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

NUM_TABLES = 64
ALPHABET = 256
ESCAPE = ALPHABET - 1
MAX_SYMBOLS = 2**28  # of a block; what a damaged header can ask for
PRECISION_BITS = 12  # a table's frequencies add up to 2 ** PRECISION_BITS
_WORD_BITS = 16
_LOW = 1 << _WORD_BITS  # states stay in [2^16, 2^32)
_LANE_SYMBOLS = 1024  # short channels are joined up to this many, as a lane's state costs 4 bytes
_TABLE_SYMBOLS = 16384  # a further table has to pay for its own bytes
_HEADER = struct.Struct("<HII")  # tables, escapes, words
_CENTRE = ESCAPE // 2
_MEDIAN_OF = 255
_ROUNDS = 4  # of sorting channels into tables


class Damaged(ValueError):
    """Bytes that no encoder wrote."""


class ByteReader:
    """Takes bytes off the front of a buffer, never beyond its end."""

    def __init__(self, data: bytes | memoryview, what: str) -> None:
        self.data, self.what, self.at = memoryview(data), what, 0

    def take(self, num_bytes: int) -> memoryview:
        left = len(self.data) - self.at
        if num_bytes > left:
            raise Damaged(
                f"the {self.what} is cut short: {num_bytes:,} bytes are wanted at byte {self.at:,}, {left:,} are left; "
                "fetch or encode it again"
            )
        self.at += num_bytes
        return self.data[self.at - num_bytes : self.at]

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self.take(layout.size))

    def array(self, dtype: str, count: int) -> Array:
        return np.frombuffer(self.take(np.dtype(dtype).itemsize * count), dtype)

    def finish(self) -> None:
        if left := len(self.data) - self.at:
            raise Damaged(f"the {self.what} has {left:,} bytes too many; fetch or encode it again")


def steps_of(num_channels: int, num_symbols: int) -> int:
    """Passes of the decoder over its lanes: what decoding `[C, T]` costs, whatever the bytes say."""
    return _channels_per_lane(num_channels, num_symbols) * num_symbols


def cost_bits(symbols: Array) -> float:
    """About what a block of integers `[C, T]` will take: each row at its own entropy, and its row in the header."""
    C, T = symbols.shape
    counts = _histogram(*_centred(symbols)[:2]).astype(np.float64)
    used = counts[counts > 0]
    return float((used * np.log2(T / used)).sum() + 40 * C + 32 * counts[:, ESCAPE].sum())


def encode_block(symbols: Array) -> bytes:
    """Integers `[C, T]` as bytes.

    Raises:
        ValueError: a symbol beyond 32 bits, or more than MAX_SYMBOLS.
    """
    C, T = symbols.shape
    if C * T > MAX_SYMBOLS:
        raise ValueError(
            f"got {C} channels of {T} symbols; {MAX_SYMBOLS:,} symbols are allowed, encode fewer tokens in a chunk"
        )
    coded, offsets, escapes = _centred(symbols)
    counts = _histogram(coded, offsets)
    tables, table_of = _share_tables(counts, T)
    per_lane = _channels_per_lane(C, T)
    states, words = _push(coded.reshape(C // per_lane, -1), table_of.reshape(-1, per_lane), tables)
    return b"".join(
        (
            _HEADER.pack(len(tables), len(escapes), len(words)),
            offsets.astype("<i2").tobytes(),
            table_of.astype(np.uint8).tobytes(),
            b"".join(_pack_table(table) for table in tables),
            escapes.astype("<i4").tobytes(),
            states.astype("<u4").tobytes(),
            words.astype("<u2").tobytes(),
        )
    )


def decode_block(data: bytes | memoryview, num_channels: int, num_symbols: int) -> Array:
    """The integers `[C, T]`, int32, that `encode_block` was given.

    Raises:
        ValueError: the bytes were altered or cut short, where that shows; else other integers come out.
    """
    C, T = num_channels, num_symbols
    if C < 1 or T < 1 or C * T > MAX_SYMBOLS:
        raise Damaged(f"got a block of {C} x {T} symbols; 1 to {MAX_SYMBOLS:,} are allowed, encode it again")
    reader = ByteReader(data, "block")
    num_tables, num_escapes, num_words = reader.unpack(_HEADER)
    offsets = reader.array("<i2", C)
    table_of = reader.array("u1", C)
    if not 1 <= num_tables <= NUM_TABLES or table_of.max() >= num_tables:
        raise Damaged(f"the block names a table beyond its {num_tables}; fetch or encode it again")
    tables = np.stack([_unpack_table(reader) for _ in range(num_tables)])
    escapes = reader.array("<i4", num_escapes)
    per_lane = _channels_per_lane(C, T)
    states = reader.array("<u4", C // per_lane)
    words = reader.array("<u2", num_words)
    reader.finish()
    coded = _pop(states, words, table_of.reshape(-1, per_lane), tables, T).reshape(C, T)
    symbols = coded.astype(np.int32)
    symbols += offsets.astype(np.int32)[:, None]
    escaped = coded == ESCAPE
    if np.count_nonzero(escaped) != num_escapes:
        raise Damaged("the block has another number of escapes than it says; fetch or encode it again")
    symbols[escaped] = escapes
    return symbols


def _channels_per_lane(C: int, T: int) -> int:
    joined = 1
    while C % (2 * joined) == 0 and 2 * joined * T <= _LANE_SYMBOLS:
        joined *= 2
    return joined


def _centred(symbols: Array) -> tuple[Array, Array, Array]:
    """Symbols uint8 `[C, T]` about their row's centre, the rows' offsets `[C]`, and what escaped, in order."""
    T = symbols.shape[1]
    some = symbols[:, :: max(1, T // _MEDIAN_OF)]  # the median: an outlier must not move the row's centre
    centre = np.partition(some, some.shape[1] // 2, axis=1)[:, some.shape[1] // 2]
    offsets = np.clip(centre - _CENTRE, -(2**15), 2**15 - 1).astype(np.int64)
    moved = symbols - offsets[:, None]
    outside = (moved < 0) | (moved >= ESCAPE)
    escapes = symbols[outside]
    if escapes.size and np.abs(escapes).max() >= 2**31:
        raise ValueError(
            "a value is beyond 2^31 bins; allowed are finite values, check the tensor for outliers"
        )
    return np.where(outside, ESCAPE, moved).astype(np.uint8), offsets, escapes


def _histogram(coded: Array, offsets: Array) -> Array:
    """How often each symbol stands in each row, `[C, ALPHABET]`."""
    C = len(offsets)
    keys = coded.astype(np.int64) + ALPHABET * np.arange(C)[:, None]
    return np.bincount(keys.ravel(), minlength=ALPHABET * C).reshape(C, ALPHABET)


def _share_tables(counts: Array, T: int) -> tuple[Array, Array]:
    """Frequency tables int64 `[n, ALPHABET]` and each row's, `[C]`: rows start out sorted by spread, and then move to the
    table that codes them shortest."""
    C = len(counts)
    wanted = min(NUM_TABLES, C, 1 + C * T // _TABLE_SYMBOLS)
    places = np.arange(ALPHABET)
    mean = counts @ places / T
    table_of = np.empty(C, np.int64)
    table_of[np.argsort(counts @ places**2 / T - mean**2, kind="stable")] = np.arange(C) * wanted // C
    for _ in range(_ROUNDS if wanted > 1 else 0):
        shared = np.stack([counts[table_of == i].sum(axis=0) for i in range(wanted)]) + 0.01
        bits = np.log2(shared.sum(axis=1, keepdims=True) / shared)
        table_of = np.argmin(counts @ bits.T, axis=1)
    used, table_of = np.unique(table_of, return_inverse=True)
    tables = np.stack([_whole(counts[table_of == i].sum(axis=0)) for i in range(len(used))])
    return tables, table_of


def _whole(counts: Array) -> Array:
    """Frequencies that add up to 2 ** PRECISION_BITS, none of a present symbol's being 0."""
    total = 1 << PRECISION_BITS
    table = np.where(counts > 0, np.maximum(1, counts * total // counts.sum()), 0)
    while extra := int(table.sum()) - total:
        most = int(table.argmax())
        table[most] -= min(extra, int(table[most]) // 2)
    return table


def _pack_table(table: Array) -> bytes:
    """A bit for each symbol that is used, and the used ones' frequencies."""
    return np.packbits(table > 0).tobytes() + table[table > 0].astype("<u2").tobytes()


def _unpack_table(reader: ByteReader) -> Array:
    used = np.unpackbits(reader.array("u1", ALPHABET // 8)).astype(bool)
    table = np.zeros(ALPHABET, np.int64)
    table[used] = reader.array("<u2", int(used.sum()))
    if table.sum() != 1 << PRECISION_BITS:
        raise Damaged("a table of the block does not add up; fetch or encode it again")
    return table


def _push(coded: Array, table_of: Array, tables: Array) -> tuple[Array, Array]:
    """Symbols `[N, steps]` into states `[N]` and words, last symbol first, as the decoder takes from the other end."""
    N, steps = coded.shape
    per_table = steps // table_of.shape[1]
    frequency = tables.astype(np.uint32).ravel()
    start = (np.cumsum(tables, axis=1) - tables).astype(np.uint32).ravel()
    base = np.ascontiguousarray(table_of.T) * ALPHABET
    columns = np.ascontiguousarray(coded.T)
    states = np.full(N, _LOW, np.uint32)
    words: list[Array] = []
    for step in range(steps - 1, -1, -1):
        at = base[step // per_table] + columns[step]
        f = frequency[at]
        full = states >> (32 - PRECISION_BITS) >= f
        words.append(states[full].astype(np.uint16))
        states = np.where(full, states >> _WORD_BITS, states)
        quotient = states // f
        states = (quotient << PRECISION_BITS) + (states - quotient * f) + start[at]
    return states, np.concatenate(words[::-1])


def _pop(states: Array, words: Array, table_of: Array, tables: Array, per_table: int) -> Array:
    """Symbols uint8 `[N, steps]` out of states and words."""
    N, joined = table_of.shape
    frequency = tables.astype(np.uint32).ravel()
    start = (np.cumsum(tables, axis=1) - tables).astype(np.uint32).ravel()
    places = np.arange(ALPHABET, dtype=np.uint8)
    symbol_at = np.concatenate([np.repeat(places, table) for table in tables])
    wide = table_of.astype(np.int64).T
    slots, base = wide << PRECISION_BITS, wide * ALPHABET
    states, words = states.astype(np.uint32), words.astype(np.uint32)
    columns = np.empty((joined * per_table, N), np.uint8)
    taken = 0
    for step in range(len(columns)):
        channel = step // per_table
        slot = states & ((1 << PRECISION_BITS) - 1)
        symbol = symbol_at[slots[channel] + slot]
        columns[step] = symbol
        at = base[channel] + symbol
        states = frequency[at] * (states >> PRECISION_BITS) + slot - start[at]
        low = np.flatnonzero(states < _LOW)
        if taken + len(low) > len(words):
            raise Damaged("the block's words run out; fetch or encode it again")
        states[low] = (states[low] << _WORD_BITS) | words[taken : taken + len(low)]
        taken += len(low)
    if taken != len(words) or (states != _LOW).any():
        raise Damaged("the block's words do not come out even; fetch or encode it again")
    return np.ascontiguousarray(columns.T)
