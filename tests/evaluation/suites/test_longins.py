"""LongIns: a teacher who solves every question anew finds the wrong answers, and no others."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any

import pytest

from longspan.evaluation.exams import PuzzleExam
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.registry import find_task
from longspan.evaluation.suites.longins import bracketed_f1
from longspan.evaluation.suites.longins.questions import GROUPS, KINDS, OPPOSITES
from longspan.evaluation.task import Sample
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer

PAIRS = [tuple(pair.split()) for pair in OPPOSITES]
OPPOSITE = {**dict(PAIRS), **{second: first for first, second in PAIRS}}
MONDAY = date(2024, 1, 1)
WEEK = [(MONDAY + timedelta(days=day)).strftime("%A") for day in range(7)]


def arithmetic(put: str) -> str:
    first, sign, second = put.split()
    return str({"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[sign](int(first), int(second)))


def letters(put: str) -> str:
    letter, text = put.split(" in ", 1)
    return str(len(re.findall(letter, text)))


def odd_one_out(put: str) -> str:
    shown = put.split(", ")
    (odd,) = (
        word
        for word in shown
        if all({word, other} - set(group) for group in GROUPS.values() for other in shown if other != word)
    )
    return odd


def membership(put: str) -> str:
    name, shown = put.split(": ")
    return str(len(set(shown.split(", ")) & set(GROUPS[name])))


def weekdays(put: str) -> str:
    day, later = put.split(", ")
    return (MONDAY + timedelta(days=WEEK.index(day) + int(later))).strftime("%A")


def clock(put: str) -> str:
    time, minutes = re.fullmatch(r"(\d\d:\d\d), (\d+) minutes", put).groups()
    return (datetime.fromisoformat(f"2024-01-01T{time}") + timedelta(minutes=int(minutes))).strftime("%H:%M")


def buyers(put: str) -> str:
    bought = {food: name for name, food in re.findall(r"(\w+) bought (\w+)\.", put)}
    return bought[re.findall(r"Who bought (\w+)\?", put)[0]]


def names(put: str) -> str:
    kind, text = put.split(": ", 1)
    person, place, ship = re.findall(r", (\w+ \w+) left (\w+) on board the (\w+)\.", text)[0]
    return {"person": person, "place": place, "ship": ship}[kind]


def inference(put: str) -> str:
    place, colour = re.findall(r"Every \w+ in (\w+) is (\w+) and nothing else", put)[0]
    where, asked = re.findall(r"is an? \w+ in (\w+)\. Is \w+ (\w+)\?", put)[0]
    return "unknown" if place != where else "yes" if asked == colour else "no"


SOLVERS: dict[str, Callable[[str], str]] = {
    "arithmetic": arithmetic,
    "opposites": lambda put: ", ".join(OPPOSITE[word] for word in put.split(", ")),
    "letters": letters,
    "sorting": lambda put: ", ".join(sorted(put.split(", "), key=int)),
    "odd one out": odd_one_out,
    "membership": membership,
    "weekdays": weekdays,
    "clock": clock,
    "buyers": buyers,
    "names": names,
    "inference": inference,
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ASSETS)


def build(mode: str, tokenizer: Any, seed: int, length: int = 4096) -> Sample:
    exam = find_task(f"longins/{mode}").exam
    assert isinstance(exam, PuzzleExam)
    return exam.build(
        length_tokens=length, depth=None, seed=seed, haystack=noise_haystack(), tokenizer=tokenizer
    )


def solve(sample: Sample) -> tuple[list[int], list[str]]:
    """Numbers of the wrong answers, and the kind of each question."""
    head, *lines = sample.context.split("\n")
    wrong, kinds = [], []
    shared = [kind for kind in KINDS if head.endswith(KINDS[kind].instruction)]
    for place, line in enumerate(lines, start=1):
        number, put, answer = re.fullmatch(r"\[(\d+)\] (.+) Answer: (.+)", line).groups()
        assert int(number) == place
        kind = (
            shared[0] if shared else next(kind for kind in KINDS if put.startswith(KINDS[kind].instruction))
        )
        question = put if shared else put.removeprefix(KINDS[kind].instruction + " ")
        kinds.append(kind)
        if SOLVERS[kind](question) != answer:
            wrong.append(place)
    return wrong, kinds


@pytest.mark.parametrize("mode", ["gist", "list", "limt"])
def test_the_wrong_answers_are_those_asked_for(mode: str, tokenizer: Any) -> None:
    met = set[str]()
    for seed in range(24):
        sample = build(mode, tokenizer, seed)
        wrong, kinds = solve(sample)
        assert sample.answer == str(wrong)
        assert 0.05 < len(wrong) / len(kinds) < 0.15
        assert (len(set(kinds)) == 1) == (mode != "limt")
        met |= set(kinds)
    assert len(met) >= (len(KINDS) if mode == "limt" else 7)


def test_long_exams_have_at_most_forty_wrong_answers(tokenizer: Any) -> None:
    sample = build("limt", tokenizer, 1, 32768)
    wrong, kinds = solve(sample)
    assert len(wrong) == 40 < len(kinds) / 10
    assert sample.answer == str(wrong)


def test_f1_of_the_numbers_in_brackets() -> None:
    wanted = ["[3]", "[7]", "[12]", "[40]"]
    assert bracketed_f1("The wrong ones are [3, 7, 12, 40].", wanted, {})["score"] == 1.0
    assert bracketed_f1("[3] [7] [12] [40]", wanted, {})["score"] == 1.0
    found = bracketed_f1("[3, 7, 8]", wanted, {})
    assert found == {"score": pytest.approx(4 / 7), "precision": pytest.approx(2 / 3), "recall": 0.5}
    assert bracketed_f1("3, 7, 12, 40", wanted, {})["score"] == 0.0, "the official scorer reads brackets only"
    assert bracketed_f1("[]", wanted, {})["score"] == 0.0
    assert bracketed_f1("[1]", wanted, {})["score"] == 0.0


def test_no_word_is_of_two_groups() -> None:
    listed = [word for group in GROUPS.values() for word in group]
    assert len(listed) == len(set(listed))
    assert len(OPPOSITE) == 2 * len(PAIRS)
