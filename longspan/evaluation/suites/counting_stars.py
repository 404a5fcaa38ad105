"""Counting-Stars: many sentences of one kind all over the text, and all their numbers asked for.

A little penguin counts stars on up to 32 occasions. `acquisition` wants every count; in `reasoning` each count was wrong at
first and is put right in the same sentence, and only the right ones are wanted.

Paper: Counting-Stars: A Multi-evidence, Position-aware, and Scalable Benchmark for Evaluating Long-Context Large Language
Models (Song, Zheng and Luo, 2024)
Scored by the counts given in the right order, as a share of the longer of the two lists. `found` is the share of counts that
are given at all.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.text import need_references
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "counting_stars",
    "title": (
        "Counting-Stars: A Multi-evidence, Position-aware, and Scalable Benchmark for Evaluating Long-Context Large "
        "Language Models"
    ),
    "year": 2024,
    "version": 1,
    "metric": "counts in the right order / length of the longer list",
    "differs": [
        "sentences, question and haystack are our own; the original hides its sentences in a Chinese novel or in English essays",
        "places are random, not at equal distances",
        "under 4,096 tokens (8,192 with corrections) fewer than 32 sentences, so that they fill at most about half of the text",
        "counts reach 1,999 instead of about 130, so that a guess hits none",
        "the answer is a plain list, not JSON, and its order and surplus numbers count",
    ],
    "paper_id": None,
    "lengths": "any from 256 tokens",
    "needs": "nothing",
    "licence": "generated here",
}

MOST_SENTENCES = 32
COUNTS = range(11, 2000)
ONCE = (
    "On {occasion} the little penguin counted {count} ★.",
    "The little penguin counted {count} ★ on {occasion}.",
    "It was {occasion}, and the little penguin counted {count} ★.",
)
AGAIN = (
    "On {occasion} the little penguin counted {wrong} ★, saw that a cloud had hidden some of them, and then counted {count} ★.",
    "The little penguin counted {wrong} ★ on {occasion}, which was a mistake: there were {count} ★.",
    "It was {occasion}, and instead of {wrong} ★, as it thought at first, the little penguin counted {count} ★.",
)
EVENINGS = "calm,cold,windless,misty,clear,bright,long,silent".split(",")
WHEN = "in spring,in summer,in autumn,in winter,before the thaw,after the storm,by the ice shelf,on the beach".split(
    ","
)


def stars(*, corrected: bool) -> Callable[[random.Random, Room], Puzzle]:
    """A maker of puzzles; with `corrected`, each sentence has a wrong count besides the right one."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        number = min(MOST_SENTENCES, room.tokens // (240 if corrected else 120))
        if number < 2:
            raise ValueError(
                f"two counts do not fit {room.tokens} tokens; ask for {512 if corrected else 256} or more"
            )
        counts = rng.sample(COUNTS, 2 * number)
        occasions = rng.sample(
            [f"a {evening} evening {when}" for evening in EVENINGS for when in WHEN], number
        )
        right, wrong = counts[:number], counts[number:]
        needles = tuple(
            rng.choice(AGAIN if corrected else ONCE).format(occasion=occasion, count=count, wrong=first)
            for occasion, count, first in zip(occasions, right, wrong, strict=True)
        )
        listed = ", ".join(map(str, right))
        return Puzzle(
            needles=needles,
            ordered=True,
            question=(
                "Here and there in the text above, a little penguin counts stars (★). List how many it counted each time, in the "
                f"order of the text{', and only the counts that were right in the end' if corrected else ''}. Write the numbers "
                "only, separated by commas."
            ),
            answer_prefix="The counts are:",
            references=tuple(map(str, right)),
            answer=f"{listed}.",
            max_new_tokens=8 * number + 8,
        )

    return make


def in_order(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of the answer that stand in the references' order, divided by the longer list; "found": in any order."""
    need_references(references)
    given = re.findall(r"\d+", prediction)
    return {
        "score": _longest_common(given, references) / max(len(given), len(references)),
        "found": len(set(given) & set(references)) / len(set(references)),
    }


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    row = [0] * (len(second) + 1)
    for one in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            diagonal, row[place] = (
                row[place],
                diagonal + 1 if one == other else max(row[place], row[place - 1]),
            )
    return row[-1]


LABELS: dict[str, Any] = {
    "ability": "aggregation", "diffusion": "low", "scope": "high", "metric": in_order, "answers": "derived",
}  # fmt: skip

TASKS: dict[str, Task] = {
    "acquisition": Task(make=stars(corrected=False), **LABELS),
    "reasoning": Task(make=stars(corrected=True), **LABELS),
}
