"""I don't know: a small story hidden in a text; the question's answer stands in it, or nowhere."""

from __future__ import annotations

import random
from collections.abc import Callable

from longspan.evaluation.suites import _fact_lists as words
from longspan.evaluation.task import Puzzle, Room, Sample

UNKNOWN = "I don't know"
LETTERS = "ABCD"


def _place(rng: random.Random) -> str:
    return rng.choice(words.PLACE_HEADS) + rng.choice(words.PLACE_TAILS)


DETAILS: dict[str, tuple[str, str, Callable[[random.Random], str]]] = {
    "age": (
        "{name}, who belongs to {owner}, is {value} old.",
        "How old is {name}, the {animal} of {owner}?",
        lambda rng: f"{rng.randint(2, 19)} years and {rng.randint(2, 11)} months",
    ),
    "colour": (
        "The collar of {name}, the pride of {owner}, is {value}.",
        "Which colours has the collar of {name}, the {animal} of {owner}?",
        lambda rng: " and ".join(rng.sample(words.COLOURS, 2)),
    ),
    "food": (
        "What {owner} feeds to {name} is mostly {value}.",
        "What does {name}, the {animal} of {owner}, mostly eat?",
        lambda rng: " with ".join(rng.sample(words.FOODS, 2)),
    ),
    "home": (
        "{owner} bought {name} from a farm in {value}.",
        "Where did {owner} buy {name}, the {animal}?",
        _place,
    ),
    "bed": (
        "At night, {owner} finds {name} asleep on {value}.",
        "What does {name}, the {animal} of {owner}, sleep on?",
        lambda rng: f"the {rng.choice(words.ADJECTIVES)} {rng.choice(words.OBJECTS)}",
    ),
    "friend": (
        "Apart from {owner}, {name} obeys only {value}.",
        "Whom does {name}, the {animal}, obey apart from {owner}?",
        lambda rng: f"{rng.choice(words.FIRST_NAMES)} {rng.choice(words.SURNAMES)}",
    ),
}
NUM_TOLD = 4
NUM_ANIMALS = 2


def _animals(rng: random.Random) -> list[dict[str, str]]:
    names = rng.sample(words.FIRST_NAMES, 2 * NUM_ANIMALS)
    kinds, surnames = rng.sample(words.ANIMALS, NUM_ANIMALS), rng.sample(words.SURNAMES, NUM_ANIMALS)
    return [
        {"owner": f"{owner} {surname}", "name": name, "animal": kind}
        for owner, name, kind, surname in zip(names[::2], names[1::2], kinds, surnames, strict=True)
    ]


def _told(animal: dict[str, str], key: str, value: str) -> str:
    return DETAILS[key][0].format(**animal, value=value)


def idk(rng: random.Random, room: Room) -> Puzzle:
    """Four details on each of two animals; one that was told or was not is asked for, with three offers and "I don't know".

    An offer that is wrong is, where it can be, what the text tells of the other animal.
    """
    asked, other = _animals(rng)
    told = rng.sample(tuple(DETAILS), NUM_TOLD)
    known = rng.random() < 0.5
    key = rng.choice(told) if known else rng.choice([one for one in DETAILS if one not in told])
    told_of_other = [key, *rng.sample([one for one in DETAILS if one != key], NUM_TOLD - 1)]
    values = {one: DETAILS[one][2](rng) for one in told}
    offers = [values[key]] if known else []
    while len(offers) < len(LETTERS) - 1:
        offer = DETAILS[key][2](rng)
        if offer not in offers and offer not in values.values():
            offers.append(offer)
    trap, right = offers[-1], offers[0] if known else UNKNOWN
    first = "{owner} keeps {article} {animal} called {name}."
    starts = [
        first.format(**one, article="an" if one["animal"][0] in "aeio" else "a") for one in (asked, other)
    ]
    said = [_told(asked, one, values[one]) for one in told]
    said_of_other = [_told(other, one, trap if one == key else DETAILS[one][2](rng)) for one in told_of_other]
    offers.append(UNKNOWN)
    rng.shuffle(offers)
    listed = "\n".join(f"({letter}) {offer}" for letter, offer in zip(LETTERS, offers, strict=True))
    question = (
        f"{DETAILS[key][1].format(**asked)} Choose by the text alone; if it does not say, choose {UNKNOWN!r}."
    )
    letter = LETTERS[offers.index(right)]
    return Puzzle(
        needles=(*starts, *said, *said_of_other),
        evidence=(said[told.index(key)] if known else starts[0],),
        question=f"{question}\n{listed}",
        answer_prefix="The correct answer is",
        references=(letter,),
        answer=f"({letter}).",
        max_new_tokens=16,
        details={"unknown": LETTERS[offers.index(UNKNOWN)], "known": known},
    )


def guess(rng: random.Random, sample: Sample) -> str:
    """ "I don't know", which is right as often as not."""
    return f"({sample.details['unknown']})"
