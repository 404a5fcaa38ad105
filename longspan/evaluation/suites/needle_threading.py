"""Needle Threading: values of keys, and threads of values that are keys again, in one JSON object of uuids.

A haystack of pairs "uuid": "uuid" leaves nothing to guess and nothing to skip. Asked are the value of a key, of several keys,
of all keys that hold a certain character, the end of a thread (a value is the next key, and so on) that runs forward,
backward or both ways through the text, the ends of several threads at once, and of threads that branch. Scored by the share
of the wanted values that stand in the answer.

Paper: Needle Threading: Can LLMs Follow Threads through Near-Million-Scale Haystacks? (Roberts et al., 2024)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from longspan.evaluation.suites.ruler import distinct, random_uuid
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "needle_threading",
    "title": "Needle Threading: Can LLMs Follow Threads through Near-Million-Scale Haystacks?",
    "year": 2024,
    "version": 1,
    "metric": "share of the wanted values found in the answer, letter case ignored; mean over samples",
    "differs": [
        "one number of needles (10), thread length (5), number of threads (3, of 3 steps) and branching (2, 3 levels) instead of "
        "the paper's grids up to 25",
        "values are looked for in the whole answer; the official code parses it as a Python literal and compares from its start",
        "needles are spread at random; clustered needles are not here",
        "the character of conditional needles replaces one digit of the key, and is drawn from *, &, +, #, @ and %",
        "branches: branched_thread asks for every end, branched_longest for the end of the longest thread",
        "where no whole pair fits the end of the room, one of shorter identifiers is added",
        "questions are in our own words",
    ],
    "paper_id": 9,
    "lengths": "any for one needle; from 2K tokens",
    "needs": "nothing",
    "licence": "generated here",
}

VALUE_TOKENS = 40
NEEDLES = 10
THREAD_STEPS = 5
THREADS = 3
SHORT_STEPS = 3
BRANCHES = 2
EXACT_TOKENS = 8192
SHORT_LENGTHS = (18, 13, 8, 8)
CHARACTERS = "*&+#@%"

Direction = Literal["forward", "backward", "random"]


def _pair(key: str, value: str) -> str:
    return f'"{key}": "{value}"'


def _pairs(keys: Sequence[str]) -> list[str]:
    """Each key with the next one as its value."""
    return [_pair(key, value) for key, value in zip(keys, keys[1:], strict=False)]


def _puzzle(
    rng: random.Random,
    room: Room,
    pairs: Sequence[str],
    values: Sequence[str],
    question: str,
    direction: Direction = "random",
) -> Puzzle:
    """The pairs among random ones in a JSON object, and the question with the values as its answer."""
    prefix = "Corresponding value:" if len(values) == 1 else "Corresponding values:"
    max_new_tokens = VALUE_TOKENS * len(values) + 8
    left = room.left("{}", question, prefix, max_new_tokens=max_new_tokens)
    left -= room.count(",\n".join(pairs) + ",\n")
    if left < 0:
        raise ValueError(
            f"{len(pairs)} pairs need more than {room.tokens} tokens; ask for {room.tokens - left} or more"
        )

    def others() -> Iterator[str]:
        while True:
            yield _pair(random_uuid(rng), random_uuid(rng))

    # Past 8K tokens, filling is right to half a percent either way.
    left -= left // 200 if left > EXACT_TOKENS else 0
    fillers = room.fill(others(), left, joiner=",\n")
    if left <= EXACT_TOKENS:
        for length in SHORT_LENGTHS:
            piece = _pair(random_uuid(rng)[:length], random_uuid(rng)[:length])
            if room.count(",\n".join([*fillers, piece])) <= left:
                fillers.append(piece)
    wanted = list(pairs) if direction != "backward" else list(reversed(pairs))
    mixed = room.scatter(wanted, fillers, rng, ordered=direction != "random")
    return Puzzle(
        needles=(),
        context="{" + ",\n".join(mixed) + "}",
        question=question,
        answer_prefix=prefix,
        references=tuple(values),
        answer=", ".join(values),
        evidence=tuple(pairs),
        max_new_tokens=max_new_tokens,
    )


def single_needle(rng: random.Random, room: Room) -> Puzzle:
    """The value of one key."""
    key, value = distinct(random_uuid, 2, rng)
    question = f'Give the value that belongs to this key in the JSON object. Key: "{key}"'
    return _puzzle(rng, room, [_pair(key, value)], [value], question)


def multiple_needles(rng: random.Random, room: Room) -> Puzzle:
    """The values of ten keys."""
    drawn = distinct(random_uuid, 2 * NEEDLES, rng)
    keys, values = drawn[:NEEDLES], drawn[NEEDLES:]
    listed = ", ".join(f'"{key}"' for key in keys)
    question = f"Give the values that belong to these keys in the JSON object, in this order. Keys: {listed}"
    pairs = [_pair(key, value) for key, value in zip(keys, values, strict=True)]
    return _puzzle(rng, room, pairs, values, question)


def conditional_needles(rng: random.Random, room: Room) -> Puzzle:
    """The values of the ten keys with a character that no other key has."""
    mark = rng.choice(CHARACTERS)
    drawn = distinct(random_uuid, 2 * NEEDLES, rng)
    keys, values = [_marked(key, mark, rng) for key in drawn[:NEEDLES]], drawn[NEEDLES:]
    question = f'Give the values of all keys in the JSON object that contain the character "{mark}".'
    pairs = [_pair(key, value) for key, value in zip(keys, values, strict=True)]
    return _puzzle(rng, room, pairs, values, question)


def _marked(key: str, mark: str, rng: random.Random) -> str:
    place = rng.choice([index for index, letter in enumerate(key) if letter != "-"])
    return key[:place] + mark + key[place + 1 :]


def thread(direction: Direction) -> Callable[[random.Random, Room], Puzzle]:
    """A maker of threads of five steps, whose pairs stand in their order, in the reverse order, or at random."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        keys = distinct(random_uuid, THREAD_STEPS + 1, rng)
        question = (
            "In the JSON object, the value of a key may itself be a key. Start at the key below, look up its value, then "
            "the value of that, and so on, until a value is no key. "
            f'Give this final value only. Key: "{keys[0]}"'
        )
        return _puzzle(rng, room, _pairs(keys), keys[-1:], question, direction)

    return make


