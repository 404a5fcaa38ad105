"""HashHop: a solver that reads the lines, and what the metric lets pass."""

import random
import re

import pytest

from longspan.evaluation.suites import hashhop
from longspan.evaluation.suites.hashhop import hashes_match
from longspan.evaluation.task import Room

FIRST, SECOND, THIRD = "AbcdefghIjklmnop", "QrstuvwxYzabcdef", "GhijklmnOpqrstuv"


@pytest.mark.parametrize("name", sorted(hashhop.TASKS))
def test_following_the_lines_gives_the_answer(name: str) -> None:
    hops, chain = int(name.split("_")[1]), name.endswith("_chain")
    for seed in range(5):
        puzzle = hashhop.TASKS[name].make(
            random.Random(seed), Room(tokens=2000, count=lambda text: len(text) // 3 + 1)
        )
        assert puzzle.context is not None
        following = dict(re.findall(r"^(\w{16}) = ('?\w{16}'?)$", puzzle.context, re.MULTILINE))
        assert len(following) == len(puzzle.context.splitlines()), "no first hash stands twice"
        place, path = puzzle.question.split("Start at ")[1][:16], []
        while "'" not in place:
            place = following[place]
            path.append(place.strip("'"))
        assert len(path) == hops and path[-1] != puzzle.question[9:25]
        assert puzzle.answer == (" = ".join(path) if chain else path[-1])


def test_metric_wants_every_hash_and_no_other() -> None:
    wanted = (f"{SECOND} = {THIRD}",)
    assert hashes_match(f"{SECOND} = '{THIRD}'", wanted, {}) == {"score": 1.0, "final": 1.0}
    assert hashes_match(f"The chain:\n{SECOND} -> {THIRD}.\n{FIRST}", wanted, {})["score"] == 1.0
    assert hashes_match(THIRD, wanted, {}) == {"score": 0.0, "final": 1.0}
    assert hashes_match(f"{FIRST} = {THIRD}", wanted, {}) == {"score": 0.0, "final": 1.0}
    assert hashes_match(THIRD.lower(), (THIRD,), {}) == {"score": 0.0, "final": 0.0}
    assert hashes_match("", (THIRD,), {}) == {"score": 0.0, "final": 0.0}


def test_too_small_rooms_are_refused() -> None:
    with pytest.raises(ValueError, match="ask for"):
        hashhop.TASKS["hops_6"].make(random.Random(0), Room(tokens=150, count=len))
