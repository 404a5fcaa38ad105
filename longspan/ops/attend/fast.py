"""The fast path: slices where the visit is a range, gathered rows where it is a choice, partial results merged.

Work per query block: `[before] + [own block, causal]`. Where positions are contiguous the slices are found by
arithmetic, otherwise a mask of positions decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longspan.ops.attend.partial import merge_states, partial_attend
from longspan.ops.attend.problem import Problem, Rotary
from longspan.ops.rotary import angles, rotate
from longspan.visit import Band, Gather, PerHead, Ranges, Visit

Part = tuple[Tensor, Tensor]
Turn = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor | None]
QUERY_BLOCK_TOKENS = 512  # queries per slice of a range; keeps masks and rotated copies small


def attend(problem: Problem) -> Tensor:
    """Attention output `[B, H, T, D]`; the same function as `naive_attend`, faster."""
    visit = problem.visit
    if isinstance(visit, PerHead):
        out = torch.empty_like(problem.queries)
        for heads, part in (cut for whole in visit.parts for cut in _by_kv_head(*whole, problem.num_groups)):
            out[:, list(heads)] = attend(problem.for_heads(heads, part))
        return out
    if isinstance(visit, Gather):
        return _attend_gather(problem, visit)
    if isinstance(visit, Ranges) and problem.contiguous_from is not None:
        end = problem.contiguous_from + problem.num_tokens
        if end <= max(visit.window_tokens, visit.sink_tokens):
            return _attend_slices(problem, None)[0]
    return _attend_slices(problem, visit if isinstance(visit, Ranges) else None)[0]


def _by_kv_head(heads: tuple[int, ...], visit: Visit, groups: int) -> list[tuple[tuple[int, ...], Visit]]:
    """Cut a part of a `PerHead` into pieces whose kv heads are slices of the store, so that none of it is copied."""
    kv_heads = [head // groups for head in heads]
    kv_range = range(kv_heads[0], kv_heads[-1] + 1)
    if list(heads) == [kv * groups + g for kv in kv_range for g in range(groups)]:
        return [(heads, visit)]
    pieces = []
    for kv in dict.fromkeys(kv_heads):
        places = [i for i, head in enumerate(heads) if head // groups == kv]
        part = visit
        if isinstance(visit, Gather) and visit.index.shape[1] > 1:
            repeats = len(heads) // visit.index.shape[1]
            part = replace(visit, index=visit.index[:, [i // repeats for i in places]])
        pieces.append((tuple(heads[i] for i in places), part))
    return pieces


@dataclass(frozen=True)
class _Piece:
    """Keys `[start, stop)` of a problem; `causal` when they are the query block's own."""

    start: int
    stop: int
    causal: bool = False


def _attend_slices(p: Problem, ranges: Ranges | None) -> Part:
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
    return _join(blocks)


def _join(blocks: list[Part]) -> Part:
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
                turn_q(queries), turn_k(keys), values, scale=p.scale, mask=_additive(both, bias), causal=causal
            )
        )
    return parts


def _piece_mask(p: Problem, piece: _Piece, q_pos: Tensor, k_pos: Tensor, ranges: Ranges | None) -> Tensor | None:
    """Boolean `[B, H or 1, t, n]` of the pairs that validity and range allow, None for all; causality apart."""
    query, at = q_pos[:, None, :, None], k_pos[:, :, None, :]
    mask = None
    if p.contiguous_from is None:
        mask = (at >= 0) & (query >= 0)
    if ranges is not None:
        first_q = None if p.contiguous_from is None else p.contiguous_from + p.num_tokens - p.num_new
        near = (at < ranges.sink_tokens) | (query - at < ranges.window_tokens)
        all_sink = first_q is not None and p.contiguous_from + piece.stop <= ranges.sink_tokens
        mask = mask if all_sink else near if mask is None else mask & near
    return None if mask is None else _spread(mask, p)