def multi_thread(rng: random.Random, room: Room) -> Puzzle:
    """The ends of three threads of three steps."""
    drawn = distinct(random_uuid, THREADS * (SHORT_STEPS + 1), rng)
    size = SHORT_STEPS + 1
    threads = [drawn[first : first + size] for first in range(0, len(drawn), size)]
    listed = ", ".join(f'"{keys[0]}"' for keys in threads)
    question = (
        "In the JSON object, the value of a key may itself be a key. For each key below, follow the values until one is no "
        f"key. Give these final values only, in the order of the keys. Keys: {listed}"
    )
    pairs = [pair for keys in threads for pair in _pairs(keys)]
    return _puzzle(rng, room, pairs, [keys[-1] for keys in threads], question)


def branched_thread(*, longest: bool) -> Callable[[random.Random, Room], Puzzle]:
    """A maker of threads where every key stands twice, with two values, only one of which goes on; three levels.

    Asked are the values at the ends of all branches, or at the end of the longest.
    """

    def make(rng: random.Random, room: Room) -> Puzzle:
        key, pairs, ends = random_uuid(rng), list[str](), list[str]()
        start = key
        for _ in range(SHORT_STEPS):
            following = distinct(random_uuid, BRANCHES, rng)
            pairs += [_pair(key, value) for value in following]
            ends += following[1:]
            key = following[0]
        ends.append(key)
        if longest:
            # The last level has ends of equal length; one of its pairs is left out, so that one thread is the longest.
            pairs, ends = [pair for pair in pairs if ends[-2] not in pair], ends[-1:]
        asked = (
            f"The longest of these threads has {SHORT_STEPS} steps. Give the value at its end only."
            if longest
            else f"Follow every branch. Give the {len(ends)} final values, those that are no keys themselves, and nothing else."
        )
        question = (
            "In the JSON object, the value of a key may itself be a key, and a key may stand several times with different "
            f'values, so that threads branch. Start at the key below. {asked} Key: "{start}"'
        )
        return _puzzle(rng, room, pairs, ends, question)

    return make


RETRIEVAL: dict[str, Any] = {"ability": "retrieval", "diffusion": "low", "scope": "low", "haystack": "own"}
TRACING: dict[str, Any] = {"ability": "tracing", "diffusion": "high", "scope": "low", "haystack": "own"}

TASKS: dict[str, Task] = {
    "single_needle": Task(make=single_needle, places=True, **RETRIEVAL),
    "multiple_needles": Task(make=multiple_needles, **RETRIEVAL),
    "conditional_needles": Task(make=conditional_needles, **{**RETRIEVAL, "diffusion": "high"}),
    "thread_forward": Task(make=thread("forward"), **TRACING),
    "thread_backward": Task(make=thread("backward"), **TRACING),
    "thread_random": Task(make=thread("random"), **TRACING),
    "multi_thread": Task(make=multi_thread, **TRACING),
    "branched_thread": Task(make=branched_thread(longest=False), **TRACING),
    "branched_longest": Task(make=branched_thread(longest=True), **TRACING),
}
