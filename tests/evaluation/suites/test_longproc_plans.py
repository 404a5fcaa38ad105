"""LongProc's trips: planned by backtracking over what the text says; broken rules by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest

from longspan.evaluation.exams import PuzzleExam
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.registry import find_task
from longspan.evaluation.suites.longproc.routes import travel_score
from longspan.evaluation.task import Sample
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ASSETS)


def build(tokenizer: Any, seed: int) -> Sample:
    exam = find_task("longproc/travel_planning").exam
    assert isinstance(exam, PuzzleExam)
    return exam.build(
        length_tokens=4096, depth=None, seed=seed, haystack=noise_haystack(), tokenizer=tokenizer
    )


def plan_trip(text: str) -> list[tuple[int, int, str]]:
    """Any order of the cities that keeps the rules, by backtracking."""
    stays = {city: int(days) for city, days in re.findall(r"Stay in (.+) for (\d+) days", text)}
    fixed = {
        city: (int(first), int(last))
        for city, first, last in re.findall(r"Be in (.+) from day (\d+) to day (\d+)", text)
    }
    stays |= {city: last - first + 1 for city, (first, last) in fixed.items()}
    flights = set(re.findall(r"direct flight from (.+) to (.+)\.", text))

    def go_on(plan: list[tuple[int, int, str]]) -> list[tuple[int, int, str]] | None:
        if len(plan) == len(stays):
            return plan
        day = plan[-1][1] if plan else 1
        for city in sorted(stays.keys() - {city for _, _, city in plan}):
            stay = (day, day + stays[city] - 1)
            if fixed.get(city, stay) == stay and (not plan or (plan[-1][2], city) in flights):
                done = go_on([*plan, (*stay, city)])
                if done:
                    return done
        return None

    found = go_on([])
    assert found is not None
    return found


def written(plan: list[tuple[int, int, str]]) -> str:
    return "<Plan>\n" + "\n".join(f"Day {first}-{last}: {city}" for first, last, city in plan) + "\n</Plan>"


def test_any_plan_that_keeps_the_rules_is_right(tokenizer: Any) -> None:
    for seed in range(6):
        sample = build(tokenizer, seed)
        plan = plan_trip(sample.context)
        assert plan[-1][1] == int(re.findall(r"\d+", sample.question)[1])
        assert travel_score(written(plan), ("",), sample.details)["score"] == 1.0
        assert travel_score(written(plan[:-1]), ("",), sample.details) == {
            "score": 0.0,
            "partial": pytest.approx((len(plan) - 1) / len(plan)),
            "extracted": 1.0,
        }
        assert travel_score(written([*plan, plan[-1]]), ("",), sample.details)["score"] == 0.0


def test_broken_rules_of_a_trip() -> None:
    details = {
        "stays": {"A": 2, "B": 3, "C": 4},
        "fixed": {"B": [2, 4]},
        "flights": [["A", "B"], ["B", "C"], ["C", "B"], ["A", "C"]],
    }
    right = written([(1, 2, "A"), (2, 4, "B"), (4, 7, "C")])
    assert travel_score(right, ("",), details)["score"] == 1.0
    partial = {
        "a stay too short": (written([(1, 2, "A"), (2, 3, "B"), (3, 6, "C")]), 1 / 3),
        "a day lost": (written([(1, 2, "A"), (3, 5, "B"), (5, 8, "C")]), 1 / 3),
        "a fixed day missed": (written([(1, 2, "A"), (2, 5, "C"), (5, 7, "B")]), 2 / 3),
        "no such flight": (written([(1, 4, "C"), (4, 5, "A"), (5, 7, "B")]), 1 / 3),
        "a city twice": (written([(1, 2, "A"), (2, 3, "A"), (3, 6, "C")]), 1 / 3),
        "no tags": (right.replace("<Plan>", ""), 0.0),
    }
    for name, (answer, share) in partial.items():
        found = travel_score(answer, ("",), details)
        assert found["score"] == 0.0, name
        assert found["partial"] == pytest.approx(share), name