def _rotations(p: Problem, q_pos: Tensor, k_pos: Tensor, piece: _Piece) -> list[Turn]:
    """How to rotate queries and keys of one piece, once per band, and which pairs the band holds."""
    if p.rotary is None:
        return [(_same, _same, None)]
    rotary = p.rotary
    q, k = q_pos.clamp(min=0)[:, None], k_pos.clamp(min=0)
    if not rotary.bands:
        return [(_turner(q, rotary), _turner(k, rotary), None)]
    found = []
    for band in rotary.bands:
        if p.contiguous_from is not None:
            low, high = band.low(q_pos), band.high(q_pos)
            start, stop = p.contiguous_from + piece.start, p.contiguous_from + piece.stop
            if int(low.min()) >= stop or int(high.max()) <= start:
                continue
            if int(low.max()) <= start and (int(high.min()) >= stop or piece.causal and bool((high > q_pos).all())):
                found.append((_turner(band.query(q), rotary), _turner(band.key(k), rotary), None))
                continue
        inside = _spread(_inside(band, q_pos, k_pos), p)
        found.append((_turner(band.query(q), rotary), _turner(band.key(k), rotary), inside))
    return found


def _attend_gather(p: Problem, visit: Gather) -> Tensor:
    T, past = p.num_new, p.num_tokens - p.num_new
    num_blocks = visit.index.shape[2]
    assert num_blocks == 1 or visit.query_block_tokens is not None, "several index rows need query_block_tokens"
    block = visit.query_block_tokens or T
    q_pos, own_pos = p.query_positions, p.key_positions[:, :, past:]
    if visit.compact:
        assert visit.index.shape[1] == num_blocks == 1, "compact positions need one shared row of indices"
        counts = (visit.index[:, 0] >= 0).sum(-1)
        q_pos = counts + torch.arange(T, device=q_pos.device).expand(q_pos.shape[0], T)
        own_pos = q_pos[:, None]
    own = Problem(
        queries=p.queries,
        keys=p.keys[:, :, past:],
        values=p.values[:, :, past:],
        query_positions=q_pos,
        key_positions=own_pos,
        num_new=T,
        scale=p.scale,
        rotary=p.rotary,
        bias=None if p.bias is None else p.bias[:, :, past:],
        contiguous_from=None if p.contiguous_from is None or visit.compact else p.contiguous_from + past,
    )
    rows = [_gathered(p, visit, row, row * block, min((row + 1) * block, T), q_pos) for row in range(num_blocks)]
    return merge_states([_attend_slices(own, None), _join(rows)])[0]


def _gathered(p: Problem, visit: Gather, row: int, first: int, last: int, q_pos: Tensor) -> Part:
    """State of the queries `[first, last)` over the past tokens that their row of indices names."""
    index = visit.index[:, :, row]
    used = index >= 0
    widest = int(used.sum(-1).max()) if index.numel() else 0
    if widest < index.shape[-1] and not bool(used[..., widest:].any()):
        index, used = index[..., :widest], used[..., :widest]  # unused slots at the end cost nothing
    queries = p.queries[:, :, first:last]
    if index.shape[-1] == 0:
        return torch.zeros_like(queries), queries.new_full(queries.shape[:3], -torch.inf, dtype=torch.float32)
    index = index.clamp(min=0)
    keys, values = _take(p.keys, p.values, index)
    k_pos = _gathered_positions(p, visit, index, used)
    valid = k_pos >= 0
    mask = None if bool(valid.all()) else _spread(valid, p)[:, :, None, :]
    bias = None if p.bias is None else _take_flat(p.bias, index)[:, :, None]
    parts = []
    for turn_q, turn_k, inside in _gathered_rotations(p, q_pos[:, first:last], k_pos):
        both = inside if mask is None else mask if inside is None else mask & inside
        additive = _additive(both, None if bias is None else _spread(bias, p))
        parts.append(partial_attend(turn_q(queries), turn_k(keys), values, scale=p.scale, mask=additive))
    return merge_states(parts)


