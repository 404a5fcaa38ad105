"""Natural facts hidden in prose, asked for in plain words.

Invented people, places and things ("The harbour master of Brindlewick keeps a brass lantern in the cellar."), so that
the answer is in the context or nowhere. `facts.unseen` uses kinds of fact the reference model was not trained on.
"""

import random
import re
from dataclasses import dataclass, replace
from typing import Any

from longspan.evaluation.suites import _fact_lists as lists
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "facts",
    "title": "Needle in a haystack, with natural facts (longspan's own)",
    "year": 2026,
    "version": 1,
    "metric": "share of the reference strings found in the answer, letter case ignored; mean over samples",
    "differs": ["no published suite: it measures recall of a plain fact from prose, in the words of a user"],
    "paper_id": None,
    "lengths": "any",
    "needs": "nothing",
    "licence": "generated here",
}

ORDINALS = tuple(
    f"{day}{'th' if 10 < day < 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"
    for day in range(1, 29)
)
FEW_VALUES = 3
FEW_VALUES_SHARE = 0.7
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One invented fact: its sentence, a question about it, the answer."""

    statement: str
    question: str
    answer: str


def _person(rng: random.Random) -> str:
    return f"{rng.choice(lists.FIRST_NAMES)} {rng.choice(lists.SURNAMES)}"


def _number(rng: random.Random) -> str:
    digits = rng.randint(2, 8)
    return str(rng.randint(10 ** (digits - 1), 10**digits - 1))


def _fill(slot: str, rng: random.Random) -> str:
    choices = {
        "role": lists.ROLES, "adj": lists.ADJECTIVES, "object": lists.OBJECTS, "inside": lists.PLACES_INSIDE,
        "colour": lists.COLOURS, "animal": lists.ANIMALS, "food": lists.FOODS, "day": lists.DAYS, "month": lists.MONTHS,
        "ship": lists.SHIPS, "language": lists.LANGUAGES, "project": lists.PROJECTS, "thing": lists.THINGS,
        "pet": lists.FIRST_NAMES, "noun": lists.SUBJECTS, "other": lists.OBJECTS, "ordinal": ORDINALS,
    }  # fmt: skip
    if slot in choices:
        return rng.choice(choices[slot])
    if slot in ("person", "other_person"):
        return _person(rng)
    if slot == "place":
        return rng.choice(lists.PLACE_HEADS) + rng.choice(lists.PLACE_TAILS)
    if slot == "number":
        return _number(rng)
    bounds = {"small": (1, 40), "year": (1200, 1999)}
    return str(rng.randint(*bounds[slot]))


def _answer_first(pattern: lists.Pattern) -> lists.Pattern:
    """The kind of fact with only those wordings that name no part of the subject before the answer."""
    answer = set(_SLOT.findall(pattern.answer))
    subject = set(_SLOT.findall("".join(pattern.questions))) - answer
    kept = [
        wording
        for wording in pattern.statements
        if next(slot for slot in _SLOT.findall(wording) if slot in answer | subject) in answer
    ]
    return replace(pattern, statements=tuple(kept))


class _FewValues:
    """Fills slots mostly from a handful of values each, names of people and places from a handful of parts."""

    def __init__(self, rng: random.Random) -> None:
        self.known: dict[str, list[str]] = {}
        self.firsts, self.surnames, self.heads, self.tails = (
            rng.sample(parts, FEW_VALUES)
            for parts in (lists.FIRST_NAMES, lists.SURNAMES, lists.PLACE_HEADS, lists.PLACE_TAILS)
        )

    def fill(self, slot: str, rng: random.Random) -> str:
        if rng.random() >= FEW_VALUES_SHARE:
            return _fill(slot, rng)
        if slot == "place":
            return rng.choice(self.heads) + rng.choice(self.tails)
        if slot in ("person", "other_person"):
            return f"{rng.choice(self.firsts)} {rng.choice(self.surnames)}"
        return rng.choice(self.known.setdefault(slot, [_fill(slot, rng) for _ in range(FEW_VALUES)]))


def draw_facts(
    count: int,
    rng: random.Random,
    *,
    same_template: bool = False,
    held_out: bool = False,
    similar: bool = False,
    answer_first: bool = False,
) -> list[Fact]:
    """`count` facts with different questions; all of one kind and wording with `same_template`.

    With `similar` their names and things are drawn from a few, so that only combinations tell the facts apart. With
    `answer_first` every sentence gives its answer before it says what of, which a causal model cannot mark in passing.
    """
    fill = _FewValues(rng).fill if similar else _fill
    patterns = [pattern for pattern in lists.PATTERNS if pattern.held_out == held_out]
    if answer_first:
        patterns = [found for pattern in patterns if (found := _answer_first(pattern)).statements]
    pattern = rng.choice(patterns)
    statement = rng.randrange(len(pattern.statements))
    question = rng.randrange(len(pattern.questions))
    facts: dict[str, Fact] = {}
    while len(facts) < count:
        if not same_template:
            pattern = rng.choice(patterns)
            statement = rng.randrange(len(pattern.statements))
            question = rng.randrange(len(pattern.questions))
        slots = set(
            _SLOT.findall(pattern.statements[statement] + pattern.questions[question] + pattern.answer)
        )
        filled = {slot: fill(slot, rng) for slot in sorted(slots)}
        fact = Fact(
            statement=with_article(pattern.statements[statement].format(**filled)),
            question=with_article(pattern.questions[question].format(**filled)),
            answer=with_article(pattern.answer.format(**filled)),
        )
        facts.setdefault(fact.question, fact)
    return list(facts.values())


def with_article(text: str) -> str:
    """`a` before a consonant, `an` before a vowel."""
    return re.sub(r"\b([Aa]) (?=[aeioAEIO]|u(?!n[ai]))", r"\1n ", text)


def fact_puzzle(facts: list[Fact], rng: random.Random) -> Puzzle:
    """Hide all facts, ask for one of them."""
    asked = rng.choice(facts)
    return Puzzle(
        needles=tuple(fact.statement for fact in facts),
        evidence=(asked.statement,),
        question=asked.question,
        references=(re.sub(r"^(?:an?|the) ", "", asked.answer),),
        answer=asked.answer + ".",
        max_new_tokens=24,
    )


def single(rng: random.Random, room: Room) -> Puzzle:
    """One fact, asked for."""
    return fact_puzzle(draw_facts(1, rng), rng)


def several(rng: random.Random, room: Room) -> Puzzle:
    """Six facts of different kinds, one asked for."""
    return fact_puzzle(draw_facts(6, rng), rng)


def unseen(rng: random.Random, room: Room) -> Puzzle:
    """One fact of a kind the reference model was not trained on."""
    return fact_puzzle(draw_facts(1, rng, held_out=True), rng)


# A colour or an animal may stand elsewhere in the text too.
RETRIEVAL: dict[str, Any] = {"ability": "retrieval", "diffusion": "low", "scope": "low", "answers": "derived"}

TASKS: dict[str, Task] = {
    "single": Task(make=single, **RETRIEVAL),
    "several": Task(make=several, **RETRIEVAL),
    "unseen": Task(make=unseen, **RETRIEVAL),
}
