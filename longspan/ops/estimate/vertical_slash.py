"""What the last queries of a chunk say of its past: attention per key (columns) and per distance (diagonals).

The T queries of a step stand at the places S-T .. S-1 of S stored keys and are cut into chunks. The last few queries of
each chunk attend to everything before them, and

    columns[s] = sum over these queries of softmax(q . k * scale)[s]
    diagonal[d] = sum over these queries, at place p, of softmax(q . k * scale)[p - d]

are what MInference ranks single keys and diagonals by. Diagonals are returned as what blocks get of them: queries and
keys are visited in blocks of b, blocks of keys are aligned at place 0 and blocks of queries at place S-T. The block m
blocks behind its queries holds the distances `m b + phase + x - y`, `0 <= x, y < b`, with `phase = (S - T) % b`: it covers
two blocks' worth of diagonals, each by the share `1 - |d - m b - phase| / b` of its length. So

    offsets[m] = sum over d of diagonal[d] * max(0, 1 - |d - m b - phase| / b)

and row i of query blocks ranks key block j by `offsets[(S - T) // b + i - j]`: one vector serves all rows of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.ops.backend import choose, triton_reason
from longspan.ops.estimate.blocks import check_prefill

MOST_QUERIES = 64  # rows of one head in a tile of the matrix units


def vertical_slash(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    *,
    scale: float,
    chunk_tokens: int | None = None,
    block_tokens: int = 64,
    last_queries: int = 64,
    first_place: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention that the last queries of every chunk give to keys and to diagonals.

    Keys are read twice (once for the normaliser, once for the sums), once per kv head, and probabilities never reach
    memory. `columns` is the largest result, 4 B H C S bytes: 128 MiB a chunk for 32 heads and 1M keys. Callers with many
    chunks pass a few at a time, with the keys up to their end, as `vertical_slash_table` does.

    Args:
        q_BHTD: queries of the step, at the places S-T .. S-1.
        k_BKSD: all stored keys; any strides but the last dimension's, which is 1.
        scale: softmax scale.
        chunk_tokens: queries of a chunk, a multiple of `block_tokens`; the last may be shorter. None for one chunk.
        block_tokens: queries, and keys, of a block: 16, 32, 64 or 128.
        last_queries: queries at the end of each chunk that are asked, 1 to 64 (64: MInference).
        first_place: int32 `[B]`, places before it hold padding: their keys get nothing, their queries give nothing. None
            for 0.
        backend: `triton` or `naive`; None for the first that can.

    Returns:
        `(columns, offsets)`, float32 `[B, H, C, S]` and `[B, H, C, ceil(S / block_tokens)]`, C chunks. Columns behind the
        end of their chunk are 0. Distances that only some of the asked queries have (those that reach behind the first
        key of the earliest one) are left out of `offsets`: an attention sink would appear there as a diagonal.

    Raises:
        ValueError: for shapes, dtypes or sizes that do not fit.
    """
    chunk = check_chunks(q_BHTD, k_BKSD, chunk_tokens, block_tokens, last_queries, first_place)
    reason = triton_reason(q_BHTD, k_BKSD, forced=backend == "triton")
    chosen = choose("vertical_slash", {"triton": reason, "naive": None}, backend)
    if chosen == "triton":
        from longspan.ops.estimate.vertical_slash_triton import triton_vertical_slash

        run = triton_vertical_slash
    else:
        run = naive_vertical_slash
    return run(
        q_BHTD,
        k_BKSD,
        scale=scale,
        chunk_tokens=chunk,
        block_tokens=block_tokens,
        last_queries=last_queries,
        first_place=first_place,
    )


def check_chunks(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    chunk_tokens: int | None,
    block_tokens: int,
    last_queries: int,
    first_place: Tensor | None,
) -> int:
    """Tokens of a chunk, no more than T rounded up to whole blocks; raises ValueError as `vertical_slash` says."""
    check_prefill(q_BHTD, k_BKSD, block_tokens, first_place)
    if not 1 <= last_queries <= MOST_QUERIES:
        raise ValueError(f"got last_queries={last_queries}; allowed is 1 to {MOST_QUERIES}")
    if chunk_tokens is not None and (chunk_tokens < block_tokens or chunk_tokens % block_tokens):
        raise ValueError(
            f"got chunk_tokens={chunk_tokens}; allowed is a multiple of block_tokens={block_tokens}, or None for one chunk"
        )
    whole = -(-q_BHTD.shape[2] // block_tokens) * block_tokens
    return whole if chunk_tokens is None else min(chunk_tokens, whole)


def naive_vertical_slash(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    *,
    scale: float,
    chunk_tokens: int,
    block_tokens: int,
    last_queries: int,
    first_place: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `vertical_slash`; probabilities of one chunk at a time are in memory."""
    B, H, T = q_BHTD.shape[:3]
    K, S, device = *k_BKSD.shape[1:3], q_BHTD.device
    first = torch.zeros(B, dtype=torch.int32, device=device) if first_place is None else first_place
    first = first[:, None, None, None]
    num_chunks, num_blocks = -(-T // chunk_tokens), -(-S // block_tokens)
    columns = torch.zeros(B, H, num_chunks, S, device=device)
    offsets = torch.zeros(B, H, num_chunks, num_blocks, device=device)
    for chunk, start in enumerate(range(0, T, chunk_tokens)):
        end = min(T, start + chunk_tokens)
        t, E = min(last_queries, end - start), S - T + end
        asked = (
            q_BHTD[:, :, end - t : end].float().reshape(B, K, H // K * t, -1)
        )  # each key head is read once
        logits = (asked @ k_BKSD[:, :, :E].float().transpose(-1, -2) * scale).view(B, H, t, E)
        place, query = torch.arange(E, device=device), torch.arange(E - t, E, device=device)[:, None]
        seen = (place <= query) & (place >= first)
        weights = torch.softmax(logits.masked_fill(~seen, -torch.inf), dim=-1).masked_fill(~seen, 0.0)
        columns[:, :, chunk, :E] = weights.sum(2)
        whole = place >= first + (query - (E - t))  # distances that the first asked query has, too
        weights = weights.masked_fill(~whole, 0.0).contiguous()
        # row r of a diagonal is r keys further to the right, so one stride walks down all diagonals at once
        walk = weights.as_strided((B, H, t, E - t + 1), (H * t * E, t * E, E + 1, 1))
        diagonals = walk.sum(2).flip(-1)
        offsets[:, :, chunk] = _shares(diagonals, block_tokens, (S - T) % block_tokens, num_blocks)
    return columns, offsets


def _shares(diagonals: Tensor, block_tokens: int, phase: int, num_blocks: int) -> Tensor:
    """What each block offset gets of diagonals `[B, H, E]`, distances from 0 on: each distance lies between two offsets."""
    B, H, E = diagonals.shape
    distance = torch.arange(E, device=diagonals.device) - phase
    low = distance.div(block_tokens, rounding_mode="floor")
    share = (distance - low * block_tokens).float() / block_tokens
    found = torch.zeros(
        B, H, num_blocks + 2, device=diagonals.device
    )  # offset -1 first: distances below the phase
    found.index_add_(2, low + 1, diagonals * (1 - share))
    found.index_add_(2, low + 2, diagonals * share)
    return found[..., 1:-1]
