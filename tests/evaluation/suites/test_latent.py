"""Latent retrieval: no word in common, one person only, knowledge in between."""

from __future__ import annotations

import random
import re

import pytest

from longspan.evaluation.suites.latent import NUM_DECOYS, TASKS
from longspan.evaluation.suites.latent.associations import KINDS, Kind
from longspan.evaluation.task import Puzzle, Room

ROOM = Room(tokens=2000, count=lambda text: len(text) // 4 + 1)
FUNCTION_WORDS = set(
    "a all an and as at be but by can each ever every for from goes has have in into is it its no not of on one only or out "
    "that the their them then they this to under up was were when which who with over does after before around between".split()
)


def stems(text: str) -> set[str]:
    """The first five letters of the words that mean something."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    return {word[:5] for word in words if word not in FUNCTION_WORDS and len(word) > 1}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_needle_and_question_share_no_word(kind: Kind) -> None:
    for tie in kind.ties:
        asked = stems(kind.question.format(meant=tie.meant))
        asked |= stems(kind.question_far.format(meant=tie.meant_far)) if tie.meant_far else set()
        for wording in (*kind.person_first, *kind.person_last):
            assert not stems(wording.format(name="", told=tie.told)) & asked, (tie, wording)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_no_two_ties_mean_or_tell_the_same(kind: Kind) -> None:
    for values in ([tie.told for tie in kind.ties], [tie.meant for tie in kind.ties]):
        assert len(set(values)) == len(values) > NUM_DECOYS
    far = [tie.meant_far for tie in kind.ties if tie.meant_far]
    assert len(far) in (0, len(kind.ties)) and len(set(far)) == len(far)


def knows(puzzle: Puzzle, kind: Kind) -> list[str]:
    """The names that a reader who knows the ties finds."""
    asked = next(
        tie
        for tie in kind.ties
        if puzzle.question.startswith(
            (
                kind.question.format(meant=tie.meant),
                kind.question_far.format(meant=tie.meant_far) if tie.meant_far else "\0",
            )
        )
    )
    found = []
    for sentence in puzzle.needles:
        if asked.told in sentence:
            found += re.findall(r"([A-Z][a-z]+ [A-Z][a-z]+)(?:'s|\b)", sentence.replace(asked.told, "…"))
    return found


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"plain"}))
def test_who_knows_the_association_finds_one_name(name: str) -> None:
    kind = KINDS[name.removesuffix("_two_steps")]
    for seed in range(80):
        puzzle = TASKS[name].make(random.Random(seed), ROOM)
        assert len(puzzle.needles) == NUM_DECOYS + 1
        names = [found for found in knows(puzzle, kind) if not found.startswith(("Every ", "As "))]
        assert names == [puzzle.references[0]]


def test_the_name_stands_before_and_after_what_is_told() -> None:
    before = 0
    for seed in range(200):
        puzzle = TASKS["landmarks"].make(random.Random(seed), ROOM)
        sentence = (puzzle.evidence or ("",))[0]
        told = next(tie.told for tie in KINDS["landmarks"].ties if tie.told in sentence)
        before += sentence.index(puzzle.references[0]) < sentence.index(told)
    assert 70 < before < 130


def test_plain_has_one_needle_of_any_kind() -> None:
    made = [TASKS["plain"].make(random.Random(seed), ROOM) for seed in range(60)]
    assert all(len(puzzle.needles) == 1 for puzzle in made)
    assert len({puzzle.question.split()[5] for puzzle in made}) > 4
