"""Checklist grades and fitted weights against sums done by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from longspan.evaluation.judging import RUBRICS, Check, Rubric, fit_weights, grade_rubric
from longspan.evaluation.judging.rubric import open_rubric
from tests.evaluation.judging.fakes import always

TWO = Rubric(kind="two", checks=(Check(question="Is it short?"), Check(question="Is it true?", weight=3.0)))


@pytest.mark.parametrize(
    ("reply", "by_check", "score"),
    [
        # (1 * 0.5 + 3 * 1) / 4
        ('[{"check": 1, "score": 0.5}, {"check": 2, "score": 1}]', (0.5, 1.0), 0.875),
        ('{"1": "partly", "2": "yes"}', (0.5, 1.0), 0.875),
        ('[{"check": "1", "score": "0.25"}, {"check": 2, "score": "hardly"}]', (0.25, 0.25), 0.25),
        ('[{"check": 1, "score": true}, {"check": 2, "score": false}]', (1.0, 0.0), 0.25),
        # A check that was not answered on the scale is left out, not counted as 0.
        ('[{"check": 1, "score": 0.5}, {"check": 2, "score": 7}]', (0.5, None), 0.5),
        ('[{"check": 1, "score": 0.6}, {"check": 2, "score": 0.75}]', (None, 0.75), 0.75),
        ('[{"check": 1, "score": 0.5}, {"check": 2, "sco', (0.5, None), 0.5),
        ('[{"check": 3, "score": 1}, {"check": 0, "score": 1}]', (None, None), None),
        ("a fine text", (None, None), None),
    ],
)
def test_grades(reply: str, by_check: tuple[float | None, ...], score: float | None) -> None:
    grade = grade_rubric(always(reply), TWO, "Write.", "Written.")
    assert (grade.by_check, grade.score) == (by_check, score)
    assert grade.unparsable == by_check.count(None)


def test_the_prompt_holds_all_and_asks_in_its_last_paragraph() -> None:
    judge = always("[]")
    grade_rubric(judge, TWO, "Write\n\nabout rain.", "It\n\nrains.")
    (prompt,) = judge.prompts
    for part in ("Write\n\nabout rain.", "It\n\nrains.", "1. Is it short?", "2. Is it true?"):
        assert part in prompt
    assert "JSON array" in prompt.rpartition("\n\n")[2]


def test_every_built_in_rubric_can_be_graded() -> None:
    for kind, rubric in RUBRICS.items():
        full = json.dumps([{"check": number, "score": 1} for number in range(1, len(rubric.checks) + 1)])
        assert rubric.kind == kind
        assert grade_rubric(always(full), rubric, "", "").score == pytest.approx(1.0)


def test_weights_that_explain_the_grades_are_found() -> None:
    # grade = 0.5 * first + 0.25 * second, so the shares are 2/3 and 1/3.
    scores = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.25], [0.0, 0.0]]
    fitted, explained = fit_weights(TWO, scores, [0.5, 0.25, 0.75, 0.3125, 0.0])
    assert [check.weight for check in fitted.checks] == pytest.approx([2 / 3, 1 / 3])
    assert explained == pytest.approx(1.0)
    assert [check.question for check in fitted.checks] == [check.question for check in TWO.checks]


def test_no_weight_falls_below_0() -> None:
    # Gram [[2, 1], [1, 2]], target [1.3, 0.5]: freely 0.7 and -0.1; without the second check 1.3 / 2.
    fitted, explained = fit_weights(TWO, [[1, 0], [0, 1], [1, 1], [0, 0]], [0.8, 0.0, 0.5, 0.0])
    assert [check.weight for check in fitted.checks] == [1.0, 0.0]
    # Residuals 0.15 and -0.15; the grades' squares about their mean 0.325 sum to 0.4675.
    assert explained == pytest.approx(1 - 0.045 / 0.4675)


@pytest.mark.parametrize(
    ("scores", "overall", "message"),
    [
        ([[1, 0], [0, 1]], [1.0], "1 overall grades for 2 checks"),
        ([[1, 0]], [1.0], "at least as many texts as checks"),
        ([[1], [0, 1]], [1.0, 0.0], "one row of that many scores"),
        ([[1, 0], [0, 1]], [10.0, 0.0], "0..1"),
        ([[1, 0], [0, 1]], [0.5, 0.5], "all overall grades are the same"),
        ([[0, 0], [0, 0]], [0.5, 1.0], "all weights are 0"),
        ([[float("nan"), 0], [0, 1]], [0.5, 1.0], "0..1"),
    ],
)
def test_labels_that_cannot_be_fitted(scores: Any, overall: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_weights(TWO, scores, overall)


def test_rubrics_by_name_or_questions_and_wrong_ones() -> None:
    assert open_rubric("summary") is RUBRICS["summary"] and open_rubric(TWO) is TWO
    assert [check.question for check in open_rubric(["Is it so?"]).checks] == ["Is it so?"]
    with pytest.raises(ValueError, match="did you mean 'summary'"):
        open_rubric("sumary")
    for weights in ((), (0.0,), (-1.0, 2.0), (float("inf"),)):
        with pytest.raises(ValueError, match="at least one check"):
            Rubric(kind="x", checks=tuple(Check(question="?", weight=weight) for weight in weights))
