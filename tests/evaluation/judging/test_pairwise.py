"""Pairs in both orders: who wins, ties, flips, bias towards a place, and the way into a ranking."""

from __future__ import annotations

import json

import pytest

from longspan.evaluation.judging import OpenQuestion, compare, compare_all
from longspan.evaluation.metrics.ranking import bradley_terry, rank
from tests.evaluation.judging.fakes import ScriptedJudge, always, shown


def longer(prompt: str) -> str:
    first, second = len(shown(prompt, "answer1")), len(shown(prompt, "answer2"))
    return json.dumps({"verdict": "tie" if first == second else "1" if first > second else "2"})


@pytest.mark.parametrize(
    ("replies", "score", "flipped"),
    [
        (("1", "2"), 1.0, False),
        (("2", "1"), 0.0, False),
        (("tie", "tie"), 0.5, False),
        (("1", "1"), 0.5, True),
        (("2", "2"), 0.5, True),
        (("1", "tie"), 0.5, True),
        (("tie", "1"), 0.5, True),
        (("1", "?"), None, False),
        (("?", "tie"), None, False),
    ],
)
def test_both_orders_make_one_verdict(replies: tuple[str, str], score: float | None, flipped: bool) -> None:
    queue = list(replies)
    found = compare(
        ScriptedJudge(lambda prompt: json.dumps({"verdict": queue.pop(0)})), "Q?", "left", "right"
    )
    assert (found.score, found.flipped) == (score, flipped)


def test_the_second_prompt_swaps_the_answers_and_nothing_else() -> None:
    judge = ScriptedJudge(longer)
    assert compare(judge, "Who?", "long answer", "short", reference="known").score == 1.0
    forward, backward = judge.prompts
    assert shown(forward, "answer1") == shown(backward, "answer2") == "long answer"
    assert shown(forward, "reference") == shown(backward, "reference") == "known"
    assert (
        forward.replace("long answer", "_").replace("short", "long answer").replace("_", "short") == backward
    )


def test_a_judge_that_likes_the_first_place_gives_ties_and_is_found_out() -> None:
    questions = [OpenQuestion(question=f"{n}?", answers={"a": "x", "b": "y", "c": "z"}) for n in range(10)]
    report = compare_all(always('{"verdict": "1"}'), questions)
    assert report.num_pairs == report.flipped == 30 and report.unparsable == 0
    assert report.position_bias == 1.0
    # Wilson at 60 of 60: 60 / (60 + 1.96^2).
    assert report.position_bias_interval == (pytest.approx(60 / 63.8415, abs=1e-4), 1.0)
    assert set(bradley_terry(report.matches).values()) == {0.0}


def test_verdicts_rank_the_systems() -> None:
    questions = [
        OpenQuestion(question=f"{n}?", answers={"short": "x" * (9 * (n % 5 == 0) + 1), "long": "x" * 5})
        for n in range(40)
    ]
    report = compare_all(ScriptedJudge(longer), questions)
    assert (report.position_bias, report.flipped) == (0.5, 0)
    ranking = rank(report.matches, num_bootstraps=200)
    best, worst = ranking.systems
    assert (best.name, best.wins, best.losses) == ("long", 32, 8)
    assert best.strength - worst.strength == pytest.approx(1.386294, abs=1e-5)  # log 4
    assert best.low > worst.high


def test_illegible_pairs_are_counted_and_left_out() -> None:
    queue = ["1", "2", "?", "1"]
    judge = ScriptedJudge(lambda prompt: queue.pop(0))
    report = compare_all(judge, [OpenQuestion(question="?", answers={"a": "x", "b": "y"})] * 2)
    assert (report.num_pairs, report.unparsable, len(report.matches)) == (2, 1, 1)
    assert (report.first_chosen, report.side_chosen) == (2, 3)
    nothing = compare_all(always("?"), [OpenQuestion(question="?", answers={"a": "x", "b": "y"})])
    assert nothing.position_bias is None and nothing.position_bias_interval == (0.0, 1.0)


def test_one_answer_is_no_comparison() -> None:
    with pytest.raises(ValueError, match="question 1 has 1 answers"):
        compare_all(always("1"), [OpenQuestion(question="?", answers={"a": "x"})])
