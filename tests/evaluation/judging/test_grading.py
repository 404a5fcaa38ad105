"""Deterministic scores against values worked out by hand, and the one entry that grades by a judge or without."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

import pytest

from longspan.evaluation.judging import Constraints, grade_open, keyword_recall, open_metric, rouge
from longspan.evaluation.judging.fallbacks import keywords_of
from longspan.evaluation.metrics import grade
from longspan.evaluation.metrics.overlap_rouge import rouge_scorer
from tests.evaluation.judging.fakes import ScriptedJudge, always

TEXT = "# One\nDora Harker keeps a lantern.\n\n## Two\nIt was never lit."


def test_rouge_by_hand() -> None:
    pytest.importorskip("rouge_score")
    # Longest common subsequence "the cat on mat": 4 of 6 words each way.
    assert rouge("the cat lay on a mat", ["the cat sat on the mat"]) == pytest.approx(4 / 6)
    # Stemmed, 2 of 2 against 2 of 3: F = 2 * 1 * 2/3 / (5/3); the better reference counts.
    assert rouge("cats sleeping", ["dogs", "the cat sleeps"]) == pytest.approx(0.8)
    # Words the, cat, on, mat shared with "the" once: 4 of 6 and 4 of 6.
    assert rouge("the cat lay on a mat", ["mat the on cat the sat"], variant="rouge1") == pytest.approx(4 / 6)
    assert rouge("", ["x"]) == 0.0
    with pytest.raises(ValueError, match="no reference"):
        rouge("x", [])
    with pytest.raises(ValueError, match="variant='rougel'; did you mean 'rougeL'"):
        rouge("x", ["y"], variant="rougel")


def test_rouge_without_its_package_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    rouge_scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ValueError, match="pip install rouge-score"):
        rouge("x", ["y"])


def test_keyword_recall_takes_whole_words() -> None:
    assert keyword_recall(TEXT, ["lantern", "dora  harker", "lant", "cellar"]) == 0.5
    assert keyword_recall("a.b costs $5", ["$5", "a.b", "b"]) == 1.0
    assert keywords_of("Where does the Vicar keep it?") == ["vicar", "keep"]
    with pytest.raises(ValueError, match="no keyword"):
        keyword_recall(TEXT, [])


def test_constraints_are_checked_one_by_one() -> None:
    asked = Constraints(
        min_words=5, max_words=10, must_mention=("lantern", "vicar"), must_not_mention=("lit", "dog"), num_sections=2,
        in_order=("dora", "lantern", "never"),
    )  # fmt: skip
    # 13 words: "#" and "##" count, since white space separates them.
    assert asked.check(TEXT) == {
        "min_words": True,
        "max_words": False,
        "num_sections": True,
        "must_mention: lantern": True,
        "must_mention: vicar": False,
        "must_not_mention: lit": False,
        "must_not_mention: dog": True,
        "in_order": True,
    }
    assert asked.score(TEXT) == 5 / 8
    assert not Constraints(in_order=("lantern", "Dora")).check(TEXT)["in_order"]
    assert not Constraints(in_order=("lit", "lit")).check(TEXT)["in_order"]
    assert Constraints(num_sections=3, section=r"Step \d").score("Step 1\nStep 2\n Step 3\nStep 4") == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "ask for nothing"),
        ({"min_word": 3}, "did you mean 'min_words'"),
        ({"min_words": 9, "max_words": 3}, "least not above the most"),
        ({"min_words": -1}, "0 or more"),
        ({"min_words": "100"}, "whole numbers"),
        ({"must_mention": "lantern"}, "lists of text"),
        ({"must_mention": [""]}, "not empty"),
        ({"num_sections": 1, "section": "("}, "not a regular expression"),
    ],
)
def test_wrong_constraints(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Constraints.of(settings)


def test_without_a_judge_the_fallback_says_which_it_is() -> None:
    pytest.importorskip("rouge_score")
    constraints = {"min_words": 5, "must_mention": ["vicar"]}
    assert grade_open(TEXT, [], {"constraints": constraints, "keywords": ["dora"]}) == {
        "score": 0.5, "by": "fallback constraints",
    }  # fmt: skip
    assert grade_open(TEXT, [], {"keywords": ["dora", "vicar"]}) == {"score": 0.5, "by": "fallback keywords"}
    found = grade_open("the cat lay on a mat", ["the cat sat on the mat"], {})
    assert found == {"score": pytest.approx(4 / 6), "by": "fallback rouge-l"}
    with pytest.raises(ValueError, match="no reference"):
        grade_open(TEXT, [], {})


@pytest.mark.parametrize(
    ("details", "reply", "score", "unparsable"),
    [
        ({"question": "Who?"}, '{"verdict": "correct"}', 1.0, 0),
        ({"grading": "answer"}, "wrong", 0.0, 0),
        ({"grading": "rubric", "rubric": ["Good?", "Short?"]}, '[{"check": 1, "score": 0.75}]', 0.75, 1),
        ({"grading": "rubric", "rubric": "chat"}, '{"1": 1, "2": 0, "3": 1, "4": 0}', 0.5, 0),
        ({"grading": "claims", "source": TEXT}, '{"verdict": "supported"}', 1.0, 0),
        ({"grading": "coverage"}, '{"verdict": "not supported"}', 0.0, 0),
        ({"grading": "coverage", "key_facts": ["a"]}, '{"verdict": "supported"}', 1.0, 0),
    ],
)
def test_a_judge_grades_as_the_details_say(
    details: dict[str, Any], reply: str, score: float, unparsable: int
) -> None:
    found = grade_open("Dora.", ["Dora Harker"], details, always(reply))
    assert found == {"score": score, "by": "judge scripted", "unparsable": unparsable}


def test_an_illegible_verdict_falls_back_and_says_so() -> None:
    found = grade_open("Dora Harker", [], {"grading": "rubric", "keywords": ["dora", "vicar"]}, always("?"))
    assert found == {"score": 0.5, "by": "fallback keywords", "unparsable": 5}
    with pytest.raises(ValueError, match="reply of the judge scripted could not be read"):
        grade_open("Dora", [], {"grading": "rubric"}, always("?"))


def test_an_empty_summary_claims_nothing_and_scores_0() -> None:
    found = grade_open("", [], {"grading": "claims", "source": TEXT}, always("?"))
    assert found == {"score": 0.0, "by": "judge scripted", "unparsable": 0}


def test_details_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="grading='rubrik'; did you mean 'rubric'"):
        grade_open("x", ["y"], {"grading": "rubrik"}, always("?"))
    with pytest.raises(ValueError, match="source is empty"):
        grade_open("x", ["y"], {"grading": "claims"}, always("?"))


def test_a_bound_judge_makes_a_metric() -> None:
    judge = ScriptedJudge(lambda prompt: json.dumps({"verdict": "correct" if "Dora" in prompt else "?"}))
    metric = partial(open_metric, judge=judge)
    details = {"keywords": ["vicar", "otto"]}
    assert grade(metric, "Dora", ["Dora"], details) == {"score": 1.0, "by_judge": 1.0, "unparsable": 0.0}
    assert grade(metric, "Otto", ["Otto"], details) == {"score": 0.5, "by_judge": 0.0, "unparsable": 1.0}
    assert grade(open_metric, "Otto", [], details) == {"score": 0.5, "by_judge": 0.0, "unparsable": 0.0}
