"""RULER's needles ("One of the special magic numbers for <key> is: <value>.") and chains of variable assignments."""

from __future__ import annotations

import random
import string
import uuid
from collections.abc import Callable

from longspan.evaluation.haystacks.lines import Lines
from longspan.evaluation.haystacks.noise import NOISE
from longspan.evaluation.suites._words import word_list
from longspan.evaluation.task import Puzzle, Room

__all__ = [
    "MAKERS",
    "distinct",
    "join_words",
    "magic_needle",
    "niah",
    "random_number",
    "random_uuid",
    "random_word",
    "variable_tracking",
    "variable_tracking_with_example",
]

MAGIC_TOKENS = 128
EXAMPLE_TOKENS = 500
EXAMPLE_SHARE = 8


def random_number(rng: random.Random) -> str:
    """Seven digits, not led by zero."""
    return str(rng.randint(1_000_000, 9_999_999))


def random_uuid(rng: random.Random) -> str:
    """A version 4 uuid."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def random_word(rng: random.Random) -> str:
    """An adjective and a noun, joined with a hyphen."""
    return f"{rng.choice(word_list('adjective'))}-{rng.choice(word_list('noun'))}"


MAKERS: dict[str, Callable[[random.Random], str]] = {
    "numbers": random_number,
    "words": random_word,
    "uuids": random_uuid,
}


def distinct(make: Callable[[random.Random], str], count: int, rng: random.Random) -> list[str]:
    """`count` different values of a maker, in the order drawn."""
    values: dict[str, None] = {}
    while len(values) < count:
        values[make(rng)] = None
    return list(values)


def join_words(items: list[str]) -> str:
    """ "a", "a, and b", "a, b, and c": as RULER writes several keys."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + ", and " + items[-1]


def magic_needle(kind: str, key: str, value: str) -> str:
    """RULER's needle sentence."""
    return f"One of the special magic {kind} for {key} is: {value}."


def niah(
    *,
    keys: int = 1,
    values: int = 1,
    queries: int = 1,
    key: str = "words",
    value: str = "numbers",
    lines: bool = False,
) -> Callable[[random.Random, Room], Puzzle]:
    """A maker of needle tasks: `keys` keys with `values` values each, `queries` of the keys asked for.

    With `lines`, the haystack is needles about other keys.
    """

    def make(rng: random.Random, room: Room) -> Puzzle:
        names = distinct(MAKERS[key], keys, rng)
        table = [(name, MAKERS[value](rng)) for name in names for _ in range(values)]
        asked = rng.sample(names, queries)
        rng.shuffle(table)
        needles = tuple(magic_needle(value, name, found) for name, found in table)
        answers = [found for name, found in table if name in asked]
        one = queries * values == 1
        noun = value.removesuffix("s") if one else value
        preamble = (
            f"{'A' if one else 'Some'} special magic {noun} {'is' if one else 'are'} hidden within the following text. "
            f"Make sure to memorize it. I will quiz you about the {noun} afterwards."
        )
        asked_for = f"special magic {noun} for {join_words(asked)} mentioned in the provided text"
        return Puzzle(
            needles=needles,
            # Several answers are listed in order of appearance; a single one stands where the user wants it.
            ordered=not one,
            evidence=tuple(needle for needle, (name, _) in zip(needles, table, strict=True) if name in asked),
            preamble=preamble,
            question=f"What {'is' if one else 'are all'} the {asked_for}?",
            answer_prefix=f"The {asked_for} {'is' if one else 'are'}",
            references=tuple(answers),
            answer=", ".join(answers) + ".",
            max_new_tokens=MAGIC_TOKENS,
            own_haystack=_needle_lines(key, value) if lines else None,
            style="line" if lines else "sentence",
        )

    return make


def _needle_lines(key: str, value: str) -> Lines:
    return Lines(lambda rng: magic_needle(value, MAKERS[key](rng), MAKERS[value](rng)))


def _chain(rng: random.Random, letters: int) -> tuple[list[str], str, list[str]]:
    """Five names, the value of the first, and the lines that hand it on."""
    names = distinct(lambda source: "".join(source.choices(string.ascii_uppercase, k=letters)), 5, rng)
    value = str(rng.randint(10_000, 99_999))
    lines = [f"VAR {names[0]} = {value}"]
    lines += [f"VAR {later} = VAR {earlier}" for earlier, later in zip(names, names[1:], strict=False)]
    return names, value, lines


def _chain_texts(value: str) -> tuple[str, str, str]:
    """Preamble, question and answer prefix."""
    return (
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n",
        f"Question: Find all variables that are assigned the value {value} in the text above.",
        f"According to the chain(s) of variable assignment in the text above, 5 variables are assigned the value {value}, "
        "they are:",
    )


def variable_tracking(rng: random.Random, room: Room, *, example: bool = False) -> Puzzle:
    """One chain of four assignments in the noise: name all five variables that hold the value.

    Args:
        rng: source of the names, the value and the example.
        room: how long a text is wanted.
        example: a solved one stands before it, of 500 tokens, or an eighth of the room where that is less.
    """
    names, value, needles = _chain(rng, 5)
    preamble, question, prefix = _chain_texts(value)
    solved = _solved_chain(rng, room, value) if example else ""
    return Puzzle(
        needles=tuple(needles),
        ordered=True,
        style="line",
        preamble=solved + preamble,
        question=question,
        answer_prefix=prefix,
        references=tuple(names),
        answer=" ".join(names) + ".",
        max_new_tokens=30,
    )


def variable_tracking_with_example(rng: random.Random, room: Room) -> Puzzle:
    """RULER's vt: the solved example first."""
    return variable_tracking(rng, room, example=True)


def _solved_chain(rng: random.Random, room: Room, taken: str) -> str:
    """A short chain of three-letter names among a few lines of noise, with its answer and an empty line after it."""
    names, value, lines = _chain(rng, 3)
    while value == taken:
        names, value, lines = _chain(rng, 3)
    preamble, question, prefix = _chain_texts(value)
    answer = " ".join(names)
    bare = room.count("\n".join([preamble, *lines, question, prefix, answer]))
    spare = min(EXAMPLE_TOKENS, room.tokens // EXAMPLE_SHARE) - bare
    noise = [NOISE] * max(1, spare // (room.count(NOISE) + 1))
    places = sorted(rng.choices(range(len(noise) + 1), k=len(lines)), reverse=True)
    for place, line in zip(places, reversed(lines), strict=True):
        noise.insert(place, line)
    return "\n".join([preamble, *noise, f"{question} Answer: {prefix} {answer}", "", ""])
