"""RULERv2's magic numbers: ten digits under keys, one or four of them, in a haystack of their like."""

from __future__ import annotations

import random
from collections.abc import Iterator

from longspan.evaluation.suites.ruler import distinct, magic_needle, random_word
from longspan.evaluation.task import Puzzle, Room

__all__ = ["many_values", "one_value"]

NUMBER_TOKENS = 24
VALUES = 4
EXACT_TOKENS = 8192


def _ten_digits(rng: random.Random) -> str:
    return str(rng.randint(1_000_000_000, 9_999_999_999))


def _values(rng: random.Random, room: Room, number: int) -> Puzzle:
    """One key with `number` values of ten digits, among needle lines of other keys with as many."""
    key = random_word(rng)
    values = distinct(_ten_digits, number, rng)
    one = number == 1
    noun, verb = ("number", "is") if one else ("numbers", "are")
    head = (
        f"{'A' if one else 'Some'} special magic {noun} {verb} hidden within the following text. Make sure to memorize "
        f"{'it' if one else 'them'}. I will quiz you about the {noun} afterwards.\n"
    )
    asked = f"special magic {noun} for {key} mentioned in the provided text"
    question = f"What {verb}{'' if one else ' all'} the {asked}?"
    prefix = f"The {asked} {verb}"
    lines = [magic_needle("numbers", key, value) for value in values]
    left = room.left(head, question, prefix, max_new_tokens=NUMBER_TOKENS * number)
    left -= room.count("\n".join(lines) + "\n")
    # Past 8K tokens, filling is right to half a percent either way.
    left -= left // 200 if left > EXACT_TOKENS else 0

    def others() -> Iterator[str]:
        while True:
            other = random_word(rng)
            if other != key:
                yield from (magic_needle("numbers", other, _ten_digits(rng)) for _ in range(number))

    fillers = room.fill(others(), left)
    rng.shuffle(fillers)
    mixed = room.scatter(lines, fillers, rng, ordered=True)
    return Puzzle(
        needles=(),
        context=head + "\n".join(mixed),
        question=question,
        answer_prefix=prefix,
        references=tuple(values),
        answer=", ".join(values) + ".",
        evidence=tuple(lines),
        max_new_tokens=NUMBER_TOKENS * number,
    )


def one_value(rng: random.Random, room: Room) -> Puzzle:
    """The number of one key."""
    return _values(rng, room, 1)


def many_values(rng: random.Random, room: Room) -> Puzzle:
    """The four numbers of one key."""
    return _values(rng, room, VALUES)
