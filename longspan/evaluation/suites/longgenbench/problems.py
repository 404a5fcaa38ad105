"""Word problems and questions with four options, from patterns."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from longspan.evaluation.suites import _fact_lists as lists

LETTERS = "ABCD"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A question, how it is worked out, and its answer."""

    text: str
    steps: str
    answer: str


def word_problem(rng: random.Random) -> Problem:
    """A problem of two or three steps with positive whole numbers."""
    name, other = rng.sample(lists.FIRST_NAMES, 2)
    food, thing = rng.choice(lists.FOODS), rng.choice(lists.OBJECTS)
    a, b, c, d = (rng.randint(3, 48) for _ in range(4))
    each, price = rng.randint(2, 12), rng.randint(2, 19)
    gone = rng.randint(1, a - 1)
    big = a * each + rng.randint(5, 60)
    return rng.choice(
        [
            Problem(
                text=f"{name} fills {a} crates with {each} sacks of {food} each and keeps {b} more sacks loose. How many "
                f"sacks does {name} have?",
                steps=f"{a} * {each} = {a * each}, {a * each} + {b} = {a * each + b}.",
                answer=str(a * each + b),
            ),
            Problem(
                text=f"A shop has {big} units of {food}. On each of {each} days it sells {a}. How many units are left?",
                steps=f"{a} * {each} = {a * each}, {big} - {a * each} = {big - a * each}.",
                answer=str(big - a * each),
            ),
            Problem(
                text=f"{name} buys {a} baskets of {food} at {price} crowns each and {b} at {each} crowns each. How many crowns "
                f"does {name} pay?",
                steps=f"{a} * {price} = {a * price}, {b} * {each} = {b * each}, together {a * price + b * each}.",
                answer=str(a * price + b * each),
            ),
            Problem(
                text=f"{name} walks {a} kilometres on Monday, {b} more than that on Tuesday, and on Wednesday as far as on the "
                "other two days together. How many kilometres are that in all?",
                steps=f"{a} + {b} = {a + b}, {a} + {a + b} = {2 * a + b}, 2 * {2 * a + b} = {2 * (2 * a + b)}.",
                answer=str(2 * (2 * a + b)),
            ),
            Problem(
                text=f"{name} is {c} years older than {other}, who is {d}. How old will {name} be in {each} years?",
                steps=f"{d} + {c} = {d + c}, {d + c} + {each} = {d + c + each}.",
                answer=str(d + c + each),
            ),
            Problem(
                text=f"{each} friends share {each * a} portions of {food} equally. {name} gives {gone} of a share away. "
                f"How many portions does {name} keep?",
                steps=f"{each * a} / {each} = {a}, {a} - {gone} = {a - gone}.",
                answer=str(a - gone),
            ),
            Problem(
                text=f"A {thing} costs {a * each} crowns. {name} saves {a} crowns a week and already has {a * 2}. After how many "
                f"weeks can {name} pay for {each} of them?",
                steps=f"{each} * {a * each} = {each * a * each}, {each * a * each} - {a * 2} = {each * a * each - a * 2}, "
                f"{each * a * each - a * 2} / {a} = {each * each - 2}.",
                answer=str(each * each - 2),
            ),
        ]
    )


def choice_problem(rng: random.Random) -> Problem:
    """A question with four options, one of them right."""
    divisor, day, far = rng.randint(3, 13), rng.randrange(7), rng.randint(8, 60)
    words = rng.sample(lists.OBJECTS, 4)
    first, step = rng.randint(2, 40), rng.randint(3, 25)
    numbers = rng.sample(range(1000, 9999), 4)
    odd = [
        divisor * rng.randint(20, 90) + rest for rest in rng.sample(range(1, divisor), min(3, divisor - 1))
    ]
    week = [
        lists.DAYS[(day + far) % 7],
        *(lists.DAYS[(day + far + gap) % 7] for gap in rng.sample(range(1, 7), 3)),
    ]
    last, largest = max(words), max(numbers)
    cases: list[tuple[str, Sequence[object]]] = [
        (f"Which day of the week is {far} days after a {lists.DAYS[day]}?", week),
        (
            "Which of these words comes last in the alphabet?",
            [last, *(word for word in words if word != last)],
        ),
        ("Which of these numbers is the largest?", [largest, *(one for one in numbers if one != largest)]),
        (
            f"Which number comes next: {first}, {first + step}, {first + 2 * step}, {first + 3 * step}?",
            [first + 4 * step + gap for gap in (0, 1, -2, step)],
        ),
    ]
    if len(odd) == 3:
        cases.append(
            (f"Which of these numbers can be divided by {divisor}?", [divisor * rng.randint(20, 120), *odd])
        )
    text, options = rng.choice(cases)
    order = rng.sample(range(4), 4)
    shown = " ".join(f"({letter}) {options[place]}" for letter, place in zip(LETTERS, order, strict=True))
    return Problem(text=f"{text} {shown}", steps="", answer=LETTERS[order.index(0)])
