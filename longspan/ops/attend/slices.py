"""Attention over slices of the stored keys, partial results merged.

Work per query block: `[before] + [own block, causal]`. Where positions are contiguous the slices are found by
arithmetic, otherwise a mask of positions decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longspan.ops.attend.partial import partial_attend
from longspan.ops.attend.problem import Problem, Rotary
from longspan.ops.merge_states import merge_states
from longspan.ops.rotary import angles, rotate
from longspan.visit import Band, Ranges

Part = tuple[Tensor, Tensor]
Turn = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor | None]
QUERY_BLOCK_TOKENS = 512  # queries per slice of a range; keeps masks and rotated copies small
KEY_BLOCK_TOKENS = 128  # keys that are masked or left out together


@dataclass(frozen=True)
class _Piece:
    """Keys `[start, stop)`; `causal` when they are the query block's own, `masked` unless every pair is visited."""

    start: int
    stop: int
    causal: bool = False
    masked: bool = True


def attend_slices(p: Problem, ranges: Ranges | None) -> Part:
    """Output and log-sum-exp of the queries over every key (or a range) up to each."""
    T, past = p.num_new, p.num_tokens - p.num_new
    plain = p.all_real and ranges is None and not (p.rotary and p.rotary.bands)
    block = T if plain and p.bias is None else QUERY_BLOCK_TOKENS
    blocks = []
    for first in range(0, T, block):
        last = min(first + block, T)
        if T == 1 and ranges is None and not (p.rotary and p.rotary.bands):
            pieces = [_Piece(0, past + 1)]  # one query sees everything
        else:
            own = _Piece(past + first, past + last, causal=True)
            pieces = [*_before(p, ranges, past + first, last - first), own]
        parts = [part for piece in pieces for part in _attend_piece(p, piece, first, last, ranges)]
        blocks.append(merge_states(parts))
    return join_states(blocks)


def join_states(blocks: list[Part]) -> Part:
    """States of successive query blocks as one."""
    if len(blocks) == 1:
        return blocks[0]
    return torch.cat([out for out, _ in blocks], dim=2), torch.cat([lse for _, lse in blocks], dim=2)


def _before(p: Problem, ranges: Ranges | None, start: int, num_queries: int) -> list[_Piece]:
    """Slices of the keys `[0, start)` that the queries `[start, start + num_queries)` may visit."""
    if start == 0:
        return []
    if ranges is None or p.contiguous_from is None:
        return [_Piece(0, start)]
    sink = max(0, min(ranges.sink_tokens - p.contiguous_from, start))
    window = max(sink, start - ranges.window_tokens + 1)
    pieces = [_Piece(0, sink)] if sink else []
    if window < start:
        pieces.append(_Piece(window, start))
    return pieces


def _attend_piece(p: Problem, piece: _Piece, first: int, last: int, ranges: Ranges | None) -> list[Part]:
    bands = (p.rotary.bands if p.rotary is not None else ()) or (None,)
    q_pos = p.query_positions[:, first:last]
    return [
        _attend_cut(p, cut, first, last, ranges, band)
        for band in bands
        for cut in _cuts(p, piece, q_pos, ranges, band)
    ]


