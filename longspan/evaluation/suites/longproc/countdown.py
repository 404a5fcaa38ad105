"""Countdown: reach a target from four numbers, the depth-first search written out line by line."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from longspan.evaluation.metrics import ordering_steps
from longspan.evaluation.suites.longproc.blocks import filled
from longspan.evaluation.task import Puzzle, Room

LARGEST = 2000
LEAST_TOKENS = 1600
MOST_OUTPUT_TOKENS = 8000
LINE_TOKENS = 30
INTRO = "These are countdown problems: four numbers, a target, and how it is reached."
RULES = (
    "Each of the countdown problems above gives four numbers and a target. Use each number exactly once, with +, -, * and /, to reach the "
    f"target. Results on the way are positive whole numbers of at most {LARGEST}. Search depth first: pick pairs of numbers in "
    "their order, and for each pair try, the larger number first, +, -, * and /; drop a branch that fails and go back."
)
QUESTION = (
    "One problem in the text above is not solved yet. Solve it. Write the whole search as in the example, after the line '# Search "
    "Procedure', and then the three equations, each on its own line, between <Solution> and </Solution>."
)

Step = tuple[str, int | None, tuple[str, ...]]


def search(numbers: Sequence[int], target: int, depth: int = 0, path: tuple[str, ...] = ()) -> Iterator[Step]:
    """Lines of the depth-first search, without an end at the target: (line, last number at a leaf or None, equations)."""
    pairs = list(combinations(range(len(numbers)), 2))
    for one, other in pairs:
        first, second = sorted((numbers[one], numbers[other]), reverse=True)
        rest = [number for place, number in enumerate(numbers) if place not in (one, other)]
        lead = "  " * (2 * depth)
        if rest:
            yield f"{lead}|- Pick two numbers ({first}, {second}) (numbers left: {rest}).", None, path
        for sign in "+-*/":
            shown, result = _result(first, sign, second)
            line = f"{lead}{'  ' if rest else ''}|- Try {first} {sign} {second} = {shown}."
            if result is None:
                yield f"{line} Not allowed, drop this branch.", None, path
                continue
            steps = (*path, f"{first} {sign} {second} = {result}")
            if rest:
                numbers_now = [result, *rest]
                yield f"{line} Current number set: {numbers_now}, target: {target}.", None, steps
                yield from search(numbers_now, target, depth + 1, steps)
            elif result == target:
                yield f"{line} {result} = {target}, target found.", result, steps
            else:
                yield f"{line} {result} != {target}, drop this branch.", result, steps


def _result(first: int, sign: str, second: int) -> tuple[str, int | None]:
    if sign == "/":
        whole = first % second == 0
        return (str(first // second), first // second) if whole else (f"{first / second:.2f}", None)
    value = {"+": first + second, "-": first - second, "*": first * second}[sign]
    return str(value), value if 0 < value <= LARGEST else None


def trace(numbers: Sequence[int], target: int) -> tuple[str, tuple[str, ...]]:
    """The whole search for a target that can be reached, and the equations that reach it."""
    lines = [f"Initial number set: {list(numbers)}, target: {target}."]
    for line, value, steps in search(numbers, target):
        lines.append(line)
        if value == target:
            lines.append("Now we have found the target.")
            return "\n".join(lines), steps
    raise AssertionError("the target was drawn from this search")


def draw(rng: random.Random, most_lines: int) -> tuple[list[int], int]:
    """Four numbers, and a target that the search finds within `most_lines` lines, the later the likelier."""
    while True:
        numbers = [rng.randint(2, 60) for _ in range(4)]
        firsts: dict[int, int] = {}
        for place, (_, value, _) in enumerate(search(numbers, 0), start=1):
            if place > most_lines:
                break
            if value is not None and value > 9:
                firsts.setdefault(value, place)
        late = [value for value, place in firsts.items() if place > 0.4 * most_lines]
        if late:
            return numbers, rng.choice(late)


def _solved(numbers: Sequence[int], target: int, steps: Sequence[str]) -> str:
    return f"Numbers {', '.join(map(str, numbers))}, target {target}: {'; '.join(steps)}."


def _short_problems(rng: random.Random) -> Iterator[str]:
    while True:
        numbers = [rng.randint(2, 60) for _ in range(4)]
        current, steps = list(numbers), list[str]()
        while len(current) > 1:
            first, second = sorted(rng.sample(current, 2), reverse=True)
            results = [(sign, _result(first, sign, second)[1]) for sign in "+-*/"]
            sign, result = rng.choice([(sign, result) for sign, result in results if result is not None])
            assert result is not None
            current.remove(first)
            current.remove(second)
            current.append(result)
            steps.append(f"{first} {sign} {second} = {result}")
        yield _solved(numbers, current[0], steps)


def _answer(numbers: Sequence[int], target: int) -> str:
    lines, steps = trace(numbers, target)
    return f"{ordering_steps.SEARCH}\n{lines}\n<Solution>\n" + "\n".join(steps) + "\n</Solution>"


def countdown(rng: random.Random, room: Room) -> Puzzle:
    """One problem without a solution among solved ones, the search of one of which is shown."""
    if room.tokens < LEAST_TOKENS:
        raise ValueError(
            f"{room.tokens} tokens are too few for a countdown and its search; ask for 2048 or more"
        )
    output = min(int(0.4 * room.tokens), MOST_OUTPUT_TOKENS)
    most_lines = output // LINE_TOKENS
    while True:
        numbers, target = draw(rng, most_lines)
        answer = _answer(numbers, target)
        if room.count(answer) < output - 16:
            break
        most_lines = max(12, int(most_lines * 0.9))
    shown_numbers, shown_target = draw(rng, 14)
    example = _example(shown_numbers, shown_target)
    asked = f"Numbers {', '.join(map(str, numbers))}, target {target}: not solved yet."
    question = f"{RULES}\n{example}\n{QUESTION}"
    left = room.left(INTRO, asked, question, max_new_tokens=output)
    lines = room.scatter([asked], filled(room, _short_problems(rng), left), rng)
    return Puzzle(
        needles=(),
        context="\n".join((INTRO, *lines)),
        evidence=(asked,),
        question=question,
        references=(answer,),
        answer=answer,
        max_new_tokens=output,
        details={"nums": numbers, "target": target},
    )


def _example(numbers: Sequence[int], target: int) -> str:
    return f"Example: numbers {', '.join(map(str, numbers))}, target {target}.\n{_answer(numbers, target)}"


def countdown_score(
    prediction: str, references: Sequence[str], details: Mapping[str, Any]
) -> dict[str, float]:
    """`countdown_fixed`, with the official partial score as "partial_official"."""
    official = ordering_steps.countdown(prediction, references, details)
    return {
        **ordering_steps.countdown_fixed(prediction, references, details),
        "partial_official": official["partial"],
    }
