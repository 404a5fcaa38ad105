"""Marathon: options, letters, and answers that stand in a file of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longspan.evaluation.suites.marathon import TASKS, TYPES
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
    "id": "7",
    "type": "computation",
    "context": "Lind had two sons. " + "The years passed. " * 400,
    "question": "How many sons did Lind have",
    "options": {"A": "one", "B": "two", "C": "nine", "D": "ten", "E": None},
    "length": 8000,
}
FILE = "marathon/marathon.json"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    put(tmp_path, FILE, [ROW, {**ROW, "id": "8", "type": "shortdep_qa"}])
    put(tmp_path, "marathon/answers.json", [{"id": "7", "answer": "B"}, {"id": 8, "answer": "C"}])
    return tmp_path


def test_questions_get_their_answers(data: Path) -> None:
    assert set(TASKS) == {"all", *TYPES}
    assert exam("marathon/all").num_items() == 2 and exam("marathon/shortdep_qa").num_items() == 1
    asked = sample("marathon/all")
    assert "How many sons did Lind have\n\nOptions:\nA. one\nB. two\nC. nine\nD. ten\n\n" in asked.question
    assert asked.references == ("B",) and asked.details["choices"] == ["A", "B", "C", "D"]
    assert scored("marathon/all", asked.answer)["score"] == 1.0
    assert scored("marathon/all", "B. two")["score"] == 1.0
    assert scored("marathon/all", '{"option": "A"}')["score"] == 0.0
    assert scored("marathon/all", "two")["score"] == 0.0
    check_the_cut_spares_the_question("marathon/all")


def test_an_answer_in_the_row_will_do(data: Path) -> None:
    (data / "marathon" / "answers.json").unlink()
    put(data, FILE, [{**ROW, "answer": "D"}])
    assert sample("marathon/all").references == ("D",)


def test_absent_and_malformed_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_rows_are_checked(data, "marathon/all", FILE, ROW, ("context", "question", "options", "type"))
    put(data, FILE, [{**ROW, "answer": "F"}])
    with pytest.raises(ValueError, match="the answer 'F' of question 7 is not one of A, B, C, D"):
        sample("marathon/computation")
    put(data, FILE, [{**ROW, "id": "99"}])
    with pytest.raises(ValueError, match="question 99 has no answer.*put answers.json beside them"):
        sample("marathon/all")
    check_data_are_asked_for("marathon/all", monkeypatch, "put marathon.json into", "Lemoncoke/Marathon")
