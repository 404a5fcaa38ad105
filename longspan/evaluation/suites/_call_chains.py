"""Functions that call each other in chains, as many as fit, one chain of which is asked for."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

from longspan.evaluation.task import Puzzle, Room

__all__ = ["called_functions"]

SMALLEST_ADDED, LARGEST_ADDED = -12, 17
CALL_DEPTHS = (2, 4, 6, 8, 10)
NUMBER_NAMES = 1_000_000
MEASURED_FUNCTIONS = 64
MAX_FITS = 6


def called_functions(rng: random.Random, room: Room) -> Puzzle:
    """What a function returns that calls another, which calls another, 2 to 10 deep, among functions like them."""
    depth = rng.choice(CALL_DEPTHS)
    names = _names(rng)
    chain = [next(names) for _ in range(depth)]
    added = [rng.randint(SMALLEST_ADDED, LARGEST_ADDED) for _ in range(depth)]
    asked = [
        _function(name, callee, number)
        for name, callee, number in zip(chain, [*chain[1:], None], added, strict=True)
    ]
    start = rng.randint(-10, 10)
    call = f"func_{chain[0]}({start})"
    question = f"What number does {call} return? Your answer must end with that number."
    prefix = f"The value of {call} is"
    left = room.left(*asked, question, prefix, max_new_tokens=12)
    if left < 64:
        raise ValueError(f"a chain of functions has no room in {room.tokens} tokens; ask for 1024 or more")
    others = _that_fit(_others(rng, names, chain), left, room)
    functions = sorted((*asked, *others), key=lambda text: int(text.split("(")[0].removeprefix("def func_")))
    answer = str(start + sum(added))
    return Puzzle(
        needles=(),
        context="\n\n".join(functions),
        question=question,
        answer_prefix=prefix,
        references=(answer,),
        answer=answer,
        evidence=tuple(asked),
        max_new_tokens=12,
    )


def _names(rng: random.Random) -> Iterator[int]:
    seen = set[int]()
    while True:
        name = rng.randrange(NUMBER_NAMES // 10, NUMBER_NAMES)
        if name not in seen:
            seen.add(name)
            yield name


def _function(name: int, callee: int | None, added: int) -> str:
    inner = "x" if callee is None else f"func_{callee}(x)"
    change = f" {'+' if added > 0 else '-'} {abs(added)}" if added else ""
    return f"def func_{name}(x):\n    return {inner}{change}"


def _others(rng: random.Random, names: Iterator[int], chain: list[int]) -> Iterator[str]:
    """Functions that call one of those before them, or of the chain, or none."""
    made = list(chain)
    for name in names:
        callee = rng.choice(made) if rng.random() > 0.2 else None
        yield _function(name, callee, rng.randint(SMALLEST_ADDED, LARGEST_ADDED))
        made.append(name)


def _that_fit(functions: Iterator[str], num_tokens: int, room: Room) -> list[str]:
    """The first functions, as many as fit: whoever left one out would leave a call without its function."""
    drawn = list(islice(functions, MEASURED_FUNCTIONS))

    def cost(count: int) -> int:
        return room.count("\n\n" + "\n\n".join(drawn[:count])) if count else 0

    rate = cost(MEASURED_FUNCTIONS) / MEASURED_FUNCTIONS
    number, best = int(num_tokens / rate), 0
    for _ in range(MAX_FITS):
        drawn += islice(functions, max(0, number - len(drawn)))
        spare = num_tokens - cost(number)
        best = max(best, number) if spare >= 0 else best
        if 0 <= spare < rate:
            break
        number += int(spare / rate) or (1 if spare > 0 else -1)
    return drawn[:best]
