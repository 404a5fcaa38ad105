"""LongBench v2: four choices, the form of the answer, parts by difficulty and length, domains."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.evaluation.suites.local_data import (
    check_data_are_asked_for,
    check_rows_are_checked,
    check_the_cut_spares_the_question,
    exam,
    put,
    sample,
    scored,
)

ROW: dict[str, Any] = {
    "_id": "b1",
    "domain": "Single-Document QA",
    "sub_domain": "Detective",
    "difficulty": "hard",
    "length": "short",
    "question": " Who took the key? ",
    "choice_A": "The cook",
    "choice_B": "The maid ",
    "choice_C": "Nobody",
    "choice_D": "The cat",
    "answer": "B",
    "context": "The maid had the key in her pocket. " + "It rained all day. " * 400,
}
FILE = "longbench_v2/data.json"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    put(
        tmp_path,
        FILE,
        [ROW, {**ROW, "_id": "b2", "domain": "Multi-Document QA", "difficulty": "easy", "answer": "D"}],
    )
    return tmp_path


def test_question_choices_and_scores(data: Path) -> None:
    asked = sample("longbench_v2/all", length=20_000)
    assert (
        "Question about the text: Who took the key?\nChoices:\n(A) The cook\n(B) The maid\n(C) Nobody\n(D) The cat\n"
        in asked.question
    )
    assert asked.references == ("B",) and asked.max_new_tokens == 128
    assert scored("longbench_v2/all", asked.answer) == {"score": 1.0, "hard": 1.0, "short": 1.0}
    assert scored("longbench_v2/all", "**The correct answer is B**")["score"] == 1.0
    assert scored("longbench_v2/all", "It is B.") == {"score": 0.0, "hard": 0.0, "short": 0.0}
    assert scored("longbench_v2/all_compensated", "It is B.")["score"] == 0.25
    assert scored("longbench_v2/all_compensated", "The correct answer is (A)")["score"] == 0.0
    check_the_cut_spares_the_question("longbench_v2/all")


def test_a_domain_has_its_own_questions(data: Path) -> None:
    assert exam("longbench_v2/all").num_items() == 2
    assert exam("longbench_v2/multi_document_qa").num_items() == 1
    assert sample("longbench_v2/multi_document_qa").details["id"] == "b2"
    with pytest.raises(ValueError, match="holds no question of longbench_v2"):
        sample("longbench_v2/code_repository")


def test_a_guess_is_right_one_time_in_four(data: Path) -> None:
    labels, asked, rng = exam("longbench_v2/all").labels, sample("longbench_v2/all"), Random(0)
    assert labels.guess is not None and labels.chance == 0.25
    scores = [scored("longbench_v2/all", labels.guess(rng, asked))["score"] for _ in range(200)]
    assert sum(scores) / 200 == pytest.approx(0.25, abs=0.1)


def test_absent_and_malformed_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_rows_are_checked(data, "longbench_v2/all", FILE, ROW, ("context", "choice_C", "difficulty"))
    put(data, FILE, [{**ROW, "answer": "E"}])
    with pytest.raises(ValueError, match="row 1 of .*`answer` is 'E', allowed are A, B, C and D"):
        sample("longbench_v2/all")
    check_data_are_asked_for("longbench_v2/all", monkeypatch, "put data.json into", "THUDM/LongBench-v2")
