"""People and what is written about them; texts about some of them among texts about others."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from longspan.evaluation.suites import _fact_lists as names
from longspan.evaluation.suites.longbio import lists
from longspan.evaluation.task import Room

ATTRIBUTES = tuple(lists.QUESTIONS)
AGES = (18, 80)
PERSON_TOKENS = 240
INTRODUCTION = {
    "standard": "Below is the biography of {name}.",
    "paraphrase": "Below is the biography of {name}.",
    "pronoun": "Below is the self-introduction of {name}.",
}
Wording = Literal["standard", "paraphrase", "pronoun"]


@dataclass(frozen=True, kw_only=True)
class Person:
    """Somebody: full name, and value by attribute."""

    name: str
    values: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Biography:
    """A text about one person, and its sentence by attribute."""

    text: str
    sentences: Mapping[str, str]


def _value(attribute: str, rng: random.Random) -> str:
    place = rng.choice(names.PLACE_HEADS) + rng.choice(names.PLACE_TAILS)
    if attribute == "birthdate":
        return f"{rng.randint(1, 28)} {rng.choice(names.MONTHS)} {rng.randint(1930, 2005)}"
    if attribute == "age":
        return str(rng.randint(*AGES))
    if attribute == "university":
        return f"{place} {rng.choice(('University', 'College', 'Academy'))}"
    return {"hobby": rng.choice(lists.HOBBIES), "major": rng.choice(lists.MAJORS)}.get(attribute, place)


def people(rng: random.Random) -> Iterator[Person]:
    """People without end, no two of one name."""
    seen = set[str]()
    while True:
        name = " ".join((*rng.sample(names.FIRST_NAMES, 2), rng.choice(names.SURNAMES)))
        if name not in seen:
            seen.add(name)
            yield Person(name=name, values={key: _value(key, rng) for key in lists.NOUNS})


def biography(
    person: Person,
    rng: random.Random,
    *,
    wording: Wording = "standard",
    attributes: Sequence[str] = ATTRIBUTES,
    instead: Mapping[str, str] | None = None,
) -> Biography:
    """A text on `attributes` of a person; `instead` gives ready sentences for some of them."""
    wordings = {"paraphrase": lists.PARAPHRASES, "pronoun": lists.FIRST_PERSON}.get(wording)
    sentences = {}
    for key in attributes:
        pattern = rng.choice(wordings[key]) if wordings else lists.STANDARD[key]
        text = (instead or {}).get(key) or pattern.format(name=person.name, value=person.values[key])
        sentences[key] = text[0].upper() + text[1:]
    parts = (INTRODUCTION[wording].format(name=person.name), *sentences.values())
    return Biography(text=" ".join(parts), sentences=sentences)


def numbered(texts: Sequence[str]) -> list[str]:
    """The texts, each with its number before it, from 1."""
    return [f"Bio [{number}]: {text}" for number, text in enumerate(texts, start=1)]


def around(
    wanted: Sequence[str],
    crowd: Iterator[Person],
    left: int,
    room: Room,
    rng: random.Random,
    *,
    cite: bool = False,
    wording: Wording = "standard",
    attributes: Sequence[str] = ATTRIBUTES,
) -> list[str]:
    """`wanted` texts among as many others as fit `left` tokens, one a line; with `cite`, there is room for their numbers.

    The last few others tell less of a person, so that the length is exact; they stand anywhere.

    Raises:
        ValueError: the room is too small for the texts wanted.
    """
    joiner = "\nBio [100]: " if cite else "\n"
    budget = left - sum(room.count(joiner + text) for text in wanted)
    needed = max(PERSON_TOKENS * len(wanted), room.tokens - budget)
    if needed > room.tokens:
        raise ValueError(
            f"questions on {len(wanted)} people need about {needed} tokens, there are {room.tokens}; "
            f"ask for {-(-needed // 512) * 512} or more"
        )

    def others(*, whole: bool) -> Iterator[str]:
        for person in crowd:
            few = rng.sample(range(len(attributes)), rng.randint(1, 4))
            kept = attributes if whole else [attributes[place] for place in sorted(few)]
            yield biography(person, rng, wording=wording, attributes=kept).text

    fillers = room.fill(others(whole=True), budget, joiner=joiner)
    rest = budget - room.count("\n".join(numbered(fillers) if cite else fillers))
    while rest < 0:
        rest += room.count(joiner + fillers.pop())
    fillers += room.fill(itertools.islice(others(whole=False), 64), rest, joiner=joiner)
    rng.shuffle(fillers)
    return room.scatter(wanted, fillers, rng)
