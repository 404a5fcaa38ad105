"""Attention over slices of the stored keys, partial results merged.

Work per query block: `[before] + [own block, causal]`. Where positions are contiguous the slices are found by
arithmetic, otherwise a mask of positions decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.ops.attend.partial import merge_states, partial_attend
from longspan.ops.attend.problem import Problem, Rotary
from longspan.ops.rotary import angles, rotate
from longspan.visit import Band, Ranges

Part = tuple[Tensor, Tensor]
Turn = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor | None]
QUERY_BLOCK_TOKENS = 512  # queries per slice of a range; keeps masks and rotated copies small


@dataclass(frozen=True)
class _Piece:
    """Keys `[start, stop)` of a problem; `causal` when they are the query block's own."""

    start: int
    stop: int
    causal: bool = False


def attend_slices(p: Problem, ranges: Ranges | None) -> Part:
    """Output and log-sum-exp of the queries over every key (or a range) up to each."""
    T, past = p.num_new, p.num_tokens - p.num_new
    plain = p.contiguous_from is not None and ranges is None and not (p.rotary and p.rotary.bands)
    block = T if plain and p.bias is None else QUERY_BLOCK_TOKENS
    blocks = []
    for first in range(0, T, block):
        last = min(first + block, T)
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
    queries, keys = p.queries[:, :, first:last], p.keys[:, :, piece.start : piece.stop]
    values, q_pos = p.values[:, :, piece.start : piece.stop], p.query_positions[:, first:last]
    k_pos = p.key_positions[:, :, piece.start : piece.stop]
    bias = None if p.bias is None else p.bias[:, :, None, piece.start : piece.stop]
    mask = _piece_mask(p, piece, q_pos, k_pos, ranges)
    parts = []
    for turn_q, turn_k, inside in _rotations(p, q_pos, k_pos, piece):
        both = inside if mask is None else mask if inside is None else mask & inside
        causal = piece.causal and both is None and bias is None
        if piece.causal and not causal:
            order = torch.ones(last - first, last - first, dtype=torch.bool, device=keys.device).tril()
            both = order if both is None else both & order
        parts.append(
            partial_attend(
                turn_q(queries),
                turn_k(keys),
                values,
                scale=p.scale,
                mask=additive_mask(both, bias),
                causal=causal,
            )
        )
    return parts


def _piece_mask(
    p: Problem, piece: _Piece, q_pos: Tensor, k_pos: Tensor, ranges: Ranges | None
) -> Tensor | None:
    """Boolean `[B, H or 1, t, n]` of the pairs that validity and range allow, None for all; causality apart."""
    query, at = q_pos[:, None, :, None], k_pos[:, :, None, :]
    mask = None
    if p.contiguous_from is None:
        mask = (at >= 0) & (query >= 0)
    if ranges is not None:
        near = (at < ranges.sink_tokens) | (query - at < ranges.window_tokens)
        all_sink = p.contiguous_from is not None and p.contiguous_from + piece.stop <= ranges.sink_tokens
        mask = mask if all_sink else near if mask is None else mask & near
    return None if mask is None else spread_heads(mask, p)


def _rotations(p: Problem, q_pos: Tensor, k_pos: Tensor, piece: _Piece) -> list[Turn]:
    """How to rotate queries and keys of one piece, once per band, and which pairs the band holds."""
    if p.rotary is None:
        return [(same, same, None)]
    rotary = p.rotary
    q, k = q_pos.clamp(min=0)[:, None], k_pos.clamp(min=0)
    if not rotary.bands:
        return [(turner(q, rotary), turner(k, rotary), None)]
    found: list[Turn] = []
    for band in rotary.bands:
        if p.contiguous_from is not None:
            low, high = band.low(q_pos), band.high(q_pos)
            start, stop = p.contiguous_from + piece.start, p.contiguous_from + piece.stop
            if int(low.min()) >= stop or int(high.max()) <= start:
                continue
            if int(low.max()) <= start and (
                int(high.min()) >= stop or piece.causal and bool((high > q_pos).all())
            ):
                found.append((turner(band.query(q), rotary), turner(band.key(k), rotary), None))
                continue
        inside = spread_heads(inside_band(band, q_pos, k_pos), p)
        found.append((turner(band.query(q), rotary), turner(band.key(k), rotary), inside))
    return found


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
