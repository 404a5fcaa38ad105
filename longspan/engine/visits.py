"""Several selections on one layer, each with its own kv heads, become one visit."""

from __future__ import annotations

from collections.abc import Sequence

from longspan.visit import Dense, PerHead, Visit, visit_of_heads


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
    """Parts of a `PerHead` for some of the slab's query heads."""
    if not isinstance(visit, PerHead):
        return [(heads, visit_of_heads(visit, heads, num_heads))]
    found = []
    for named, part in visit.parts:
        places = tuple(place for place, head in enumerate(named) if head in heads)
        if places:
            found.append((tuple(named[place] for place in places), visit_of_heads(part, places, len(named))))
    return found
