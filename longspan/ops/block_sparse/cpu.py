"""Block-sparse prefill on a CPU: a block of queries against its visited keys, gathered, in two large matrix products.

The gather costs a copy and buys products of many rows with thousands of keys, which run at the speed of large matrices;
products per pair of blocks do not. Heads that share a row of the table are rows of one product. Most keys of a row are
visited by all of its queries and need no mask; masks are built only where queries differ, at the diagonal and at the
far end of the window. At most `SCORES_AT_ONCE` scores exist at a time.

The products go to oneDNN where PyTorch has it: its kernels use AVX-512 on every maker's CPU, MKL's only on Intel's.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from longspan.ops.block_sparse.cpu_plan import Piece, Plan, Visit
from longspan.ops.block_sparse.table import BlockTable, check_table

SCORES_AT_ONCE = 2**21  # 8 MiB of float32
KEY_MULTIPLE = 128  # keys of a product are padded to it: each new shape costs oneDNN 0.3 ms, once

_ONEDNN = (
    torch.ops.mkldnn._linear_pointwise.default
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    else None
)


def cpu_block_sparse_prefill(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, table: BlockTable, *, scale: float
) -> tuple[Tensor, Tensor]:
    """See `block_sparse_prefill`; computes no gradients; float32 arithmetic whatever the dtype."""
    check_table(q_BHTD, k_BKSD, v_BKSD, table)
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    out = torch.empty(q_BHTD.shape, dtype=q_BHTD.dtype)
    lse = torch.empty(B, H, T)
    room = _Room(k_BKSD)
    with torch.inference_mode():  # views cost half; what is written was made outside
        for b in range(B):
            plan = Plan(table, b, H, K, T, S)
            keys, values = (
                [_Store(x[b, kv], table.block_tokens) for kv in range(K)] for x in (k_BKSD, v_BKSD)
            )
            for start, stop, visits in plan.rows():
                queries = q_BHTD[b, :, start:stop].float().mul(scale).contiguous()
                parts = [
                    _attend(queries[heads].view(-1, D), keys[kv], values[kv], visits[unit], room)
                    for unit, kv, heads in plan.targets
                ]
                rows = stop - start
                torch.cat([part.view(-1, rows, D) for part, _ in parts], out=out[b, :, start:stop])
                torch.cat([total.view(-1, rows) for _, total in parts], out=lse[b, :, start:stop])
    return out, lse


def _attend(
    queries: Tensor, keys: _Store, values: _Store, visit: Visit, room: _Room
) -> tuple[Tensor, Tensor]:
    """Output `[n, D]` and log-sum-exp `[n]` of scaled queries `[n, D]` (heads by queries) over one visit."""
    limit = max(KEY_MULTIPLE, SCORES_AT_ONCE // len(queries))
    total: tuple[Tensor, Tensor] | None = None
    for pieces, last in _portions(visit, limit):
        part = _attend_portion(queries, keys, values, pieces, visit if last else None, room)
        total = part if total is None else _merged(total, part)
    if total is None:
        return torch.zeros_like(queries), queries.new_full((len(queries),), -torch.inf)
    return total


def _portions(visit: Visit, limit: int) -> Iterator[tuple[list[Piece], bool]]:
    """Pieces of at most `limit` keys, the masked ones with the last of them, and whether they are there."""
    if sum(num_keys for *_, num_keys in visit.joined) <= limit:
        if visit.joined:
            yield visit.joined, bool(visit.masked)
        return
    held: list[Piece] = []
    room = limit
    for what, size, num_keys in visit.pieces:
        first = what.start if isinstance(what, slice) else 0
        start, stop = first, first + num_keys // size
        while start < stop:
            take = min(stop - start, max(1, room // size))
            cut = slice(start, start + take)
            held.append((cut if isinstance(what, slice) else what[cut], size, take * size))
            start, room = start + take, room - take * size
            if room < size:
                yield held, False
                held, room = [], limit
    if held or visit.masked:
        yield held + visit.masked, bool(visit.masked)


def _attend_portion(
    queries: Tensor, keys: _Store, values: _Store, pieces: list[Piece], visit: Visit | None, room: _Room
) -> tuple[Tensor, Tensor]:
    """As `_attend` over some pieces; `visit` says which pairs of the last of them are hidden, None for no pair."""
    num_keys = room.lay_out(pieces)
    gathered = room.take(keys)
    width = len(gathered)
    scores = matrix_product(queries, gathered.T)
    if num_keys < width:
        scores[:, num_keys:] = -torch.inf
    if visit is not None:
        hidden = visit.hidden
        first = num_keys - hidden.shape[1]
        masked = scores.view(-1, len(hidden), width).narrow(2, first, num_keys - first)
        if hidden.dtype == torch.bool:
            masked.masked_fill_(hidden, -torch.inf)
        else:
            masked.add_(hidden)  # several times faster
    top = scores.amax(-1)
    torch.softmax(scores, dim=-1, out=scores)
    lse = top - scores.amax(-1).log_()  # the largest weight is exp(top - lse)
    if visit is not None and first == 0:
        dead = top == -torch.inf
        scores.masked_fill_(dead[:, None], 0.0)
        lse.masked_fill_(dead, -torch.inf)
    gathered = room.take(values)
    if visit is not None and visit.unseen is not None:
        # a weight of 0 does not remove a NaN
        gathered[first:num_keys].masked_fill_(visit.unseen[:, None], 0.0)
    return matrix_product(scores, gathered), lse


def _merged(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    total = torch.logaddexp(one[1], other[1])
    safe = torch.where(total == -torch.inf, 0.0, total)
    weights = [(lse - safe).exp_()[:, None] for _, lse in (one, other)]
    return one[0] * weights[0] + other[0] * weights[1], total


def matrix_product(a: Tensor, b: Tensor) -> Tensor:
    """a `[n, m]` times b `[m, p]`, float32."""
    if _ONEDNN is None:
        return a @ b
    result: Tensor = _ONEDNN(a, b.T, None, "none", [], "")
    return result


class _Store:
    """Stored rows `[S, D]` of one kv head, singly (size 1) and by whole blocks `[n, block, D]`."""

    def __init__(self, rows: Tensor, block: int) -> None:
        self.by_size = {1: rows, block: rows[: len(rows) // block * block].unflatten(0, (-1, block))}


class _Room:
    """Memory for gathered rows, used again and again."""

    def __init__(self, like: Tensor) -> None:
        self.rows = self.laid = like.new_empty(0, like.shape[-1])
        self.places: list[tuple[slice | Tensor, int, Tensor]] = []

    def lay_out(self, pieces: list[Piece]) -> int:
        """Give every piece its rows, then zeros up to a multiple of `KEY_MULTIPLE`; how many are no zeros."""
        num_keys, D = sum(count for *_, count in pieces), self.rows.shape[1]
        width = -(-num_keys // KEY_MULTIPLE) * KEY_MULTIPLE
        if width > len(self.rows):
            self.rows = self.rows.new_empty(width, D)
        self.laid, start, self.places = self.rows[:width], 0, []
        for what, size, count in pieces:
            target = self.rows[start : start + count]
            self.places.append((what, size, target if size == 1 else target.view(-1, size, D)))
            start += count
        if num_keys < width:
            self.laid[num_keys:].zero_()
        return num_keys

    def take(self, store: _Store) -> Tensor:
        """The rows of the pieces laid out last, float32; until the next call."""
        for what, size, target in self.places:
            if isinstance(what, slice):
                target.copy_(store.by_size[1][what])
            else:
                torch.index_select(store.by_size[size], 0, what, out=target)
        return self.laid.float()
