"""Attention over gathered rows of the store: chosen tokens of the past merged with dense attention over a chunk's own, or
the rows of a block table."""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.ops.attend.partial import partial_attend
from longspan.ops.attend.problem import Problem
from longspan.ops.attend.slices import (
    Part,
    Turn,
    additive_mask,
    attend_slices,
    inside_band,
    join_states,
    same,
    spread_heads,
    turner,
)
from longspan.ops.block_sparse.naive import block_table_mask
from longspan.ops.block_sparse.table import table_row
from longspan.ops.merge_states import merge_states
from longspan.visit import BlockTable, Gather

FEW_QUERIES = 16  # of a decoding step
SMALLEST_BLOCK, LARGEST_BLOCK = 16, 128  # of a table


def attend_gather(p: Problem, visit: Gather) -> Tensor:
    T, past = p.num_new, p.num_tokens - p.num_new
    num_blocks = visit.index.shape[2]
    assert num_blocks == 1 or visit.query_block_tokens is not None, (
        "several index rows need query_block_tokens"
    )
    block = visit.query_block_tokens or T
    q_pos, own_pos = p.query_positions, p.key_positions[:, :, past:]
    if visit.compact:
        assert visit.index.shape[1] == num_blocks == 1, "compact positions need one shared row of indices"
        counts = (visit.index[:, 0] >= 0).sum(-1)
        real = q_pos >= 0
        q_pos = torch.where(real, counts + real.cumsum(-1) - 1, -1)
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
        filled=p.all_real,
    )
    taker = _Taker(p, visit.index.shape[1])
    cuts = [(row, row * block, min((row + 1) * block, T)) for row in range(num_blocks)]
    rows = [
        _gathered(p, visit.index[:, :, row], taker, first, last, q_pos, compact=visit.compact)
        for row, first, last in cuts
    ]
    return merge_states([attend_slices(own, None), join_states(rows)])[0]


