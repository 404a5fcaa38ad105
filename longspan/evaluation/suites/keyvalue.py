"""Key-value recall in prose: many needles of one kind in the text, one of them asked for.

Harder than a single needle, since only the key tells the right line from its neighbours. `kv64` spreads 64 lines
"key: value" through the text; `keys8_*` hides eight sentences that differ in key and value only.
"""

import random
from typing import Any

from longspan.evaluation.suites.facts import draw_facts, fact_puzzle
from longspan.evaluation.suites.ruler import distinct, magic_needle, random_number, random_word
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "keyvalue",
    "title": "Lost in the Middle: How Language Models Use Long Contexts",
    "year": 2023,
    "version": 1,
    "metric": "share of the reference strings found in the answer, letter case ignored; mean over samples",
    "differs": [
        "keys are word pairs and values seven digits instead of uuids",
        "the pairs are spread through prose instead of standing in one JSON object",
        "under 2,048 tokens kv64 hides as many pairs as take half of the room",
    ],
    "paper_id": None,
    "lengths": "any",
    "needs": "wonderwords",
    "licence": "generated here",
}

PAIR_TOKENS = 24


def key_value_pairs(num_pairs: int, rng: random.Random, room: Room) -> Puzzle:
    """`num_pairs` lines "key: value" (fewer where half the room is too small for them), the value of one key asked."""
    fitting = max(2, room.tokens // (2 * PAIR_TOKENS))
    keys = distinct(random_word, min(num_pairs, fitting), rng)
    lines = tuple(f"{key}: {random_number(rng)}" for key in keys)
    asked = rng.randrange(len(keys))
    value = lines[asked].rsplit(" ", 1)[1]
    return Puzzle(
        needles=lines,
        style="line",
        evidence=(lines[asked],),
        question=f"Which value belongs to the key {keys[asked]}?",
        references=(value,),
        answer=f"{value}.",
        max_new_tokens=16,
    )


def kv64(rng: random.Random, room: Room) -> Puzzle:
    """64 lines, one asked."""
    return key_value_pairs(64, rng, room)


def keys8_numbers(rng: random.Random, room: Room) -> Puzzle:
    """Eight magic numbers, one asked."""
    return _eight_magic("numbers", [random_number(rng) for _ in range(8)], rng)


def keys8_words(rng: random.Random, room: Room) -> Puzzle:
    """Eight magic words, one asked."""
    return _eight_magic("words", distinct(random_word, 8, rng), rng)


def keys8_facts(rng: random.Random, room: Room) -> Puzzle:
    """Eight natural facts from one template, one asked."""
    facts = draw_facts(8, rng, same_template=True)
    return fact_puzzle(facts, rng)


def _eight_magic(kind: str, values: list[str], rng: random.Random) -> Puzzle:
    keys = distinct(random_word, len(values), rng)
    needles = tuple(magic_needle(kind, key, value) for key, value in zip(keys, values, strict=True))
    asked = rng.randrange(len(keys))
    return Puzzle(
        needles=needles,
        evidence=(needles[asked],),
        question=(
            f"What is the special magic {kind.removesuffix('s')} for {keys[asked]} mentioned in the provided text?"
        ),
        references=(values[asked],),
        answer=f"{values[asked]}.",
        max_new_tokens=24,
    )


RETRIEVAL: dict[str, Any] = {"ability": "retrieval", "diffusion": "low", "scope": "low"}

TASKS: dict[str, Task] = {
    "kv64": Task(make=kv64, **RETRIEVAL),
    "keys8_numbers": Task(make=keys8_numbers, **RETRIEVAL),
    "keys8_words": Task(make=keys8_words, **RETRIEVAL),
    "keys8_facts": Task(make=keys8_facts, answers="derived", **RETRIEVAL),
}
