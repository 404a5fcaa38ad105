"""From what the last queries of each chunk attend to (`vertical_slash`) to the table of the block-sparse kernel.

A chunk of queries shares an estimate and is cut into pieces. Per head and piece: the best single keys before the piece,
visited by all its queries, and for every row of query blocks the best blocks before the piece by the diagonals through
them. The piece's own tokens are visited densely. Block j of the keys and row i of the queries meet at offset
`(S - T) // b + i - j`, so the rows of a piece look at one vector of scores through windows that move on by one: the best of
what all windows share are found once, and each row adds what only it sees.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longspan.ops.backend import choose, triton_reason
from longspan.ops.block_sparse.table import BlockTable
from longspan.ops.estimate.vertical_slash import check_chunks, vertical_slash


def vertical_slash_table(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    *,
    scale: float,
    vertical_tokens: int,
    slash_tokens: int,
    chunk_tokens: int | None = None,
    local_tokens: int | None = None,
    block_tokens: int = 64,
    last_queries: int = 64,
    first_tokens: int = 30,
    first_place: Tensor | None = None,
    mass_bytes: int = 2**28,
    backend: str | None = None,
) -> BlockTable:
    """MInference's vertical-slash index of a step.

    Args:
        q_BHTD: queries of the step, at the places S-T .. S-1.
        k_BKSD: all stored keys; any strides but the last dimension's, which is 1.
        scale: softmax scale.
        vertical_tokens: single keys before its piece that each query visits, 0 or more.
        slash_tokens: keys before its piece that a row of query blocks visits by diagonals, in whole blocks (rounded up).
        chunk_tokens: queries that share an estimate, a multiple of `block_tokens`; None for all.
        local_tokens: queries of a piece, a multiple of `block_tokens` that divides `chunk_tokens`; None, or as many as a
            chunk has, for one piece a chunk.
        block_tokens: queries, and keys, of a block: 16, 32, 64 or 128.
        last_queries: queries at the end of each chunk that are asked, 1 to 64.
        first_tokens: first real keys that are always among the single ones (MInference: 30).
        first_place: int32 `[B]`, places before it hold padding; None for 0.
        mass_bytes: chunks are estimated a few at a time, so that the attention per key takes about this much memory (but
            one chunk at least).
        backend: `triton` or `naive`; None for the first that can.

    Returns:
        A table with h = H. A row's blocks: first those that hold its piece's tokens up to its own, then by score the best
        `ceil(slash_tokens / block_tokens)` of those before (fewer where fewer hold real keys). Where S-T is no multiple of
        block_tokens, the first own block also holds keys from before the piece, which come on top of the budget. Columns:
        ascending, `[B, H, P, vertical_tokens]`, P pieces, then -1 where less comes before.

    Raises:
        ValueError: for shapes, dtypes or sizes that do not fit.
    """
    chunk = check_chunks(q_BHTD, k_BKSD, chunk_tokens, block_tokens, last_queries, first_place)
    for name, value in (("vertical_tokens", vertical_tokens), ("slash_tokens", slash_tokens)):
        if value < 0:
            raise ValueError(f"got {name}={value}; allowed is 0 or more, such as {name}=512")
    if first_tokens < 0 or mass_bytes < 1:
        raise ValueError(
            f"got first_tokens={first_tokens}, mass_bytes={mass_bytes}; allowed are 0 or more and 1 or more"
        )
    piece = _check_local(local_tokens, chunk, chunk_tokens, block_tokens)
    reason = triton_reason(q_BHTD, k_BKSD, forced=backend == "triton")
    backend = choose("vertical_slash_table", {"triton": reason, "naive": None}, backend)
    if backend == "triton":
        from longspan.ops.estimate.vertical_slash_table_triton import triton_best_columns, triton_rows

        best_columns, rows = triton_best_columns, triton_rows
    else:
        best_columns, rows = naive_best_columns, naive_rows
    B, H, T = q_BHTD.shape[:3]
    past, num_slashes = k_BKSD.shape[2] - T, -(-slash_tokens // block_tokens)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    end = T
    while end > 0:  # from the last chunk on: the first ones need less memory each, so more are taken at once
        last = -(-end // chunk)
        begin = max(0, last - max(1, mass_bytes // (4 * B * H * (past + end)))) * chunk
        q, k = q_BHTD[:, :, begin:end], k_BKSD[:, :, : past + end]
        columns, offsets = vertical_slash(
            *(q, k),
            scale=scale,
            chunk_tokens=chunk,
            block_tokens=block_tokens,
            last_queries=last_queries,
            first_place=first_place,
            backend=backend,
        )
        cut: dict[str, Any] = {
            "num_queries": end - begin,
            "chunk_tokens": chunk,
            "local_tokens": piece,
            "first_place": first_place,
        }
        single = best_columns(
            columns, vertical_tokens, first_tokens=min(first_tokens, vertical_tokens), **cut
        )
        blocks = rows(offsets, num_slashes, num_tokens=past + end, block_tokens=block_tokens, **cut)
        found.append((single, *blocks))
        end = begin
    single, index, counts = (
        parts[0] if len(parts) == 1 else torch.cat(parts[::-1], dim=2) for parts in zip(*found, strict=True)
    )
    return BlockTable(
        index=index,
        counts=counts,
        block_tokens=block_tokens,
        columns=single if vertical_tokens else None,
        column_query_tokens=piece if vertical_tokens else None,
        first_place=first_place,
    )


def _check_local(local_tokens: int | None, chunk: int, chunk_tokens: int | None, block_tokens: int) -> int:
    """Queries of a piece, no more than those of a chunk."""
    if local_tokens is None or (local_tokens >= chunk and local_tokens % block_tokens == 0):
        return chunk
    if local_tokens < block_tokens or local_tokens % block_tokens or (chunk_tokens or 0) % local_tokens:
        raise ValueError(
            f"got local_tokens={local_tokens}; allowed is a multiple of block_tokens={block_tokens} that divides "
            f"chunk_tokens={chunk_tokens}, or None for all of a chunk"
        )
    return local_tokens


def naive_best_columns(
    columns_BHCS: Tensor,
    num_columns: int,
    *,
    first_tokens: int,
    num_queries: int,
    chunk_tokens: int,
    local_tokens: int,
    first_place: Tensor | None,
) -> Tensor:
    """The best keys before each piece: int32 `[B, H, P, num_columns]`, ascending, then -1."""
    B, _, _, S = columns_BHCS.shape
    device = columns_BHCS.device
    place = torch.arange(S, device=device)
    piece = torch.arange(-(-num_queries // local_tokens), device=device)
    columns = columns_BHCS[:, :, piece * local_tokens // chunk_tokens]
    start = S - num_queries + piece[:, None] * local_tokens
    first = _column(first_place, B, device)
    forced = (place < first + first_tokens) & (place >= first)
    past = (place < start) & (place >= first)
    scores = columns.masked_fill(forced, torch.inf).masked_fill(~past, -torch.inf)
    best, index = scores.topk(min(num_columns, S), dim=-1)
    index = torch.where(best > -torch.inf, index, S).sort(dim=-1).values
    index = torch.where(index == S, -1, index).int()
    return torch.nn.functional.pad(index, (0, num_columns - index.shape[3]), value=-1)


def naive_rows(
    offsets_BHCM: Tensor,
    num_slashes: int,
    *,
    num_queries: int,
    num_tokens: int,
    block_tokens: int,
    chunk_tokens: int,
    local_tokens: int,
    first_place: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Own blocks and the best blocks before the piece: `(index, counts)`, int32 `[B, H, NQ, N]` and `[B, H, NQ]`."""
    B, H, _, num_blocks = offsets_BHCM.shape
    T, S, b, per_piece = num_queries, num_tokens, block_tokens, local_tokens // block_tokens
    device = offsets_BHCM.device
    row = torch.arange(-(-T // b), device=device)
    block = torch.arange(num_blocks, device=device)
    own_first = (S - T) // b + row // per_piece * per_piece
    own_last = (((row + 1) * b).clamp(max=T) - 1 + S - T) // b
    offset = ((S - T) // b + row[:, None] - block).clamp(min=0)  # below 0 are blocks behind the row's own
    real = (block + 1) * b > _column(first_place, B, device)
    before = (block < own_first[:, None]) & real
    scores = offsets_BHCM[:, :, row * b // chunk_tokens].gather(3, offset.expand(B, H, -1, -1))
    best, slashes = scores.masked_fill(~before, -torch.inf).topk(min(num_slashes, num_blocks), dim=-1)
    used = best > -torch.inf
    own = own_last - own_first + 1
    width = row_width(num_slashes, T, S, b, local_tokens)
    slot = torch.arange(width, device=device)
    index = torch.where(slot < own[:, None], own_first[:, None] + slot, -1).int().repeat(B, H, 1, 1)
    to = torch.where(used, own[:, None] + torch.arange(used.shape[3], device=device), width)
    index = torch.nn.functional.pad(index, (0, 1)).scatter_(3, to, slashes.int())[..., :width]
    return index, (own + used.sum(-1)).int()


def row_width(
    num_slashes: int, num_queries: int, num_tokens: int, block_tokens: int, local_tokens: int
) -> int:
    """Entries of a row of the table: the blocks of a piece and the slashes."""
    shifted = (num_tokens - num_queries) % block_tokens > 0  # then a piece lies across one block more
    return local_tokens // block_tokens + shifted + num_slashes


def _column(first_place: Tensor | None, B: int, device: torch.device) -> Tensor:
    if first_place is None:
        return torch.zeros(1, 1, 1, 1, dtype=torch.int32, device=device)
    return first_place[:, None, None, None]
