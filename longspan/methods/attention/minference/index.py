"""The online part of MInference: from a step and one pattern per head to the tokens that are visited.

Vertical-slash heads get a `BlockTable`, which the kernels serve, wherever its places can stand for distances:
keys stored rotated, padding at the left only. Else, and for block-sparse heads, single tokens are gathered.

Axis legend: B batch, T query tokens, S stored tokens, P past tokens, b block_tokens, NQ blocks of queries, NP blocks of
the past, H query heads, K kv heads, h some heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longspan.ops.estimate.blocks import BLOCKS
from longspan.ops.estimate.vertical_slash_table import vertical_slash_table
from longspan.roles import Step
from longspan.visit import BlockTable, Dense, Gather, PerHead, Ranges, Visit, visit_of_heads

ESTIMATE_QUERIES = 64  # the authors' last_q
ALWAYS_VERTICAL_TOKENS = 30  # the authors keep the first 30 columns whatever the estimate says
HeadPattern = tuple[
    str, int, int
]  # (pattern, ...): vertical_slash, verticals, slashes; a_shape, sink, window;
# block_sparse, tokens, 0. All in tokens.


def teraflops_of_dense(step: Step) -> float:
    """Operations (10^12) of the two products of dense attention, over the visible pairs of a step."""
    B, H, T, D = step.queries.shape
    return 4e-12 * B * H * D * T * (step.num_past + (T + 1) / 2)


def visit_patterns(
    step: Step, patterns: Sequence[HeadPattern], block_tokens: int, local_tokens: int | None = None
) -> Visit:
    """The visit of one step where query head i of the slab follows `patterns[i]`; see `MInference` for the rest."""
    groups: dict[HeadPattern, list[int]] = {}
    for head, pattern in enumerate(patterns):
        covered = pattern[1] + pattern[2] >= (
            step.store.num_tokens if pattern[0] == "a_shape" else step.num_past
        )
        groups.setdefault(("dense", 0, 0) if covered else pattern, []).append(head)
    slashed = any(pattern[0] == "vertical_slash" for pattern in groups)
    tabled, first_place = _table_places(step, block_tokens) if slashed else (False, None)
    estimate = estimate_vertical_slash(step, block_tokens) if slashed and not tabled else None
    parts: list[tuple[tuple[int, ...], Visit]] = []
    for pattern, heads in groups.items():
        if pattern[0] == "dense":
            part: Visit = Dense()
        elif pattern[0] == "a_shape":
            part = Ranges(sink_tokens=pattern[1], window_tokens=max(1, pattern[2]))
        elif pattern[0] == "vertical_slash" and tabled:
            table = _table(step, block_tokens, local_tokens, pattern, first_place)
            part = visit_of_heads(table, heads, len(patterns))
        elif pattern[0] == "vertical_slash":
            assert estimate is not None
            columns, blocks = (x[:, heads] for x in estimate)
            part = _gather(step, block_tokens, blocks, pattern[2], columns, pattern[1])
        else:
            part = _gather(step, block_tokens, block_scores(step, block_tokens)[:, heads], pattern[1])
        parts.append((tuple(heads), part))
    return parts[0][1] if len(parts) == 1 else PerHead(parts=tuple(parts))


def _table_places(step: Step, block_tokens: int) -> tuple[bool, Tensor | None]:
    """Whether a table can say what the step visits, and its `first_place`."""
    if not step.rotated or block_tokens not in BLOCKS:
        return False, None
    if step.store.filled:  # known without asking the device
        return True, None
    positions = step.store.positions
    if positions.shape[1] > 1:  # a table has one first place for all heads
        return False, None
    real = positions[:, 0] >= 0
    first_place = (~real).sum(-1)
    at_left = real == (torch.arange(real.shape[1], device=real.device) >= first_place[:, None])
    return bool(at_left.all()), first_place.int()


def _table(
    step: Step,
    block_tokens: int,
    local_tokens: int | None,
    pattern: HeadPattern,
    first_place: Tensor | None,
) -> BlockTable:
    """Vertical-slash with the budgets of `pattern`, for all heads of the slab."""
    return vertical_slash_table(
        step.queries,
        step.store.keys,
        scale=step.layer.scale,
        vertical_tokens=pattern[1],
        slash_tokens=pattern[2],
        local_tokens=None if local_tokens is None else -(-local_tokens // block_tokens) * block_tokens,
        block_tokens=block_tokens,
        last_queries=ESTIMATE_QUERIES,
        first_tokens=ALWAYS_VERTICAL_TOKENS,
        first_place=first_place,
    )


def estimate_vertical_slash(step: Step, block_tokens: int) -> tuple[Tensor, Tensor]:
    """What the last queries of a chunk say of its past.

    Returns:
        attention that each past token got, `[B, H, P]`, P past tokens, and attention that each block of past tokens is
        expected to get along diagonals from each block of queries, `[B, H, NQ, NP]`. Blocks of the past are counted
        from its end: block n holds the places `[P - (n + 1) * block_tokens, P - n * block_tokens)`.
    """
    past, S, b = step.num_past, step.store.num_tokens, block_tokens
    t = min(ESTIMATE_QUERIES, step.num_new)
    positions = step.query_positions[:, -t:]
    weights = step.logits(step.queries[:, :, -t:], positions, 0, S).contiguous()
    later = torch.ones(t, t, dtype=torch.bool, device=weights.device).triu(1)
    weights[..., -t:].masked_fill_(later, -torch.inf)
    empty, kept = positions < 0, step.store.positions
    if bool((kept < 0).any() | empty.any()):
        heads = kept.repeat_interleave(weights.shape[1] // kept.shape[1], dim=1)
        weights.masked_fill_((heads < 0)[:, :, None], torch.finfo(weights.dtype).min)
        weights = torch.softmax(weights, dim=-1).masked_fill_(empty[:, None, :, None], 0.0)
    else:
        torch.softmax(weights, dim=-1, out=weights)  # in place: this is the largest tensor of a step
    columns = weights[..., :past].sum(2)
    first = (kept >= 0) & (kept < ALWAYS_VERTICAL_TOKENS)
    first = first[..., :past].repeat_interleave(columns.shape[1] // first.shape[1], dim=1)
    columns = columns.masked_fill(first, torch.inf)
    B, H = columns.shape[:2]
    # row r of a diagonal is r columns further to the right, so one stride walks down all diagonals at once
    walk = weights.as_strided((B, H, t, S - t + 1), (H * t * S, t * S, S + 1, 1))
    diagonals = walk.sum(2).flip(-1)  # [..., d]: attention at distance d
    num_offsets = -(-past // b) + -(-step.num_new // b)
    room = num_offsets * b
    diagonals = torch.nn.functional.pad(diagonals[..., :room], (0, max(0, room - diagonals.shape[-1])))
    diagonals = diagonals.view(B, H, num_offsets, b)
    rise = torch.arange(b, dtype=diagonals.dtype, device=diagonals.device)
    # the block n + 1 blocks behind its queries shares i of b diagonals at distance n b + i, and b - i at (n + 1) b + i
    offsets = diagonals @ rise
    offsets[..., :-1] += diagonals[..., 1:, :] @ (b - rise)
    return columns, offsets.unfold(-1, -(-past // b), 1)[:, :, : -(-step.num_new // b)]


def block_scores(step: Step, block_tokens: int) -> Tensor:
    """mean(Q_block) . mean(K_block) of every block of queries and past, `[B, H, NQ, NP]`, blocks as in the estimate."""
    past, b = step.num_past, block_tokens
    queries = _block_means(step.queries.float(), (step.query_positions >= 0)[:, None], b)[0]
    real = (step.store.positions >= 0)[..., :past]
    keys, counts = _block_means(step.store.keys[:, :, :past].float().flip(2), real.flip(-1), b)
    B, H, NQ, D = queries.shape
    K = keys.shape[1]
    scores = queries.view(B, K, H // K * NQ, D) @ keys.transpose(-1, -2)
    scores = scores.masked_fill((counts == 0)[:, :, None], -torch.inf)
    return scores.view(B, H, NQ, -1)


def _block_means(x: Tensor, real: Tensor, block_tokens: int) -> tuple[Tensor, Tensor]:
    """Means `[B, h, N, D]` of the real tokens of blocks of x `[B, h, S, D]` and their counts `[B, 1 or h, N]`."""
    short = -x.shape[2] % block_tokens
    x = torch.nn.functional.pad(x * real[..., None], (0, 0, 0, short)).unflatten(2, (-1, block_tokens))
    counts = torch.nn.functional.pad(real, (0, short)).unflatten(-1, (-1, block_tokens)).sum(-1)
    return x.sum(3) / counts.clamp(min=1)[..., None], counts


def _gather(
    step: Step,
    block_tokens: int,
    scores: Tensor,
    num_block_tokens: int,
    columns: Tensor | None = None,
    num_columns: int = 0,
) -> Gather:
    """The past blocks with the best scores `[B, h, NQ, NP]` and the single tokens with the best columns `[B, h, P]`."""
    past, b = step.num_past, block_tokens
    B, h, NQ, NP = scores.shape
    blocks = scores.topk(min(-(-num_block_tokens // b), NP), sorted=False).indices
    start = past - (blocks + 1) * b
    tokens = (start[..., None] + torch.arange(b, device=start.device)).flatten(3)
    tokens = torch.where(
        tokens < 0, past, tokens
    )  # the oldest block may be short; places of `past` are no keys
    if columns is not None and num_columns:
        single = columns.topk(min(num_columns, past), sorted=False).indices[:, :, None].expand(B, h, NQ, -1)
        taken = torch.zeros(B, h, NQ, NP, dtype=torch.bool, device=start.device).scatter_(3, blocks, True)
        twice = taken.gather(3, (past - 1 - single) // b)
        tokens = torch.cat([tokens, torch.where(twice, past, single)], dim=3)
    tokens = tokens.sort(dim=3).values
    return Gather(index=torch.where(tokens == past, -1, tokens), query_block_tokens=b)
