"""The fast path: slices where the visit is a range, gathered rows where it is a choice, partial results merged."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from longspan.ops.attend.gather import attend_gather
from longspan.ops.attend.problem import Problem
from longspan.ops.attend.slices import attend_slices
from longspan.visit import Gather, PerHead, Ranges, Visit


def attend(problem: Problem) -> Tensor:
    """Attention output `[B, H, T, D]`; the same function as `naive_attend`, faster."""
    visit = problem.visit
    if isinstance(visit, PerHead):
        out = torch.empty_like(problem.queries)
        for heads, part in (cut for whole in visit.parts for cut in _by_kv_head(*whole, problem.num_groups)):
            out[:, list(heads)] = attend(problem.for_heads(heads, part))
        return out
    if isinstance(visit, Gather):
        return attend_gather(problem, visit)
    if isinstance(visit, Ranges) and problem.contiguous_from is not None:
        end = problem.contiguous_from + problem.num_tokens
        if end <= max(visit.window_tokens, visit.sink_tokens):
            return attend_slices(problem, None)[0]
    return attend_slices(problem, visit if isinstance(visit, Ranges) else None)[0]


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
