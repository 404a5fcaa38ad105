"""LongReason: solvers that know only the passages find the right option."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable

import pytest

from longspan.evaluation.suites.longreason import LOGIC, READING, SUMS, TASKS, last_letter, reasoning
from longspan.evaluation.task import Puzzle, Room

ROOM = Room(tokens=4000, count=lambda text: len(text) // 4 + 1)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


def number(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    assert len(found) == 1, (pattern, found)
    return int(found[0])


def stall(text: str, question: str) -> str:
    crates, each = number(r"brought (\d+) crates", text), number(r"there were (\d+)", text)
    left = crates * each - number(r"had sold (\d+)", text) - number(r"ruined (\d+)", text)
    return str(left * number(r"bought for (\d+)", text))


def ages(text: str, question: str) -> str:
    who, years = re.findall(r"(\w+) was (\d+) years old on", text)[0]
    known = {who: int(years)}
    factors = {"twice": 2, "three times": 3, "four times": 4}
    rules = re.findall(
        r"(\w+) was (twice|three times|four times|\d+ years older|\d+ years younger) (?:as old as|than) (\w+)",
        text,
    )
    for _ in rules:
        for person, how, other in rules:
            if other in known:
                change = int(how.split()[0]) if how[0].isdigit() else 0
                known[person] = (
                    known[other] * factors.get(how, 1) + (-change if "younger" in how else change)
                )  # fmt: skip
    asked = re.search(r"old was (\w+) (\d+) years after", question)
    assert asked is not None
    return str(known[asked[1]] + int(asked[2]))


def journey(text: str, question: str) -> str:
    whole = number(r"walked (\d+) miles", text)
    whole += number(r"rode for (\d+) hours", text) * number(r"went (\d+) miles", text)
    return str(whole + number(r"led it at (\d+)", text) * number(r"arrive (\d+) hours", text))


def wages(text: str, question: str) -> str:
    earned = number(r"for (\d+) hours on", text) * number(r"paid (\d+) crowns\.", text)
    return str(earned * number(r"hired for (\d+) days", text) - number(r"paid back (\d+)", text))


def tables(text: str, question: str) -> str:
    came = number(r"laid on (\d+)", text) * number(r"had (\d+) seats", text) - number(r", (\d+) stayed", text)
    return str(came * number(r"gave (\d+)", text) + number(r"counted (\d+)", text))


def order(text: str, question: str) -> str:
    after = {}
    for one, how, other in re.findall(r"(\w+) came in (before|after) (\w+), and nobody", text):
        earlier, later = (one, other) if how == "before" else (other, one)
        after[earlier] = later
    name = next(iter(set(after) - set(after.values())))
    row = [name]
    while row[-1] in after:
        row.append(after[row[-1]])
    return row[["first", "second", "third", "fourth", "fifth"].index(question.split()[4])]


def conditions(text: str, question: str) -> str:
    rules = dict(re.findall(r"Whenever ([^,]+), ([^.]+) as well", text))
    certain = re.search(r"it is certain that ([^.]+)\.", text)
    if certain:
        state = certain[1]
        while state in rules:
            state = rules[state]
        return state
    denied = re.search(r"not the case that ([^.]+)\.", text)
    assert denied is not None
    state, causes = denied[1], {effect: cause for cause, effect in rules.items()}
    while state in causes:
        state = causes[state]
    return state


def exclusion(text: str, question: str) -> str:
    found = re.search(r"\. ([A-Z][^.]+) each brought one of four things: ([^.]+)\.", text)
    assert found is not None
    names, things = (re.split(r", | and ", part) for part in found.groups())
    barred = {
        (name, thing) for name, bar in re.findall(r"(\w+) did not bring ([^.]+)\.", text) for thing in bar.split(" or ")
    }  # fmt: skip
    ways = [
        dict(zip(names, way, strict=True))
        for way in itertools.permutations(things)
        if not barred & set(zip(names, way, strict=True))
    ]
    assert len(ways) == 1
    return ways[0][question.split()[3]]


def hands(text: str, question: str) -> str:
    thing = re.search(r"Question: (The .+?) changed", question)
    times = re.search(r"after the (second|third|fourth)", question)
    assert thing is not None and times is not None
    passed = dict(re.findall(rf"(\w+) handed {thing[1].lower()} to (\w+)", text))
    holder = re.findall(r"(\w+) was the one who first brought", text)[0]
    for _ in range(["second", "third", "fourth"].index(times[1]) + 2):
        holder = passed[holder]
    return holder


def days(text: str, question: str) -> str:
    start, day = re.findall(r"\. (The [^.]+?) was held on a (\w+day)", text)[0]
    known = {start.lower(): DAYS.index(day)}
    rules = re.findall(r"\. (The [^.]+?) was held (two|three) days (after|before) ([^.]+)\.", text)
    for _ in rules:
        for part, count, way, other in rules:
            if other in known:
                gap = {"two": 2, "three": 3}[count] * (1 if way == "after" else -1)
                known[part.lower()] = (known[other] + gap) % 7
    asked = re.search(r"week was (.+?) held at", question)
    assert asked is not None
    return DAYS[known[asked[1]]]


def guests(text: str, question: str) -> str:
    coat = re.findall(r"whose coat was (\w+)", text)[0]
    house = dict(re.findall(r"The guest in the (\w+) coat slept at ([^.]+)\.", text))[coat]
    return dict(re.findall(r"Whoever slept at ([^.]+) had come ([^.]+)\.", text))[house]


SOLVERS: dict[str, Callable[[str, str], str]] = {
    solver.__name__: solver
    for solver in (stall, ages, journey, wages, tables, order, conditions, exclusion, hands, days, guests)
}


def options(puzzle: Puzzle) -> dict[str, str]:
    return dict(re.findall(r"^\(([A-D])\) (.+)$", puzzle.question, flags=re.MULTILINE))


@pytest.mark.parametrize("kind", [*SUMS, *LOGIC, *READING], ids=lambda kind: kind.__name__[1:])
def test_a_solver_that_reads_the_passages_finds_the_letter(kind: Callable[..., object]) -> None:
    solve = SOLVERS[kind.__name__[1:]]
    make = reasoning([kind], steps=False)  # type: ignore[list-item]
    for seed in range(60):
        puzzle = make(random.Random(seed), ROOM)
        asked = next(line for line in puzzle.question.split("\n") if line.startswith("Question: "))
        found = solve("\n".join(puzzle.needles), asked)
        offered = options(puzzle)
        assert len(set(offered.values())) == 4
        assert [letter for letter, option in offered.items() if option == found] == [puzzle.references[0]]
        assert solve("\n".join(puzzle.evidence or ()), asked) == found


def test_the_size_of_a_number_does_not_tell_the_right_option() -> None:
    ranks: Counter[int] = Counter()
    for seed in range(400):
        puzzle = TASKS["math"].make(random.Random(seed), ROOM)
        numbers = {letter: int(option) for letter, option in options(puzzle).items()}
        ranks[sorted(numbers.values()).index(numbers[puzzle.references[0]])] += 1
    assert all(0.12 * 400 < ranks[rank] < 0.4 * 400 for rank in range(4)), ranks


def test_every_passage_names_the_matter_of_the_question() -> None:
    for name, task in TASKS.items():
        puzzle = task.make(random.Random(3), ROOM)
        matter = re.search(r"the (?:\w+|harvest supper|market day) of [A-Z]\w+", puzzle.question)
        assert matter is not None, name
        assert all(matter[0] in passage for passage in puzzle.needles)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("A man came first. The answer is (B).", 1.0),
        ("The answer is B", 1.0),
        ("The answer is **(B)**.", 1.0),
        ("The answer is (A). No, wait. The answer is (B).", 1.0),
        ("The answer is (B). On reflection, the answer is (C).", 0.0),
        ("(B)", 0.0),
        ("The answer is Basil.", 0.0),
    ],
)
def test_the_last_settled_letter_counts(text: str, score: float) -> None:
    assert last_letter(text, ("B",), {}) == score
