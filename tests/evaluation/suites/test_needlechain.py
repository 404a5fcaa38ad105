"""NeedleChain: salaries worked out from nothing but the sentences, in exact fractions."""

import random
import re
from fractions import Fraction

import pytest

from longspan.evaluation.suites import needlechain
from longspan.evaluation.task import Puzzle, Room

TIMES = {
    "twice as much as": Fraction(2),
    "half as much as": Fraction(1, 2),
    "the same salary as": Fraction(1),
}


def make(name: str, seed: int, tokens: int = 3000) -> Puzzle:
    return needlechain.TASKS[name].make(
        random.Random(seed), Room(tokens=tokens, count=lambda text: len(text) // 4 + 1)
    )


def salaries(context: str) -> tuple[dict[str, Fraction], list[str]]:
    """Salary of each person, and the persons in the order of the sentences."""
    head, *lines = context.split("\n")
    assert head.startswith(f"There are {len(lines)} workers")
    known, open_lines, order = dict[str, Fraction](), list[tuple[str, str, str]](), list[str]()
    for line in lines:
        if given := re.fullmatch(r"(.+) received \$(\d+) last week\.", line):
            known[given[1]] = Fraction(int(given[2]))
            order.append(given[1])
        else:
            match = re.fullmatch(
                r"(.+) earns (twice as much as|half as much as|the same salary as) (.+)\.", line
            )
            assert match is not None, line
            open_lines.append((match[1], match[2], match[3]))
            order.append(match[1])
    while open_lines:
        solved = [(name, known[other] * TIMES[way]) for name, way, other in open_lines if other in known]
        assert solved, "a chain without a start"
        known.update(solved)
        open_lines = [line for line in open_lines if line[0] not in known]
    return known, order


@pytest.mark.parametrize("name", sorted(needlechain.TASKS))
def test_sentences_alone_give_the_answer(name: str) -> None:
    for seed in range(4):
        puzzle = make(name, seed)
        assert puzzle.context is not None
        known, order = salaries(puzzle.context)
        assert len(known) == len(order) > 50 and all(salary.denominator == 1 for salary in known.values())
        if name.endswith("total"):
            assert int(puzzle.references[0]) == sum(known.values())
        else:
            asked = puzzle.question.split("How much salary did ")[1].removesuffix(" get?")
            assert int(puzzle.references[0]) == known[asked]
            if not name.startswith("parallel"):
                depends = re.findall(r" as (\S+ \S+)\.$", puzzle.context, re.MULTILINE)
                assert len(set(depends)) == len(order) - 1 and asked not in depends, "all others are needed"


def test_orders_are_what_they_are_called() -> None:
    for name, place in (("forward_last", -1), ("backward_last", 0)):
        puzzle = make(name, 1)
        assert puzzle.context is not None
        _, order = salaries(puzzle.context)
        assert order[place] in puzzle.question
    chaotic = make("chaotic_last", 1).context
    assert chaotic is not None and "received" not in chaotic.split("\n")[1] + chaotic.split("\n")[-1]


def test_numbers_stay_readable_at_great_lengths_and_names_suffice() -> None:
    puzzle = make("chaotic_total", 2, tokens=131_072)
    assert puzzle.context is not None
    known, order = salaries(puzzle.context)
    assert len(order) > 8000 and max(known.values()) <= 99 * 64 * 64 and min(known.values()) >= 11
