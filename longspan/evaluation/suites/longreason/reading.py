"""Reading comprehension: what only several passages say together."""

from __future__ import annotations

import itertools
import random

from longspan.evaluation.suites import _fact_lists as lists
from longspan.evaluation.suites.facts import with_article
from longspan.evaluation.suites.longreason.passages import Maker, Problem, people, scene

__all__ = ["READING"]

WAYS = "on a hay cart,by the night train,in a rowing boat,on a borrowed bicycle,on foot across the hills,in the mail coach".split(
    ","
)
LODGINGS = "the old mill,the rectory,the ferry inn,the widow's house,the barracks,the tithe barn".split(",")
EVENTS = (
    "the choir practice,the cattle show,the firework,the sack race,the sermon,the prize-giving,the dance,the lottery,the puppet show"
).split(",")


def _hands(rng: random.Random) -> Problem:
    """A thing passes from hand to hand; who had it between two hand-overs."""
    event, names = scene(rng), people(6, rng)
    thing = with_article(f"a {rng.choice(lists.ADJECTIVES)} {rng.choice(lists.OBJECTS)}")
    short = "the " + thing.split(" ", 1)[1]
    reasons = rng.sample(
        ("as a pledge", "for safe keeping", "to have it mended", "in exchange for a meal", "as a parting gift", "to settle a wager"),
        5,
    )  # fmt: skip
    passed = [
        f"{giver} handed {short} to {taker} {reason}."
        for (giver, taker), reason in zip(itertools.pairwise(names), reasons, strict=True)
    ]
    asked = rng.randrange(2, 5)
    steps = {2: "second", 3: "third", 4: "fourth"}
    wrong = rng.sample([name for name in names if name not in (names[asked], names[0])], 3)
    return Problem(
        scene=event,
        premises=(f"{names[0]} was the one who first brought {thing} to it.", *passed[:asked]),
        beside=tuple(passed[asked:]),
        question=(
            f"{short.capitalize()} changed hands several times at {event}. Who held it after the {steps[asked]} time?"
        ),
        right=names[asked],
        wrong=tuple(wrong),
        working=f"It went from {' to '.join(names)}; after the {steps[asked]} time {names[asked]} held it.",
    )


def _days(rng: random.Random) -> Problem:
    """Days of the week, each told by another."""
    event, parts = scene(rng), rng.sample(EVENTS, 4)
    day = rng.randrange(7)
    days, told = [day], []
    for earlier, later in itertools.pairwise(parts):
        gap = rng.choice((-3, -2, 2, 3))
        days.append((days[-1] + gap) % 7)
        word = {2: "two", 3: "three"}[abs(gap)]
        told.append(
            f"{later.capitalize()} was held {word} days {'after' if gap > 0 else 'before'} {earlier}."
        )
    right = lists.DAYS[days[-1]]
    tempting = [lists.DAYS[number] for number in dict.fromkeys(days[::-1]) if lists.DAYS[number] != right]
    rest = [name for name in lists.DAYS if name != right and name not in tempting]
    rng.shuffle(rest)
    return Problem(
        scene=event,
        premises=(f"{parts[0].capitalize()} was held on a {lists.DAYS[day]}.", *told),
        question=f"On which day of the week was {parts[-1]} held at {event}?",
        right=right,
        wrong=tuple([*tempting, *rest][:3]),
        working="; ".join(
            f"{part} was on a {lists.DAYS[number]}" for part, number in zip(parts, days, strict=True)
        )
        + ".",
    )


def _guests(rng: random.Random) -> Problem:
    """Four guests, known by their coats, then by their lodgings; how did the one who won travel?"""
    event, (winner, judge) = scene(rng), people(2, rng)
    coats = rng.sample(lists.COLOURS, 4)
    lodgings, ways = rng.sample(LODGINGS, 4), rng.sample(WAYS, 4)
    slept = [
        f"The guest in the {coat} coat slept at {house}." for coat, house in zip(coats, lodgings, strict=True)
    ]
    came = [f"Whoever slept at {house} had come {way}." for house, way in zip(lodgings, ways, strict=True)]
    won = rng.randrange(4)
    needed = (slept[won], came[won])
    rng.shuffle(slept)
    rng.shuffle(came)
    pairs = [f"{first} {second}" for facts in (slept, came) for first, second in (facts[:2], facts[2:])]
    prize = f"{judge} gave the prize to {winner}, whose coat was {coats[won]}."
    return Problem(
        scene=event,
        premises=(*(told for told in pairs if any(fact in told for fact in needed)), prize),
        beside=tuple(told for told in pairs if not any(fact in told for fact in needed)),
        question=f"How had {winner}, who won the prize, come to {event}?",
        right=ways[won],
        wrong=tuple(way for way in ways if way != ways[won]),
        working=(
            f"{winner} wore the {coats[won]} coat, so slept at {lodgings[won]}, and whoever slept there had come {ways[won]}."
        ),
    )


READING: tuple[Maker, ...] = (_hands, _days, _guests)
"""Kinds of comprehension question."""
