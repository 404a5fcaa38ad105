"""Latent retrieval: needle and question share no word; only common knowledge leads from one to the other.

A sentence says that somebody sees the Colosseum from bed; asked is who lives in Rome. Searching for the question's words
finds nothing. Other sentences say the same of other people and things, so that a sentence that looks out of place is not yet
the answer.

Paper: NoLiMa: Long-Context Evaluation Beyond Literal Matching (Modarressi et al., 2025), whose method this is; all needles,
questions and associations are our own.
Scored by whether the answer holds the person's name.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from longspan.evaluation.suites import _fact_lists as lists
from longspan.evaluation.suites.latent.associations import KINDS, Kind, Tie
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "latent",
    "title": "NoLiMa: Long-Context Evaluation Beyond Literal Matching",
    "year": 2025,
    "version": 1,
    "metric": "share of samples whose answer holds the name, letter case ignored",
    "differs": [
        "all needles, questions and associations are our own: the original's are not free",
        "four decoys beside the needle, of the same kind and about other people (none in `plain`, as in the original's main "
        "setting)",
        "people have a first name and a surname",
        "the haystack is the caller's text, not shuffled snippets of books cleared of conflicting passages",
        "places are drawn or asked for, not swept over 26 depths",
        "no base score at a short length is computed; the original calls lengths effective at 85% of it",
    ],
    "paper_id": None,
    "lengths": "any",
    "needs": "nothing; the model must know the world a little",
    "licence": "generated here",
}

NUM_DECOYS = 4
ASK = "Answer with the full name only."


def latent(
    kinds: Sequence[Kind], *, decoys: int = NUM_DECOYS, far: bool = False
) -> Callable[[random.Random, Room], Puzzle]:
    """A maker of puzzles of one of the kinds; with `far`, the association takes one step more."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        kind = rng.choice(kinds)
        ties = rng.sample(kind.ties, decoys + 1)
        names = people(decoys + 1, rng)
        needles = [needle(kind, tie, name, rng) for tie, name in zip(ties, names, strict=True)]
        question = (
            kind.question_far.format(meant=ties[0].meant_far)
            if far
            else kind.question.format(meant=ties[0].meant)
        )
        evidence = needles[0]
        rng.shuffle(needles)
        return Puzzle(
            needles=tuple(needles),
            evidence=(evidence,),
            question=f"{question} {ASK}",
            references=(names[0],),
            answer=f"{names[0]}.",
            max_new_tokens=24,
        )

    return make


def needle(kind: Kind, tie: Tie, name: str, rng: random.Random) -> str:
    """A sentence that tells it of the person, named first or last."""
    return rng.choice(rng.choice((kind.person_first, kind.person_last))).format(name=name, told=tie.told)


def people(count: int, rng: random.Random) -> list[str]:
    """Full names, none of which shares a part with another."""
    firsts, surnames = rng.sample(lists.FIRST_NAMES, count), rng.sample(lists.SURNAMES, count)
    return [f"{first} {surname}" for first, surname in zip(firsts, surnames, strict=True)]


LABELS: dict[str, Any] = {"ability": "association", "diffusion": "high", "scope": "low"}

TASKS: dict[str, Task] = {
    "plain": Task(make=latent(list(KINDS.values()), decoys=0), **LABELS),
    **{name: Task(make=latent([kind]), **LABELS) for name, kind in KINDS.items()},
    "landmarks_two_steps": Task(make=latent([KINDS["landmarks"]], far=True), **LABELS),
}
