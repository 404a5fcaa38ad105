"""A reasoning problem, and how each of its premises becomes a passage."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longspan.evaluation.suites import _fact_lists as lists

__all__ = ["Maker", "Problem", "join_names", "passages_of", "people", "scene"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A short reasoning question.

    Attributes:
        scene: what all passages are about; every one names it, so that they can be told from the text around them.
        premises: one sentence or more for each passage; all are needed.
        beside: premises of the same matter that the question does not need.
        question: over all premises.
        right, wrong: the options.
        working: the way to the answer, in words.
    """

    scene: str
    premises: tuple[str, ...]
    question: str
    right: str
    wrong: tuple[str, ...]
    working: str
    beside: tuple[str, ...] = ()


Maker = Callable[[random.Random], Problem]

OPENINGS = (
    "People still like to talk about {scene}.",
    "Much has been written about {scene}, and most of it is true.",
    "Here is one more thing to be said about {scene}.",
    "A visitor once asked how things stood with {scene}.",
    "The newspaper gave half a column to {scene}.",
    "An old letter mentions {scene} in passing.",
    "Nobody who was there has forgotten {scene}.",
    "The town's chronicle returns to {scene} more than once.",
    "There is a note about {scene} among the parish papers.",
    "Those who know {scene} will remember this.",
    "A schoolbook of the region has a page on {scene}.",
    "Let us come back to {scene} for a moment.",
)
CLOSINGS = (
    "The weather had little to do with it.",
    "So much was never in doubt.",
    "Everybody agreed on this, which was rare.",
    "The clerk wrote it down and blotted the page.",
    "It was said at the time and it was never denied.",
    "The rest of the evening was spent on other subjects.",
    "Whoever heard it nodded and went home.",
    "That is all that this source has to say.",
    "It did not seem important then.",
    "A dog barked in the yard, and the talk moved on.",
    "The ink has faded, but the words can be read.",
    "Later accounts repeat it without a change.",
)
MATTERS = "fair,regatta,auction,concert,excursion,harvest supper,exhibition,tournament,pageant,market day,jubilee,pilgrimage".split(
    ","
)


def scene(rng: random.Random) -> str:
    """Something to be talked about, with an invented place: "the fair of Ravenford"."""
    place = rng.choice(lists.PLACE_HEADS) + rng.choice(lists.PLACE_TAILS)
    return f"the {rng.choice(MATTERS)} of {place}"


def people(count: int, rng: random.Random) -> list[str]:
    """`count` different first names."""
    return rng.sample(lists.FIRST_NAMES, count)


def join_names(names: Sequence[str]) -> str:
    """ "Ada, Basil and Cora"."""
    return f"{', '.join(names[:-1])} and {names[-1]}"


def passages_of(problem: Problem, rng: random.Random) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Each premise between an opening that names the scene and a closing.

    Returns:
        All passages, in an order that says nothing, and those that the question needs.
    """
    told = (*problem.premises, *problem.beside)
    openings, closings = rng.sample(OPENINGS, len(told)), rng.sample(CLOSINGS, len(told))
    passages = [
        f"{opening.format(scene=problem.scene)} {premise} {closing}"
        for opening, premise, closing in zip(openings, told, closings, strict=True)
    ]
    needed = tuple(passages[: len(problem.premises)])
    rng.shuffle(passages)
    return tuple(passages), needed