def _cuts(p: Problem, piece: _Piece, q_pos: Tensor, ranges: Ranges | None, band: Band | None) -> list[_Piece]:
    """The parts of a piece that its queries visit in a band; those that all of them visit whole need no mask."""
    if p.all_real and ranges is None and band is None:
        return [replace(piece, masked=False)]
    size = piece.stop - piece.start if piece.causal else KEY_BLOCK_TOKENS
    k_pos = p.key_positions[:, :, piece.start : piece.stop]
    last = k_pos[..., -1:].expand(-1, -1, -k_pos.shape[2] % size)
    blocks = torch.cat([k_pos, last], dim=2).unflatten(2, (-1, size))
    nearest, farthest = blocks.amax(dim=(0, 1, 3)).tolist(), blocks.amin(dim=(0, 1, 3)).tolist()
    q_ends = torch.stack([q_pos.min(), q_pos.max()])
    q_low, q_high = q_ends.tolist()
    if band is not None:
        (low, low_last), (high, high_last) = band.low(q_ends).tolist(), band.high(q_ends).tolist()
        own_reached = piece.causal and bool((band.high(q_pos) > q_pos).all())
    cuts: list[_Piece] = []
    for n, (k_low, k_high) in enumerate(zip(farthest, nearest, strict=True)):
        whole, none = k_low >= 0 and q_low >= 0, k_high < 0 and not piece.causal
        if ranges is not None:
            whole &= k_low > q_high - ranges.window_tokens or k_high < ranges.sink_tokens
            none |= k_high <= q_low - ranges.window_tokens and k_low >= ranges.sink_tokens
        if band is not None:
            whole &= k_low >= low_last and (own_reached or k_high < high)
            none |= k_high < low or k_low >= high_last
        start, stop = piece.start + n * size, min(piece.start + (n + 1) * size, piece.stop)
        if none:
            continue
        if cuts and cuts[-1].stop == start and cuts[-1].masked != whole:
            start = cuts.pop().start
        cuts.append(replace(piece, start=start, stop=stop, masked=not whole))
    return cuts


def _attend_cut(
    p: Problem, cut: _Piece, first: int, last: int, ranges: Ranges | None, band: Band | None
) -> Part:
    queries, keys = p.queries[:, :, first:last], p.keys[:, :, cut.start : cut.stop]
    values, q_pos = p.values[:, :, cut.start : cut.stop], p.query_positions[:, first:last]
    k_pos = p.key_positions[:, :, cut.start : cut.stop]
    bias = None if p.bias is None else p.bias[:, :, None, cut.start : cut.stop]
    mask = _mask(p, q_pos, k_pos, ranges, band) if cut.masked else None
    causal = cut.causal and mask is None and bias is None
    if cut.causal and not causal:
        order = torch.ones(last - first, last - first, dtype=torch.bool, device=keys.device).tril()
        mask = order if mask is None else mask & order
    if p.rotary is not None:
        q, k = q_pos.clamp(min=0)[:, None], k_pos.clamp(min=0)
        queries = turner(q if band is None else band.query(q), p.rotary)(queries)
        keys = turner(k if band is None else band.key(k), p.rotary)(keys)
    return partial_attend(queries, keys, values, scale=p.scale, mask=additive_mask(mask, bias), causal=causal)


def _mask(p: Problem, q_pos: Tensor, k_pos: Tensor, ranges: Ranges | None, band: Band | None) -> Tensor:
    """Boolean `[B, H or 1, t, n]` of the pairs that validity, range and band allow; causality apart."""
    query, at = q_pos[:, None, :, None], k_pos[:, :, None, :]
    mask = (at >= 0) & (query >= 0)
    if ranges is not None:
        mask &= (at < ranges.sink_tokens) | (query - at < ranges.window_tokens)
    if band is not None:
        mask &= inside_band(band, q_pos, k_pos)
    return spread_heads(mask, p)


def inside_band(band: Band, q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """Pairs `[B, heads, t, n]` that a band holds."""
    at = k_pos[:, :, None, :]
    return (at >= band.low(q_pos)[:, None, :, None]) & (at < band.high(q_pos)[:, None, :, None])


def spread_heads(x: Tensor, p: Problem) -> Tensor:
    """Repeat per-kv-head rows (dim 1) for the query heads of each group; one shared row stays one."""
    repeats = p.queries.shape[1] // x.shape[1]
    return x if x.shape[1] == 1 or repeats == 1 else x.repeat_interleave(repeats, dim=1)


def additive_mask(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    if bias is None:
        return mask
    if mask is None:
        return bias
    if mask.dim() == 2:
        mask = mask[None, None]
    return torch.where(mask, bias, -torch.inf)


def same(x: Tensor) -> Tensor:
    return x


def turner(positions: Tensor, rotary: Rotary) -> Callable[[Tensor], Tensor]:
    def turn(x: Tensor) -> Tensor:
        return rotate(x, *angles(positions, rotary.inv_freq, rotary.scaling, x.dtype))

    return turn
