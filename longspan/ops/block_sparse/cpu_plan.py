"""Plan of the CPU path: which keys each row of a table visits, as ranges and lists of blocks and single keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.ops.block_sparse.table import BlockTable

ROWS_AT_ONCE = 32  # table rows whose lists are made together

# Keys of a range of places, or blocks of `size` keys by their numbers; `size` (1 for a range); how many keys these are.
Piece = tuple["slice | Tensor", int, int]


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What one row of a table visits.

    Args:
        pieces: keys that all of its queries visit.
        masked: keys that some of them visit; they follow the others.
        joined: all of these, in fewer pieces where they lie together.
        hidden: boolean `[queries, masked keys]`, True where a pair is not visited, or the same as a bias of 0 and -inf.
        unseen: boolean `[masked keys]`, those that no query visits; None when there are none.
    """

    pieces: list[Piece]
    masked: list[Piece]
    joined: list[Piece]
    hidden: Tensor
    unseen: Tensor | None


class Plan:
    """The visits of one batch row, found for `ROWS_AT_ONCE` rows of the table and all of its heads at once.

    A unit is what has rows of its own: every head, every kv head, or all together. `targets` holds `(unit, kv head,
    query heads)` of each product.
    """

    def __init__(self, table: BlockTable, b: int, H: int, K: int, T: int, S: int) -> None:
        self.table, self.T, self.S = table, T, S
        columns = table.columns
        self.units = max(table.index.shape[1], 1 if columns is None else columns.shape[1])
        self.index, self.counts = self._spread(table.index[b]), self._spread(table.counts[b])
        self.columns = None if columns is None else self._spread(columns[b])
        self.first = 0 if table.first_place is None else max(0, int(table.first_place[b]))
        self.past_last: dict[tuple[int, ...], Tensor] = {}
        per_target = 1 if self.units == H else H // K
        self.targets = [
            (head * self.units // H, head * K // H, slice(head, head + per_target))
            for head in range(0, H, per_target)
        ]

    def rows(self) -> Iterator[tuple[int, int, list[Visit]]]:
        """First query, last query + 1 and the visit of each unit, row by row."""
        block, num_rows = self.table.block_tokens, self.index.shape[1]
        for first_row in range(0, num_rows, ROWS_AT_ONCE):
            rows = range(first_row, min(first_row + ROWS_AT_ONCE, num_rows))
            lists = _Lists(self, rows)
            for row in rows:
                start = row * block
                stop = min(start + block, self.T)
                yield start, stop, lists.visits(row)

    def bounds(self, row: int) -> tuple[int, int, int]:
        """First and last + 1 place of a row's queries, and the start of the blocks where they may differ."""
        block = self.table.block_tokens
        past = self.S - self.T
        first, last = past + row * block, past + min((row + 1) * block, self.T)
        return first, last, max(0, min(first, first - self.table.window_tokens + 1)) // block * block

    def _spread(self, x: Tensor) -> Tensor:
        return x if x.shape[0] == self.units else x.repeat_interleave(self.units // x.shape[0], dim=0)


class _Lists:
    """Lists of blocks and columns of some rows of a plan."""

    def __init__(self, plan: Plan, rows: range) -> None:
        self.plan, self.first_row = plan, rows.start
        table, block, S = plan.table, plan.table.block_tokens, plan.S
        self.floor = max(plan.first, table.sink_tokens)  # what stands before is visited by all or by nobody
        cut = slice(rows.start, rows.stop)
        ends = torch.tensor([plan.bounds(row)[2] for row in rows], dtype=torch.int32)[None, :, None]
        num_blocks = -(-S // block)
        index, counts = plan.index[:, cut], plan.counts[:, cut, None]
        index = index[..., : int(counts.max())]
        used = torch.arange(index.shape[2]) < counts
        inside = used & (index >= 0) & (index < num_blocks)
        member = torch.zeros(*index.shape[:2], num_blocks + 1, dtype=torch.bool)
        self.member = member.scatter_(-1, torch.where(inside, index, num_blocks).long(), True)[..., :-1]
        whole = inside & (index >= -(-self.floor // block)) & (index < ends // block)
        # behind its blocks a row has the one that starts where its queries may begin to differ
        whole, index = (torch.nn.functional.pad(x, (0, 1)) for x in (whole, index))
        self.blocks, self.num_blocks = _sorted(index, whole, ends // block)
        self.columns: Tensor | None = None
        if plan.columns is not None and table.column_query_tokens is not None:
            self.rows_a_column = table.column_query_tokens // block
            columns = plan.columns[:, torch.tensor(rows) // self.rows_a_column]
            alone = (columns >= self.floor) & (columns < ends)
            alone &= ~self.member.gather(-1, torch.where(alone, columns // block, 0).long())
            self.columns, self.num_columns = _sorted(columns, alone, S)

    def visits(self, row: int) -> list[Visit]:
        plan, block = self.plan, self.plan.table.block_tokens
        first, last, end = plan.bounds(row)
        near = last - plan.table.window_tokens  # from here to the first query every query visits all
        shared = _ranges((plan.first, min(self.floor, end)), (max(near, plan.first, end), first))
        differ = [(max(end, plan.first), max(min(near, first), end)), (max(first, plan.first), last)]
        masked = _ranges(*differ) if near < first else _ranges((max(end, plan.first), last))
        place, shown = self._shown(row, masked)
        query = torch.arange(first, last)[:, None]
        all_shown = shown.all(1).tolist()
        if not all(all_shown):
            hidden, seen = self._hidden(place, query, shown)
            sees, all_seen = seen.any(1).tolist(), seen.all(1).tolist()
        head_block, at = divmod(self.floor, block)
        head = (
            _ranges((self.floor, self.floor + block - at)) if (head_block + 1) * block <= end and at else []
        )
        own_block = masked == [(slice(end, end + block), 1, block)]
        i, visits = row - self.first_row, []
        for unit in range(plan.units):
            pieces = shared + head if head and bool(self.member[unit, i, head_block]) else shared.copy()
            if self.columns is not None and (count := self.num_columns[unit][i]):
                pieces.append((self.columns[unit, i, :count], 1, count))
            num_blocks = self.num_blocks[unit][i]
            blocks = self.blocks[unit, i]
            extra: list[Piece] = [(blocks[:num_blocks], block, num_blocks * block)] if num_blocks else []
            if all_shown[unit]:
                joined: list[Piece] = (
                    [(blocks[: num_blocks + 1], block, (num_blocks + 1) * block)]
                    if own_block
                    else extra + masked
                )
                bias = self._past_last(place, query, first)
                visit = Visit(
                    pieces=pieces + extra, masked=masked, joined=pieces + joined, hidden=bias, unseen=None
                )
            else:
                kept = masked if sees[unit] else []
                unseen = None if all_seen[unit] else ~seen[unit]
                visit = Visit(
                    pieces=pieces + extra,
                    masked=kept,
                    joined=pieces + extra + kept,
                    hidden=hidden[unit],
                    unseen=unseen,
                )
            visits.append(visit)
        return visits

    def _shown(self, row: int, ranges: list[Piece]) -> tuple[Tensor, Tensor]:
        """The places in some ranges, and `[units, places]` those that a whole row visits, but for later places."""
        plan, table, i = self.plan, self.plan.table, row - self.first_row
        cuts = [what for what, *_ in ranges if isinstance(what, slice)]
        place = torch.cat([torch.arange(cut.start, cut.stop) for cut in cuts] or [torch.arange(0)])
        shown = self.member[:, i, place // table.block_tokens]
        if table.sink_tokens:
            shown = shown | (place < table.sink_tokens)
        if plan.columns is not None and len(place):
            columns = plan.columns[:, row // self.rows_a_column]
            at = torch.searchsorted(place, columns.long()).clamp(max=len(place) - 1)
            extra = torch.zeros(plan.units, len(place) + 1, dtype=torch.bool)
            shown = shown | extra.scatter_(1, torch.where(place[at] == columns, at, len(place)), True)[:, :-1]
        return place, shown

    def _hidden(self, place: Tensor, query: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
        """The pairs that are not visited, `[units, queries, places]`, and the places that are, `[units, places]`."""
        window, later = self.plan.table.window_tokens, place > query
        hidden = ~shown[:, None] | later
        if window:
            hidden &= (query - place >= window) | later
            shown = shown | (place.clamp(min=int(query[0])) - place < window)
        return hidden, shown

    def _past_last(self, place: Tensor, query: Tensor, first: int) -> Tensor:
        """Bias `[queries, places]`: -inf where the place is behind the query. Most rows have the same."""
        ends = (int(place[0]) - first, int(place[-1]) - first) if len(place) else ()
        key = (len(query), len(place), *ends)
        if key not in self.plan.past_last:
            bias = torch.zeros(len(query), len(place)).masked_fill_(place > query, -torch.inf)
            self.plan.past_last[key] = bias
        return self.plan.past_last[key]


def _sorted(numbers: Tensor, keep: Tensor, filler: int | Tensor) -> tuple[Tensor, list[list[int]]]:
    """The kept numbers `[units, rows, n]` first and in order, for the sake of caches, and how many each row has."""
    return torch.where(keep, numbers, filler).sort(dim=-1).values, keep.sum(-1).tolist()


def _ranges(*bounds: tuple[int, int]) -> list[Piece]:
    return [(slice(start, stop), 1, stop - start) for start, stop in bounds if start < stop]
