"""Where pieces come from: sentences of prose, short functions, invented records."""

from __future__ import annotations

import random
import re
import textwrap
from collections.abc import Iterator, Sequence
from functools import lru_cache

from longspan.evaluation.suites import _fact_lists as lists
from longspan.evaluation.suites._source_tree import SourceTree
from longspan.evaluation.suites.facts import draw_facts
from longspan.evaluation.task import Room

__all__ = ["functions_of", "records_of", "sentences_of"]

FEWEST_LINES, MOST_LINES = 4, 24


def sentences_of(rng: random.Random, room: Room) -> Iterator[str]:
    """Different sentences of the user's prose in random order, then invented facts without end."""
    given = [] if room.haystack is None else list(room.haystack.sentences)
    seen = set[str]()
    for text in rng.sample(given, len(given)):
        sentence = " ".join(text.split())
        if sentence not in seen and re.search(r"\w+ \w+", sentence):
            seen.add(sentence)
            yield sentence
    while True:
        # Several in one sentence, so that they are as long as those of prose.
        facts = draw_facts(rng.randint(1, 3), rng)
        sentence = "; ".join(fact.statement.rstrip(".") for fact in facts) + "."
        if sentence not in seen:
            seen.add(sentence)
            yield sentence


@lru_cache(maxsize=2)
def functions_of(tree: SourceTree) -> Sequence[tuple[str, str]]:
    """Name and code of short functions whose first line is all of their head."""
    found = []
    for function in tree.unique:
        code = textwrap.dedent(function.code)
        lines = code.split("\n")
        if (
            FEWEST_LINES <= len(lines) <= MOST_LINES
            and re.match(r"(?:async )?def .*:$", lines[0])
            and all(line.strip() for line in lines)
        ):
            found.append((function.name, code))
    return tuple(found)


def records_of(rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Records that differ in every field: people and things of invented towns."""
    seen = set[str]()
    while True:
        town = rng.choice(lists.PLACE_HEADS) + rng.choice(lists.PLACE_TAILS)
        person = f"{rng.choice(lists.FIRST_NAMES)} {rng.choice(lists.SURNAMES)}"
        thing = f"{rng.choice(lists.ADJECTIVES).title()} {rng.choice(lists.OBJECTS).title()}"
        name, what = rng.choice(((person, rng.choice(lists.ROLES)), (thing, rng.choice(lists.THINGS))))
        fields = (
            f"Q{rng.randint(10_000_000, 99_999_999)}",
            f"{name} {rng.randint(2, 99)}",
            f"{town} {what} {rng.randint(1200, 1999)}",
        )
        if seen.isdisjoint(fields):
            seen.update(fields)
            yield fields
