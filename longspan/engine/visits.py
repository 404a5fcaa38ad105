"""Several selections on one layer, each with its own kv heads, become one visit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from longspan.visit import Dense, Gather, PerHead, Visit


def combine_visits(
    visits: Sequence[tuple[tuple[int, ...] | None, Visit]], kv_heads: tuple[int, ...], num_groups: int
) -> Visit:
    """One visit of a slab from `(kv heads or None for all, visit over the whole slab)`; heads nobody names are dense."""
    if len(visits) == 1 and visits[0][0] is None:
        return visits[0][1]
    num_heads = len(kv_heads) * num_groups
    parts: list[tuple[tuple[int, ...], Visit]] = []
    left = set(range(num_heads))
    for named, visit in visits:
        wanted = [
            i * num_groups + g
            for i, kv in enumerate(kv_heads)
            if named is None or kv in named
            for g in range(num_groups)
        ]
        wanted = [head for head in wanted if head in left]
        left -= set(wanted)
        if wanted:
            parts.extend(_restrict(visit, tuple(wanted), num_heads))
    if left:
        parts.append((tuple(sorted(left)), Dense()))
    return PerHead(parts=tuple(parts))


def _restrict(visit: Visit, heads: tuple[int, ...], num_heads: int) -> list[tuple[tuple[int, ...], Visit]]:
    if isinstance(visit, PerHead):
        kept = [(tuple(h for h in named if h in heads), part, named) for named, part in visit.parts]
        return [
            found
            for chosen, part, named in kept
            if chosen
            for found in _relabel(_restrict(part, tuple(named.index(h) for h in chosen), len(named)), chosen)
        ]
    if isinstance(visit, Gather) and visit.index.shape[1] > 1:
        index = visit.index.repeat_interleave(num_heads // visit.index.shape[1], dim=1)
        return [(heads, replace(visit, index=index[:, list(heads)]))]
    return [(heads, visit)]


def _relabel(
    parts: list[tuple[tuple[int, ...], Visit]], heads: tuple[int, ...]
) -> list[tuple[tuple[int, ...], Visit]]:
    """A restricted part of a PerHead speaks of the heads that were asked for, in their order."""
    assert len(parts) == 1, "a part of PerHead is never a PerHead itself"
    return [(heads, parts[0][1])]
