"""Logical inference: orders from comparisons, chains of conditions, and who has what by exclusion."""

from __future__ import annotations

import itertools
import random

from longspan.evaluation.suites import _fact_lists as lists
from longspan.evaluation.suites.longreason.passages import Maker, Problem, join_names, people, scene

__all__ = ["LOGIC"]

RANKS = ("first", "second", "third", "fourth", "fifth")
SIGNS = (
    "the flag on the mill is raised,the bell of the chapel is rung,the gate by the river is shut,the lamp on the quay is lit,"
    "the ferry stays at its pier,the drummer walks through the lanes,the baker closes early,the fountain runs dry,"
    "the geese are driven home,the notice is taken off the door,the boats are drawn ashore,the band plays in the square"
).split(",")


def _order(rng: random.Random) -> Problem:
    """Five in a row, known by the four pairs of neighbours."""
    event, names = scene(rng), people(5, rng)
    pairs = list(itertools.pairwise(names))
    premises = [
        rng.choice((f"{earlier} came in before {later}", f"{later} came in after {earlier}"))
        + ", and nobody came in between the two."
        for earlier, later in pairs
    ]
    asked = rng.randrange(1, 4)
    others = [name for name in names if name != names[asked]]
    return Problem(
        scene=event,
        premises=(f"The race had five runners: {join_names(sorted(names))}.", *premises),
        question=f"Who came in {RANKS[asked]} in the race at {event}?",
        right=names[asked],
        wrong=tuple(rng.sample(others, 3)),
        working=f"The runners came in in this order: {join_names(names)}. So {names[asked]} was {RANKS[asked]}.",
    )


def _conditions(rng: random.Random) -> Problem:
    """A chain of conditions and a fact: at its start what follows, or against its end what is ruled out."""
    event, signs = scene(rng), rng.sample(SIGNS, 7)
    chain, unrelated = signs[:4], signs[4:]
    rules = [f"Whenever {cause}, {effect} as well." for cause, effect in itertools.pairwise(chain)]
    # What is said of the other signs neither follows nor is ruled out: their causes are not known to hold.
    stray = f"Whenever {unrelated[0]}, {unrelated[1]} as well."
    if rng.random() < 0.5:
        fact, right, wrong = f"On its eve it is certain that {chain[0]}.", chain[3], unrelated
        question, way = "must be so", f"{chain[0]}, so {chain[1]}, so {chain[2]}, so {chain[3]}"
    else:
        fact, right, wrong = f"On its eve it is not the case that {chain[3]}.", chain[0], unrelated
        question = "cannot be so"
        way = "the last of the chain is not so, so none of those before it can be: not " + ", not ".join(
            chain[2::-1]
        )
    return Problem(
        scene=event,
        premises=(*rules, fact),
        beside=(stray,),
        question=f"On the eve of {event}, which of these {question}, by what the text says?",
        right=right,
        wrong=tuple(wrong),
        working=f"By the rules, {way}.",
    )


def _exclusion(rng: random.Random) -> Problem:
    """Four people, four things, one each; clues that leave one way only."""
    event, names, things = scene(rng), people(4, rng), rng.sample(lists.OBJECTS, 4)
    truth = rng.sample(things, 4)
    facts = [
        (name, thing) for name, own in zip(names, truth, strict=True) for thing in things if thing != own
    ]
    rng.shuffle(facts)
    needed = list(facts)
    for fact in facts:  # each clue that is left out must be missed
        fewer = [other for other in needed if other != fact]
        if len(_ways(names, things, fewer)) == 1:
            needed = fewer
    barred = {name: [f"the {thing}" for who, thing in needed if who == name] for name in names}
    clues = [f"{name} did not bring {' or '.join(bar)}." for name, bar in barred.items() if bar]
    # Someone ruled out of three things has the fourth: no inference over the others.
    asked = rng.choice([number for number, name in enumerate(names) if len(barred[name]) < 3])
    listed = join_names([f"the {thing}" for thing in things])
    return Problem(
        scene=event,
        premises=(
            f"{join_names(sorted(names))} each brought one of four things: {listed}.",
            *clues,
        ),
        question=f"What did {names[asked]} bring to {event}, when no two of the four brought the same?",
        right=f"the {truth[asked]}",
        wrong=tuple(f"the {thing}" for thing in things if thing != truth[asked]),
        working="Only one way is left: "
        + ", ".join(f"{name} brought the {own}" for name, own in zip(names, truth, strict=True))
        + ".",
    )


def _ways(names: list[str], things: list[str], barred: list[tuple[str, str]]) -> list[tuple[str, ...]]:
    """The ways to give each person one thing that no clue bars."""
    return [
        way
        for way in itertools.permutations(things)
        if not any(pair in barred for pair in zip(names, way, strict=True))
    ]


LOGIC: tuple[Maker, ...] = (_order, _conditions, _exclusion)
"""Kinds of inference."""