def _gathered_positions(p: Problem, visit: Gather, index: Tensor, used: Tensor) -> Tensor:
    """Positions of the gathered keys, -1 for slots that hold nothing."""
    if visit.compact:
        return torch.where(used, used.cumsum(-1) - 1, -1)
    if p.contiguous_from is not None:
        return torch.where(used, index + p.contiguous_from, -1)
    return _take_flat(p.key_positions, index, used)


def _gathered_rotations(p: Problem, q_pos: Tensor, k_pos: Tensor) -> list[Turn]:
    if p.rotary is None:
        return [(_same, _same, None)]
    q, k = q_pos.clamp(min=0)[:, None], k_pos.clamp(min=0)
    if not p.rotary.bands:
        return [(_turner(q, p.rotary), _turner(k, p.rotary), None)]
    return [
        (_turner(band.query(q), p.rotary), _turner(band.key(k), p.rotary), _spread(_inside(band, q_pos, k_pos), p))
        for band in p.rotary.bands
    ]


def _inside(band: Band, q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """Pairs `[B, heads, t, n]` that a band holds."""
    at = k_pos[:, :, None, :]
    return (at >= band.low(q_pos)[:, None, :, None]) & (at < band.high(q_pos)[:, None, :, None])


def _spread(x: Tensor, p: Problem) -> Tensor:
    """Repeat per-kv-head rows (dim 1) for the query heads of each group; one shared row stays one."""
    repeats = p.queries.shape[1] // x.shape[1]
    return x if x.shape[1] == 1 or repeats == 1 else x.repeat_interleave(repeats, dim=1)


def _take_flat(x: Tensor, index: Tensor, used: Tensor | None = None) -> Tensor:
    """Entries `index` `[B, a, N]` of x `[B, b, S]`, a and b each 1 or a divisor of the larger; -1 where not used."""
    heads = max(x.shape[1], index.shape[1])
    out = x.repeat_interleave(heads // x.shape[1], 1).gather(2, index.repeat_interleave(heads // index.shape[1], 1))
    if used is None:
        return out
    return torch.where(used.repeat_interleave(heads // used.shape[1], 1), out, -1)


def _take(keys: Tensor, values: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Rows `index` `[B, heads, N]` of keys and values `[B, K, S, D]`: each `[B, max(heads, K), N, D]`."""
    taken = []
    rows, layout = index, None
    for x in (keys, values):
        B, K, _, D = x.shape
        if x.stride(3) != 1 or x.stride(2) != D or x.stride(1) % D or x.stride(0) % D:
            x = x.contiguous()
        heads = max(index.shape[1], K)
        if layout != (x.stride(0) // D, x.stride(1) // D):
            layout = (x.stride(0) // D, x.stride(1) // D)
            kv = torch.arange(heads, device=x.device) // (heads // K)
            batch = torch.arange(B, device=x.device)
            rows = (index + kv[None, :, None] * layout[1] + batch[:, None, None] * layout[0]).reshape(-1)
        num_rows = (x.untyped_storage().nbytes() // x.element_size() - x.storage_offset()) // D
        taken.append(x.as_strided((num_rows, D), (D, 1)).index_select(0, rows).view(B, heads, -1, D))
    return taken[0], taken[1]


def _additive(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    if bias is None:
        return mask
    if mask is None:
        return bias
    if mask.dim() == 2:
        mask = mask[None, None]
    return torch.where(mask, bias, -torch.inf)


def _same(x: Tensor) -> Tensor:
    return x


def _turner(positions: Tensor, rotary: Rotary) -> Callable[[Tensor], Tensor]:
    def turn(x: Tensor) -> Tensor:
        return rotate(x, *angles(positions, rotary.inv_freq, rotary.scaling, x.dtype))

    return turn
