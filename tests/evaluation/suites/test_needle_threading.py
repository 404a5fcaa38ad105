"""Needle Threading: a solver that parses the JSON object and follows values."""

import json
import random
import re
from collections.abc import Mapping

import pytest

from longspan.evaluation.suites import needle_threading
from longspan.evaluation.task import Puzzle, Room

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


def make(name: str, seed: int) -> Puzzle:
    room = Room(tokens=4000, count=lambda text: len(text) // 3 + 1)
    return needle_threading.TASKS[name].make(random.Random(seed), room)


def pairs(puzzle: Puzzle) -> dict[str, list[str]]:
    """Values of each key, in order of appearance."""
    assert puzzle.context is not None
    found: dict[str, list[str]] = {}
    for key, value in json.loads(puzzle.context, object_pairs_hook=list):
        found.setdefault(key, []).append(value)
    return found


def ends(key: str, table: Mapping[str, list[str]], steps: int = 0) -> list[tuple[int, str]]:
    """Number of steps and value at every end that a key leads to."""
    if key not in table:
        return [(steps, key)]
    return [end for value in table[key] for end in ends(value, table, steps + 1)]


@pytest.mark.parametrize("seed", range(4))
def test_needles_are_the_values_of_their_keys(seed: int) -> None:
    for name, number in (("single_needle", 1), ("multiple_needles", 10)):
        puzzle = make(name, seed)
        asked = re.findall(UUID, puzzle.question)
        assert [pairs(puzzle)[key] for key in asked] == [[value] for value in puzzle.references]
        assert len(asked) == number
    puzzle = make("conditional_needles", seed)
    mark = re.search(r'character "(.)"', puzzle.question)
    assert mark is not None
    marked = {values[0] for key, values in pairs(puzzle).items() if mark[1] in key}
    assert marked == set(puzzle.references) and len(marked) == 10


@pytest.mark.parametrize("seed", range(4))
def test_threads_end_where_the_answer_says(seed: int) -> None:
    for name in ("thread_forward", "thread_backward", "thread_random"):
        puzzle = make(name, seed)
        (start,) = re.findall(UUID, puzzle.question)
        assert ends(start, pairs(puzzle)) == [(5, puzzle.answer)]
        assert puzzle.context is not None and puzzle.evidence is not None
        places = [puzzle.context.index(piece) for piece in puzzle.evidence]
        if name != "thread_random":
            assert places == sorted(places, reverse=name == "thread_backward")
    puzzle = make("multi_thread", seed)
    starts = re.findall(UUID, puzzle.question)
    assert [ends(start, pairs(puzzle)) for start in starts] == [[(3, end)] for end in puzzle.references]


@pytest.mark.parametrize("seed", range(4))
def test_branches_end_where_the_answer_says(seed: int) -> None:
    puzzle = make("branched_thread", seed)
    (start,) = re.findall(UUID, puzzle.question)
    found = ends(start, pairs(puzzle))
    assert {end for _, end in found} == set(puzzle.references)
    assert sorted(steps for steps, _ in found) == [1, 2, 3, 3] and "the 4 final values" in puzzle.question
    longest = make("branched_longest", seed)
    (start,) = re.findall(UUID, longest.question)
    assert [end for end in ends(start, pairs(longest)) if end[0] == 3] == [(3, longest.answer)]
