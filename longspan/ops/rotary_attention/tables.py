"""Position maps as tables that the kernels look up by position, kept between calls.

The maps of a `Band` work element by element, so a table over positions serves every call that stays within it: the next
tokens, all layers whose maps say the same, any number of queries. Nothing here waits for a GPU.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from types import FunctionType

import torch
from torch import Tensor

from longspan.ops.rotary import Rotary
from longspan.visit import Band

PAGE_TOKENS = 4096  # tables begin and end at multiples of this
KEPT_BYTES = 2**29  # of all tables that are kept, but for the newest


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What the maps and frequencies of a `Rotary` say about the positions up to `stop`.

    Args:
        cos, sin: `[rows, D / 2]`, one row an angle; the two halves of `longspan.ops.rotary.angles` are equal.
        key_rows: int32 `[bands, stop]`, the row of a key by its position.
        query_rows: int32 `[bands, stop - begin]`, the row of a query by its position from `begin` on.
        low, high: int32, as query_rows: the positions of keys `low <= k < high` that it sees; none after its own.
        begin, stop: queries stand at the positions from `begin` on, keys and queries before `stop`.
    """

    cos: Tensor
    sin: Tensor
    key_rows: Tensor
    query_rows: Tensor
    low: Tensor
    high: Tensor
    begin: int
    stop: int

    @property
    def num_bands(self) -> int:
        return self.key_rows.shape[0]

    @property
    def num_queries(self) -> int:
        return self.query_rows.shape[1]

    @property
    def num_bytes(self) -> int:
        tensors = (self.cos, self.sin, self.key_rows, self.query_rows, self.low, self.high)
        return sum(x.nbytes for x in tensors)


@dataclass(frozen=True)
class _Kept:
    """`bands` stays alive, so that no other object takes an id that the key names; tables go when the frequencies do."""

    tables: Tables
    bands: tuple[Band, ...]
    inv_freq: weakref.ref[Tensor]


_KEPT: OrderedDict[Hashable, _Kept] = OrderedDict()
_OWN_POSITIONS = Band(low=torch.zeros_like, high=lambda p: p + 1, query=lambda p: p, key=lambda k: k)


def build_tables(
    rotary: Rotary, *, begin: int, stop: int, dtype: torch.dtype, device: torch.device
) -> Tables:
    """Tables for queries from position `begin` on and keys before `stop`, both widened to whole pages."""
    begin, stop = begin // PAGE_TOKENS * PAGE_TOKENS, -(-stop // PAGE_TOKENS) * PAGE_TOKENS
    bands = rotary.bands or (_OWN_POSITIONS,)
    key = torch.arange(stop, device=device)
    query = key[begin:]
    mapped = torch.stack([band.query(query) for band in bands])
    freqs = torch.cat([key, mapped.flatten()])[:, None].float() * rotary.inv_freq.to(device)
    rows = torch.arange(stop, stop + mapped.numel(), device=device, dtype=torch.int32)
    return Tables(
        cos=(freqs.cos() * rotary.scaling).to(dtype),
        sin=(freqs.sin() * rotary.scaling).to(dtype),
        key_rows=torch.stack([band.key(key) for band in bands]).to(torch.int32),
        query_rows=rows.view_as(mapped),
        low=torch.stack([band.low(query) for band in bands]).clamp_(0, stop).to(torch.int32),
        high=torch.stack([torch.minimum(band.high(query), query + 1) for band in bands])
        .clamp_(min=0)
        .to(torch.int32),
        begin=begin,
        stop=stop,
    )


def kept_tables(rotary: Rotary, *, begin: int, stop: int, dtype: torch.dtype, device: torch.device) -> Tables:
    """As `build_tables`, kept from an earlier call where its tables reach as far."""
    stream = 0
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            # A graph holds no memory that was made before it, and fills its own only when it is replayed.
            return build_tables(rotary, begin=begin, stop=stop, dtype=dtype, device=device)
        stream = torch.cuda.current_stream(device).cuda_stream
    maps = tuple(_said(f) for band in rotary.bands for f in (band.low, band.high, band.query, band.key))
    name = (id(rotary.inv_freq), rotary.scaling, maps, dtype, device, stream)
    found = _KEPT.get(name)
    if found is not None and found.tables.begin <= begin and stop <= found.tables.stop:
        _KEPT.move_to_end(name)
        return found.tables
    tables = build_tables(rotary, begin=begin, stop=stop, dtype=dtype, device=device)
    gone = weakref.ref(rotary.inv_freq, lambda _: _KEPT.pop(name, None))
    _KEPT[name] = _Kept(tables, rotary.bands, gone)
    _KEPT.move_to_end(name)
    while len(_KEPT) > 1 and sum(kept.tables.num_bytes for kept in list(_KEPT.values())) > KEPT_BYTES:
        _KEPT.popitem(last=False)
    return tables


def _said(function: object) -> Hashable:
    """Equal for functions of the same code over the same numbers, as each layer makes them anew."""
    if not isinstance(function, FunctionType):
        return id(function)
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    held += function.__defaults__ or ()
    if function.__kwdefaults__ or not all(isinstance(x, int | float) for x in held):
        return id(function)
    # the code object of a nested function is one, however often the function around it runs
    return (id(function.__code__), id(function.__globals__), *((type(x), x) for x in held))
