"""NoCha: one claim, both claims, pairs of scores; books as text, never as a pickle."""

from __future__ import annotations

import random
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from longspan.evaluation.metrics import grade
from longspan.evaluation.metrics.choice import pair_accuracy
from longspan.evaluation.metrics.nocha_rules import both_claims
from longspan.evaluation.published import DataMissing
from tests.evaluation.suites.local_data import (
    check_data_are_asked_for,
    check_rows_are_checked,
    check_the_cut_spares_the_question,
    exam,
    put,
    sample,
    scored,
)

FILE = "nocha/data_sample.json"


def row(index: int, true: bool) -> dict[str, Any]:
    return {
        "book_title": "the_gate",
        "claim": f"The gate of chapter {index} is {'green' if true else 'black'}.",
        "type": str(true),
        "index": str(index),
        "false-claim-explanation": "It is green.",
        "length": "900",
        "genre": "historical",
        "response-model": "<answer>TRUE</answer>",
    }


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    put(tmp_path, FILE, [row(index, true) for index in range(1, 5) for true in (True, False)])
    (tmp_path / "nocha" / "books").mkdir()
    (tmp_path / "nocha" / "books" / "the_gate.txt").write_text("The gate is green. " * 300 + "The end.")
    return tmp_path


def test_a_claim(data: Path) -> None:
    asked = sample("nocha/claims", 1, 60_000)
    assert (
        asked.context.startswith("The gate is green.") and "The gate of chapter 1 is black." in asked.question
    )
    assert asked.references == ("FALSE",) and asked.details["pair"] == "the_gate/1"
    assert (
        scored("nocha/claims", "<explanation>True to life.</explanation><answer>False</answer>", 1)["score"]
        == 1.0
    )
    assert scored("nocha/claims", "It is true.", 1)["score"] == 0.0


def test_pairs_of_scores() -> None:
    assert pair_accuracy([("a", 1.0), ("a", 1.0), ("b", 1.0), ("b", 0.0)]) == 0.5


def test_both_claims_at_once(data: Path) -> None:
    assert exam("nocha/pairs").num_items() == 4
    orders = {sample("nocha/pairs", number).references for number in range(4)}
    assert orders == {("TRUE", "FALSE"), ("FALSE", "TRUE")}
    for number in range(4):
        asked = sample("nocha/pairs", number)
        assert asked.question.count("The gate of chapter") == 2
        assert scored("nocha/pairs", asked.answer, number) == {"score": 1.0, "claims": 1.0}


def test_scores_of_two_verdicts() -> None:
    wanted = ("TRUE", "FALSE")
    assert grade(both_claims, "<answer>TRUE</answer> <answer>TRUE</answer>", wanted) == {
        "score": 0.0,
        "claims": 0.5,
    }
    assert grade(both_claims, "<answer>TRUE</answer>", wanted) == {"score": 0.0, "claims": 0.0}
    assert grade(both_claims, "First: true. Second: false.", wanted)["score"] == 1.0
    with pytest.raises(ValueError, match="got 1 references; a pair of claims has 2 verdicts"):
        grade(both_claims, "true", ("TRUE",))


@pytest.mark.parametrize("task", ["nocha/claims", "nocha/pairs"])
def test_who_guesses_is_right_half_the_time(data: Path, task: str) -> None:
    labels, rng = exam(task).labels, random.Random(0)
    assert labels.guess is not None
    found = [
        scored(task, labels.guess(rng, sample(task, number)), number)["score"]
        for number in range(4)
        for _ in range(20)
    ]
    assert fmean(found) == pytest.approx(labels.chance, abs=0.16)


def test_absent_and_malformed_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(data, FILE, [row(1, True), row(1, True)])
    with pytest.raises(
        ValueError, match="the pair the_gate/1 has 2 claims; it must have one true and one false"
    ):
        sample("nocha/pairs")
    check_rows_are_checked(data, "nocha/claims", FILE, row(1, True), ["claim", "type", "book_title"])
    put(data, FILE, [{**row(1, True), "book_title": "lost"}])
    with pytest.raises(DataMissing, match=r"put lost.txt into .*nocha"):
        sample("nocha/claims")
    check_data_are_asked_for("nocha/pairs", monkeypatch, "data_sample.json", "MIT")


def test_a_long_book_loses_its_middle(data: Path) -> None:
    check_the_cut_spares_the_question("nocha/claims", length=1200)