def table_of_gather(p: Problem, visit: Gather) -> BlockTable:
    """The same visit as a table, its chosen keys as columns: for one row of indices, behind a past of whole blocks."""
    B, T, past, device = p.queries.shape[0], p.num_new, p.num_tokens - p.num_new, p.queries.device
    assert visit.index.shape[2] == 1 and not visit.compact and past % SMALLEST_BLOCK == 0
    block = LARGEST_BLOCK
    while past % block:
        block //= 2
    rows = -(-T // block)
    row = torch.arange(rows, dtype=torch.int32, device=device)
    return BlockTable(
        index=(row + past // block).expand(B, 1, rows, rows),
        counts=(row + 1).expand(B, 1, rows),
        block_tokens=block,
        columns=visit.index.int(),
        column_query_tokens=rows * block,
    )


def attend_table(p: Problem, table: BlockTable) -> Tensor:
    """Row by row of the table: the tokens that any query of the row visits are gathered, a mask says which one visits which."""
    past, block = p.num_tokens - p.num_new, table.block_tokens
    heads = max(x.shape[1] for x in (table.index, table.columns) if x is not None)
    taker, parts = _Taker(p, heads), []
    for row, first in enumerate(range(0, p.num_new, block)):
        last = min(first + block, p.num_new)
        end = past + last
        mask = block_table_mask(p.queries[:, :, first:last], p.keys[:, :, :end], table_row(table, row))
        mask = mask[:, :: p.queries.shape[1] // heads] & (p.query_positions[:, None, first:last, None] >= 0)
        some = mask.any(dim=2)
        index = torch.where(some, torch.arange(end, device=some.device), end).sort(-1).values
        index = index[..., : int(some.sum(-1).max())]
        visited = mask.gather(3, index.clamp(max=end - 1)[:, :, None].expand(-1, -1, last - first, -1))
        index = torch.where(index == end, -1, index)
        parts.append(_gathered(p, index, taker, first, last, p.query_positions, visited=visited))
    return join_states(parts)[0]


def _gathered(
    p: Problem,
    index: Tensor,
    taker: _Taker,
    first: int,
    last: int,
    q_pos: Tensor,
    *,
    compact: bool = False,
    visited: Tensor | None = None,
) -> Part:
    """State of the queries `[first, last)` over the tokens at the places `index` `[B, h, N]` (-1 for none); `visited`
    `[B, h, last - first, N]` when not every query visits each."""
    used = index >= 0
    if not index.is_cuda and visited is None:
        widest = int(used.sum(-1).max()) if index.numel() else 0
        if widest < index.shape[-1] and not bool(used[..., widest:].any()):
            index, used = index[..., :widest], used[..., :widest]  # unused slots at the end cost nothing
    queries = p.queries[:, :, first:last]
    if index.shape[-1] == 0:
        return torch.zeros_like(queries), queries.new_full(queries.shape[:3], -torch.inf, dtype=torch.float32)
    index = index.clamp(min=0)
    keys, values = taker.take(index)
    k_pos = _gathered_positions(p, index, used, compact)
    valid = k_pos >= 0
    # asking a GPU means waiting for it, which costs more than a mask for few queries
    no_mask = not (valid.is_cuda and last - first <= FEW_QUERIES) and bool(valid.all())
    mask = None if no_mask else spread_heads(valid, p)[:, :, None, :]
    if visited is not None:
        visited = spread_heads(visited, p)
        mask = visited if mask is None else mask & visited
    bias = None if p.bias is None else _take_flat(p.bias, index)[:, :, None]
    parts = []
    for turn_q, turn_k, inside in _gathered_rotations(p, q_pos[:, first:last], k_pos):
        both = inside if mask is None else mask if inside is None else mask & inside
        additive = additive_mask(both, None if bias is None else spread_heads(bias, p))
        parts.append(partial_attend(turn_q(queries), turn_k(keys), values, scale=p.scale, mask=additive))
    return merge_states(parts)


def _gathered_positions(p: Problem, index: Tensor, used: Tensor, compact: bool) -> Tensor:
    """Positions of the gathered keys, -1 for slots that hold nothing."""
    if compact:
        return torch.where(used, used.cumsum(-1) - 1, -1)
    if p.contiguous_from is not None:
        return torch.where(used, index + p.contiguous_from, -1)
    return _take_flat(p.key_positions, index, used)


def _gathered_rotations(p: Problem, q_pos: Tensor, k_pos: Tensor) -> list[Turn]:
    if p.rotary is None:
        return [(same, same, None)]
    q, k = q_pos.clamp(min=0)[:, None], k_pos.clamp(min=0)
    if not p.rotary.bands:
        return [(turner(q, p.rotary), turner(k, p.rotary), None)]
    return [
        (
            turner(band.query(q), p.rotary),
            turner(band.key(k), p.rotary),
            spread_heads(inside_band(band, q_pos, k_pos), p),
        )
        for band in p.rotary.bands
    ]


def _take_flat(x: Tensor, index: Tensor, used: Tensor | None = None) -> Tensor:
    """Entries `index` `[B, a, N]` of x `[B, b, S]`, a and b each 1 or a divisor of the larger; -1 where not used."""
    heads = max(x.shape[1], index.shape[1])
    out = x.repeat_interleave(heads // x.shape[1], 1).gather(
        2, index.repeat_interleave(heads // index.shape[1], 1)
    )
    if used is None:
        return out
    return torch.where(used.repeat_interleave(heads // used.shape[1], 1), out, -1)


class _Taker:
    """Copies rows of keys and values, again and again into the same memory."""

    def __init__(self, p: Problem, heads: int) -> None:
        self.tables = [_table(x) for x in (p.keys, p.values)]
        self.heads = max(heads, p.keys.shape[1])
        self.room: list[Tensor | None] = [None, None]

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, heads, N, D]` at the places `[B, h, N]`, h the heads, K or 1; until the next call."""
        taken = []
        rows, layout = index, None
        for i, (table, *strides) in enumerate(self.tables):
            if strides != layout:
                rows, layout = self._rows(index, *strides), strides
            room, D = self.room[i], table.shape[1]
            if room is None or len(room) < len(rows):
                room = self.room[i] = table.new_empty(len(rows), D)
            torch.index_select(table, 0, rows, out=room[: len(rows)])
            taken.append(room[: len(rows)].view(len(index), self.heads, -1, D))
        return taken[0], taken[1]

    def _rows(self, index: Tensor, batch_stride: int, head_stride: int, num_kv_heads: int) -> Tensor:
        kv = torch.arange(self.heads, device=index.device) // (self.heads // num_kv_heads)
        batch = torch.arange(len(index), device=index.device)
        return (index + kv[None, :, None] * head_stride + batch[:, None, None] * batch_stride).reshape(-1)


def _table(x: Tensor) -> tuple[Tensor, int, int, int]:
    """x `[B, K, S, D]` as one table of rows `[n, D]`, the rows from one batch row and one head to the next, and K."""
    D = x.shape[3]
    if x.stride(3) != 1 or x.stride(2) != D or x.stride(1) % D or x.stride(0) % D:
        x = x.contiguous()
    num_rows = (x.untyped_storage().nbytes() // x.element_size() - x.storage_offset()) // D
    return x.as_strided((num_rows, D), (D, 1)), x.stride(0) // D, x.stride(1) // D, x.shape[1]
