"""Filling up a text; blocks of lines, each with a heading, the one asked for among the others."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from longspan.evaluation.haystacks.lines import EXACT_TOKENS
from longspan.evaluation.task import Room


def filled(room: Room, lines: Iterable[str], num_tokens: int) -> list[str]:
    """As many lines as fit; where `Room.fill` estimates, one count of the whole drops what was too much."""
    chosen = room.fill(lines, num_tokens)
    if num_tokens > EXACT_TOKENS:
        over = room.count("\n".join(chosen)) - num_tokens
        while over > 0:
            over -= room.count("\n" + chosen.pop())
    return chosen


def scattered_blocks(
    asked: str, lines: Sequence[str], heading: str, room: Room, rng: random.Random
) -> list[str]:
    """The block asked for among the blocks that the other lines make.

    A heading at the very end, with nothing below it, is dropped.

    Args:
        asked: a block, its lines joined by line ends.
        lines: of other blocks, in order; the last one may be cut short.
        heading: how the first line of each block begins.
        room, rng: for the place.
    """
    blocks: list[list[str]] = []
    for line in lines:
        if line.startswith(heading) or not blocks:
            blocks.append([])
        blocks[-1].append(line)
    whole = ["\n".join(block) for block in blocks if len(block) > 1]
    return room.scatter([asked], whole, rng)
