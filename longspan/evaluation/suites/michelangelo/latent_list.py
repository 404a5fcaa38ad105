"""Latent list: Python operations on one list, most of which change nothing in the end; what does a last line print?"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.text import need_references
from longspan.evaluation.task import Puzzle, Room, Sample

FIRST_LENGTHS = (8, 16)
SHOWN = 5
VIEWS = ("len", "sum", "min", "max", "slice")
ANSWER_TOKENS = 48


def _number(rng: random.Random) -> int:
    return rng.randint(100, 999)


def _nothing(rng: random.Random) -> list[str]:
    """Lines that leave the list as it was: output, or operations that undo each other, at times one pair in another."""
    inner = _nothing(rng) if rng.random() < 0.3 else []
    number, place = _number(rng), rng.randrange(SHOWN + 1)
    kinds = (
        [f'print("step {number}")'],
        ["a.reverse()", *inner, "a.reverse()"],
        [f"a.append({number})", *inner, "a.pop()"],
        [f"a.insert(0, {number})", *inner, "a.pop(0)"],
        [f"a.insert({place}, {number})", *inner, f"a.pop({place})"],
        [f"a.insert(0, {number})", "a.reverse()", "a.pop()", "a.reverse()"],
        [f"a.insert(0, {number})", *inner, f"a.remove({number})"],
        [f"b = len(a) + {number}"],
        ["b = sorted(a)"],
    )
    return rng.choice(kinds)


def _fillers(rng: random.Random) -> Iterator[str]:
    while True:
        yield "\n".join(_nothing(rng))


def _changes(values: list[int], num_changes: int, rng: random.Random) -> list[str]:
    """`num_changes` operations, each of which changes `values`, which are changed in place."""
    lines = list[str]()
    while len(lines) < num_changes:
        kind = rng.choice(("append", "insert", "pop", "pop at", "remove", "sort", "reverse"))
        before, number, place = list(values), _number(rng), rng.randrange(min(len(values), SHOWN + 1))
        if kind in ("pop", "pop at", "remove") and len(values) <= SHOWN:
            continue
        if kind == "append":
            line = f"a.append({number})"
            values.append(number)
        elif kind == "insert":
            line = f"a.insert({place}, {number})"
            values.insert(place, number)
        elif kind == "pop":
            line = "a.pop()"
            values.pop()
        elif kind == "pop at":
            line = f"a.pop({place})"
            values.pop(place)
        elif kind == "remove":
            line = f"a.remove({values[place]})"
            values.remove(values[place])
        elif kind == "sort":
            line = "a.sort()"
            values.sort()
        else:
            line = "a.reverse()"
            values.reverse()
        if values != before:
            lines.append(line)
    return lines


def latent_list(num_changes: int) -> Callable[[random.Random, Room], Puzzle]:
    """A listing with `num_changes` operations that matter; the paper's levels are 1, 5 and 20."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        values = [_number(rng) for _ in range(rng.randint(*FIRST_LENGTHS))]
        first = f"a = {values}"
        changes = _changes(values, num_changes, rng)
        view = rng.choice(VIEWS)
        start = rng.randint(0, len(values) - SHOWN)
        shown = f"a[{start}:{start + SHOWN}]" if view == "slice" else f"{view}(a)"
        answer = str(seen(view, values, start))
        question = f"The lines above are run in Python. What does print({shown}) print after them? Give the output only."
        prefix = "Output:"
        left = room.left(first, question, prefix, *changes, max_new_tokens=ANSWER_TOKENS)
        if left < 100:
            raise ValueError(
                f"a list with {num_changes} changes does not fit {room.tokens} tokens; ask for 2048 or more"
            )
        fillers = room.fill_exactly(_fillers(rng), left)
        lines = room.scatter(changes, fillers, rng, ordered=True)
        return Puzzle(
            needles=(),
            context="\n".join((first, *lines)),
            evidence=(),  # which operations undo each other shows only in the whole
            question=question,
            answer_prefix=prefix,
            references=(answer,),
            answer=answer,
            max_new_tokens=ANSWER_TOKENS,
        )

    return make


def seen(view: str, values: Sequence[int], start: int) -> int | list[int]:
    """What a view of the list prints."""
    shown = {"len": len(values), "sum": sum(values), "min": min(values), "max": max(values)}
    return shown.get(view, list(values[start : start + SHOWN]))


def printed(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the numbers of the answer's first line are those of the reference, in order."""
    need_references(references)
    first = next(iter(prediction.strip().splitlines()), "")
    return float(_numbers(first) == _numbers(references[0]))


def _numbers(text: str) -> list[str]:
    return re.findall(r"\d+", text)


def guess(rng: random.Random, sample: Sample) -> str:
    """A length that is likely, or any number."""
    if "len(a)" in sample.question:
        return str(rng.randint(*FIRST_LENGTHS))
    return str(_number(rng))


CHANCE = 1 / (len(VIEWS) * (FIRST_LENGTHS[1] - FIRST_LENGTHS[0] + 1))
