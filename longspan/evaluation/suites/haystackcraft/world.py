"""An invented encyclopedia: an article for every society and every person; societies name their founders.

What a question asks for stands in the article on the founder, which only the article on the society leads to. Names share
their parts (a dozen societies are "Golden", hundreds of people are called "Ada"), so that retrievers find much that is near.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from longspan.evaluation.suites import _fact_lists as lists
from longspan.evaluation.suites.facts import with_article
from longspan.evaluation.suites.haystackcraft.retrieval import Corpus

__all__ = ["ASKED", "Person", "Society", "World", "world_of"]

ASKED = {
    "birthplace": ("Where was {who} born?", "The founder seems to be {name}, who was born in {value}."),
    "treasure": (
        "Which treasure did {who} keep at home?",
        "The founder seems to be {name}, who kept {value} at home.",
    ),
    "ship": (
        "On which ship did {who} travel?",
        "The founder seems to be {name}, who travelled on the {value}.",
    ),
}
"""For each kind: the question, and a finding about a person who was taken for the founder."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """Name, what is asked for by kind, and the whole article."""

    name: str
    values: dict[str, str]
    article: str


@dataclass(frozen=True, kw_only=True)
class Society:
    """Name, number of its founder among the people, and the whole article."""

    name: str
    founder: int
    article: str


@dataclass(frozen=True, kw_only=True)
class World:
    """People, the societies that they founded, and the corpus: articles on societies first, then those on people."""

    societies: tuple[Society, ...]
    people: tuple[Person, ...]
    corpus: Corpus

    def place_of(self, person: int) -> int:
        """Number in the corpus of the article on a person."""
        return len(self.societies) + person


@lru_cache(maxsize=3)
def world_of(num_documents: int) -> World:
    """The encyclopedia of that many articles: always the same, as an encyclopedia is; questions are drawn from it."""
    rng = random.Random(f"encyclopedia of {num_documents} articles")
    half = num_documents // 2
    names = _different(lambda: f"{rng.choice(lists.FIRST_NAMES)} {rng.choice(lists.SURNAMES)}", half)
    people = tuple(_person(name, rng) for name in names)
    titles = _different(
        lambda: f"{rng.choice(lists.ADJECTIVES).title()} {rng.choice(lists.OBJECTS).title()} Society", half
    )
    founders = rng.sample(range(half), half)
    societies = tuple(
        _society(title, founder, people[founder].name, rng)
        for title, founder in zip(titles, founders, strict=True)
    )
    articles = [one.article for one in societies] + [one.article for one in people]
    return World(societies=societies, people=people, corpus=Corpus(articles))


def _different(make: Callable[[], str], count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[make()] = None
    return list(found)


def town(rng: random.Random) -> str:
    """A name of a town."""
    return rng.choice(lists.PLACE_HEADS) + rng.choice(lists.PLACE_TAILS)


def _person(name: str, rng: random.Random) -> Person:
    values = {
        "birthplace": town(rng),
        "treasure": with_article(f"a {rng.choice(lists.ADJECTIVES)} {rng.choice(lists.OBJECTS)}"),
        "ship": f"{rng.choice(lists.ADJECTIVES).title()} {rng.choice(lists.SHIPS)}",
    }
    last = name.split()[1]
    sentences = [
        f"At home {last} kept {values['treasure']} in the {rng.choice(lists.PLACES_INSIDE)}.",
        f"In {rng.randint(1700, 1899)} {name} travelled on the ship {values['ship']}.",
        f"{last} spoke {rng.choice(lists.LANGUAGES)} and liked {rng.choice(lists.FOODS)}.",
        f"{name} later became {rng.choice(lists.ROLES)} of {town(rng)}.",
    ]
    rng.shuffle(sentences)
    kept = sentences + ["The date of death is not known."] * rng.randint(0, 1)
    first = f"{name} was born in {values['birthplace']}."
    return Person(name=name, values=values, article=f"Article: {name}\n{' '.join([first, *kept])}")


def _society(title: str, founder: int, name: str, rng: random.Random) -> Society:
    sentences = [
        f"Its members meet every {rng.choice(lists.DAYS)} in the {rng.choice(lists.PLACES_INSIDE)} of the {rng.choice(lists.THINGS)}.",
        f"The seal of the society shows a {rng.choice(lists.COLOURS)} {rng.choice(lists.ANIMALS)}.",
        f"It has {rng.randint(20, 900)} members, many of them from {town(rng)}.",
    ]
    rng.shuffle(sentences)
    first = f"The {title} was founded in {rng.randint(1700, 1899)} by {name}."
    text = with_article(" ".join([first, *sentences[: rng.randint(2, 3)]]))
    return Society(name=title, founder=founder, article=f"Article: {title}\n{text}")
