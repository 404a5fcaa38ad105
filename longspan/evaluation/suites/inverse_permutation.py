"""Inverse permutation: a list in a new order, and for each item its place in the old one; give the old order back.

    y_i = x_p(i),   wanted: x_k = y_i with p(i) = k

A causal model reads p before y, so what tells where y_i goes is known at y_i, but not the other way round. The paper proves that
a decoder-only transformer cannot write x at the places of y, and that it can once scratch tokens without meaning follow y. The
`_scratch` tasks pad the prompt with them; the difference to the plain tasks is what they are worth to a model.

Paper: The Impossibility of Inverse Permutation Learning in Transformer Models (Alur et al., 2025)
Scored by the share of places with the right item.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.text import need_references
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "inverse_permutation",
    "title": "The Impossibility of Inverse Permutation Learning in Transformer Models",
    "year": 2025,
    "version": 1,
    "metric": "share of places with the right item, `exact` when all are right",
    "differs": [
        "the paper trains small models on permutation matrices; here the task is put in words to a trained model, which writes its "
        "answer token by token",
        "whole: 16 items, whose two lines stand apart in the user's prose",
        "places: as many items as fit, of which eight neighbours in the old order are asked for",
        "scratch tokens are full stops; they also stand before the two lines of whole_scratch, and take half of the room in "
        "places_scratch, where the paper adds as many as there are items",
    ],
    "paper_id": 138,
    "lengths": "any",
    "needs": "nothing",
    "licence": "generated here",
}

NUM_ITEMS = 16
NUM_ASKED = 8
ITEM_TOKENS = 8
SCRATCH_LINE = " ".join(["."] * 16)
SCRATCH_SHARE = 0.5
SCRATCH_AFTER = 0.1
RULE = (
    "A list of words was put in a new order. One line gives the words in the new order. Another line gives, for each of them in "
    "turn, its place in the old order, counted from 1."
)


def items_in_place(
    prediction: str, references: Sequence[str], details: Mapping[str, Any]
) -> dict[str, float]:
    """Share of the references that are the answer's word of the same place; "exact": 1.0 if the answer is all of them alone."""
    need_references(references)
    found = re.findall(r"[a-z]+", prediction.lower())
    right = sum(one == other for one, other in zip(found, references, strict=False))
    return {"score": right / len(references), "exact": float(found == list(references))}


def _words(rng: random.Random) -> Iterator[str]:
    """Different words without end, of three syllables, from the 100,000th of four."""
    seen = set[str]()
    while True:
        word = "".join(
            rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3 if len(seen) < 100_000 else 4)
        )
        if word not in seen:
            seen.add(word)
            yield word


def _lines(old: Sequence[str], rng: random.Random) -> tuple[str, str]:
    """The places p, and the words y in the new order."""
    places = rng.sample(range(len(old)), len(old))
    return (
        "Places in the old order: " + " ".join(str(place + 1) for place in places),
        "Words in the new order: " + " ".join(old[place] for place in places),
    )


def _whole(rng: random.Random) -> tuple[tuple[str, str], dict[str, Any]]:
    old = list(itertools.islice(_words(rng), NUM_ITEMS))
    asked: dict[str, Any] = {
        "question": f"Write all {NUM_ITEMS} words in the old order, and nothing else.",
        "answer_prefix": "Old order:",
        "references": tuple(old),
        "answer": " ".join(old),
        "max_new_tokens": ITEM_TOKENS * NUM_ITEMS,
    }
    return _lines(old, rng), asked


def whole(rng: random.Random, room: Room) -> Puzzle:
    """All of a short list; its two lines stand in prose."""
    lines, asked = _whole(rng)
    return Puzzle(needles=lines, ordered=True, style="line", preamble=RULE, **asked)


def whole_scratch(rng: random.Random, room: Room) -> Puzzle:
    """All of a short list; its two lines stand among scratch tokens, a tenth of which at least follows them."""
    lines, asked = _whole(rng)
    left = room.left(
        RULE, *lines, asked["question"], asked["answer_prefix"], max_new_tokens=asked["max_new_tokens"]
    )
    scratch = room.fill_exactly(itertools.repeat(SCRATCH_LINE), _at_least(left, NUM_ITEMS, room))
    after = max(1, round(SCRATCH_AFTER * len(scratch)))
    mixed = room.scatter(lines, scratch[after:], rng, ordered=True)
    return Puzzle(needles=(), evidence=lines, context="\n".join((RULE, *mixed, *scratch[:after])), **asked)


def _at_least(left: int, num_tokens: int, room: Room) -> int:
    if left < num_tokens:
        raise ValueError(
            f"the lists do not fit {room.tokens} tokens; ask for {room.tokens + num_tokens - left + 64} or more"
        )
    return left


def _places(rng: random.Random, room: Room, *, scratch_share: float) -> Puzzle:
    prefix = "Answer:"
    question = (
        f"Write the words at the places {10**5} to {10**5} of the old order, in order, and nothing else."
    )
    tokens = ITEM_TOKENS * NUM_ASKED
    left = _at_least(room.left(RULE, question, prefix, *_lines([], rng), max_new_tokens=tokens), 128, room)
    pads = (
        room.fill_exactly(itertools.repeat(SCRATCH_LINE), int(scratch_share * left)) if scratch_share else []
    )
    budget = left - (room.count("\n".join(pads)) if pads else 0)
    pairs = (f"{number} {word}" for number, word in enumerate(_words(rng), start=1))
    old = [pair.split()[1] for pair in room.fill_exactly(pairs, budget, joiner=" ")]
    lines = _lines(old, rng)
    start = rng.randrange(len(old) - NUM_ASKED + 1)
    wanted = old[start : start + NUM_ASKED]
    answer = " ".join(wanted)
    return Puzzle(
        needles=(),
        context="\n".join((RULE, *lines, *pads)),
        evidence=(),  # which word goes with which place is found by counting from the start of both lines
        question=f"Write the words at the places {start + 1} to {start + NUM_ASKED} of the old order, in order, and nothing else.",
        answer_prefix=prefix,
        references=tuple(wanted),
        answer=answer,
        max_new_tokens=tokens,
    )


def places(rng: random.Random, room: Room) -> Puzzle:
    """Eight neighbours of a list as long as the room."""
    return _places(rng, room, scratch_share=0.0)


def places_scratch(rng: random.Random, room: Room) -> Puzzle:
    """Eight neighbours of a list half as long as the room; scratch tokens follow."""
    return _places(rng, room, scratch_share=SCRATCH_SHARE)


LABELS: dict[str, Any] = {
    "ability": "inverse permutation",
    "diffusion": "high",
    "metric": items_in_place,
    "answers": "derived",
}

TASKS: dict[str, Task] = {
    "whole": Task(make=whole, scope="low", **LABELS),
    "whole_scratch": Task(make=whole_scratch, scope="low", **LABELS),
    "places": Task(make=places, scope="high", **LABELS),
    "places_scratch": Task(make=places_scratch, scope="high", **LABELS),
}
