"""Invented facts on people, towns and projects, told in passages and conversations."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longspan.evaluation.suites import _fact_lists as lists
from longspan.evaluation.suites.facts import with_article

__all__ = ["DAYS", "DEEDS", "PROJECT_KINDS", "Facts", "Kind"]

DAYS = lists.DAYS
MOST_FACTS = 4
MOST_LINES = 3
DEEDS = ("I bought a {}.", "I sold my {}.", "I saw a {} yesterday.", "I was given a {}.", "I lost my {}.")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of fact: its sentence, the question on it, and the slot asked for."""

    statement: str
    question: str
    answer: str


KINDS = {
    "telephone": Kind(
        statement="{person} has the telephone number {number}.",
        question="Which telephone number does {person} have?",
        answer="number",
    ),
    "treasure": Kind(
        statement="{person} keeps a {thing} in the {inside}.",
        question="What does {person} keep in the {inside}?",
        answer="thing",
    ),
    "home": Kind(
        statement="{person} moved to {town} in {year}.",
        question="To which town did {person} move in {year}?",
        answer="town",
    ),
    "work": Kind(
        statement="{person} works as a {role} in {town}.",
        question="In which town does {person} work?",
        answer="town",
    ),
    "mayor": Kind(
        statement="The mayor of {town} is {person}.", question="Who is the mayor of {town}?", answer="person"
    ),
    "stars": Kind(
        statement="On {day} {person} counted {count} stars.",
        question="How many stars did {person} count on {day}?",
        answer="count",
    ),
    "leader": Kind(
        statement="Project {project} is led by {person}.",
        question="who leads it",
        answer="person",
    ),
    "budget": Kind(
        statement="The budget of project {project} is {number} crowns.",
        question="its budget",
        answer="number",
    ),
    "site": Kind(
        statement="The people of project {project} meet in {town}.",
        question="where its people meet",
        answer="town",
    ),
    "emblem": Kind(
        statement="The emblem of project {project} is a {thing}.",
        question="its emblem",
        answer="thing",
    ),
    "deadline": Kind(
        statement="Project {project} must be finished by {date}.",
        question="by when it must be finished",
        answer="date",
    ),
}
PROJECT_KINDS = ("leader", "budget", "site", "emblem", "deadline")
SLOTS: dict[str, Callable[[random.Random], str]] = {
    "person": lambda rng: f"{rng.choice(lists.FIRST_NAMES)} {rng.choice(lists.SURNAMES)}",
    "town": lambda rng: rng.choice(lists.PLACE_HEADS) + rng.choice(lists.PLACE_TAILS),
    "thing": lambda rng: f"{rng.choice(lists.ADJECTIVES)} {rng.choice(lists.OBJECTS)}",
    "project": lambda rng: f"{rng.choice(lists.ADJECTIVES).title()} {rng.choice(lists.PROJECTS)}",
    "number": lambda rng: str(rng.randint(1_000_000, 9_999_999)),
    "count": lambda rng: str(rng.randint(100, 999)),
    "year": lambda rng: str(rng.randint(1700, 1999)),
    "date": lambda rng: f"{rng.randint(1, 28)} {rng.choice(lists.MONTHS)} {rng.randint(1700, 1999)}",
    "day": lambda rng: rng.choice(lists.DAYS),
    "role": lambda rng: rng.choice(lists.ROLES),
    "inside": lambda rng: rng.choice(lists.PLACES_INSIDE),
}


class Facts:
    """Draws facts, and others that name nothing that was asked about."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.taken = rng, set[str]()

    def asked(self, kind: str, **given: str) -> tuple[str, str, str]:
        """Sentence, question and answer of a new fact; `given` fills slots."""
        chosen = KINDS[kind]
        slots = re.findall(r"\{(\w+)\}", chosen.statement)
        plain = ("day", "role", "inside", "year")
        filled = {
            slot: given.get(slot) or (SLOTS[slot](self.rng) if slot in plain else self.new(slot))
            for slot in slots
        }
        return (
            with_article(chosen.statement.format(**filled)),
            chosen.question.format(**filled),
            filled[chosen.answer],
        )

    def other(self) -> str:
        """A sentence on something else."""
        while True:
            chosen = KINDS[self.rng.choice(tuple(KINDS))]
            slots = re.findall(r"\{(\w+)\}", chosen.statement)
            filled = {slot: SLOTS[slot](self.rng) for slot in slots}
            if self.taken.isdisjoint(filled.values()):
                return with_article(chosen.statement.format(**filled))

    def passage(self, *sentences: str) -> str:
        """The sentences among others."""
        told = [*sentences, *(self.other() for _ in range(self.rng.randint(1, MOST_FACTS) - len(sentences)))]
        self.rng.shuffle(told)
        return " ".join(told)

    def talk(self, *lines: str) -> str:
        """A conversation in which these lines are said, besides others."""
        said = [*lines, *(self.line() for _ in range(self.rng.randint(1, MOST_LINES) - len(lines)))]
        self.rng.shuffle(said)
        return "\n".join([f"({self.rng.randint(1, 28)} {self.rng.choice(lists.MONTHS)})", *said])

    def line(self, name: str = "", deeds: Sequence[str] = DEEDS) -> str:
        """What someone, by default someone who is not asked about, says of a thing that is not asked for."""
        thing, speaker = self.stranger("thing"), name or self.stranger("person")
        return f'{speaker} said: "{with_article(self.rng.choice(deeds).format(thing))}"'

    def stranger(self, slot: str) -> str:
        value = SLOTS[slot](self.rng)
        while value in self.taken:
            value = SLOTS[slot](self.rng)
        return value

    def new(self, slot: str) -> str:
        """A value that no other asked fact has, and that no fact drawn later will."""
        value = self.stranger(slot)
        self.taken.add(value)
        return value
