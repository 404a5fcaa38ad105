"""L-Eval: several questions a text, closed and free tasks, and what is left to judges."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from longspan.evaluation.suites.leval import KINDS, TASKS
from tests.evaluation.suites.local_data import (
    check_data_are_asked_for,
    check_rows_are_checked,
    check_the_cut_spares_the_question,
    exam,
    put,
    sample,
    scored,
)

LECTURE = "Rivers carry sand. " + "They wind through the plain. " * 400
EXAM: dict[str, Any] = {
    "input": LECTURE,
    "instructions": [
        "What do rivers carry?\nA. Sand\nB. Gold\nC. Salt",
        "Which wind?\nA. Rivers\nB. Roads\nC. Rivers and roads",
    ],
    "outputs": ["A", "AB"],
    "source": "lecture_a",
    "evaluation": "exam",
}
FREE: dict[str, Any] = {
    **EXAM,
    "instructions": ["What do rivers carry?"],
    "outputs": ["Rivers carry fine sand."],
    "evaluation": "f1",
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    return tmp_path


def test_there_are_seven_closed_and_thirteen_free_tasks() -> None:
    assert len(TASKS) == 20 and sum(kind.free for kind in KINDS.values()) == 13
    assert all(task.max_new_tokens == 512 for task in TASKS.values())


def test_each_instruction_of_a_text_is_a_question(data: Path) -> None:
    put(data, "leval/LEval-data/Closed-ended-tasks/coursera.jsonl", [EXAM, {**EXAM, "evaluation": "human"}])
    assert exam("leval/coursera").num_items() == 2
    asked = sample("leval/coursera", 1)
    assert asked.question.startswith("Which wind?\nA. Rivers") and asked.references == ("AB",)
    assert scored("leval/coursera", "AB", 1)["score"] == 1.0
    assert scored("leval/coursera", "A", 1)["score"] == 0.25
    assert scored("leval/coursera", "AC", 1)["score"] == 0.0
    check_the_cut_spares_the_question("leval/coursera", length=1000)


def test_one_letter(data: Path) -> None:
    put(data, "leval/quality.jsonl", [{**EXAM, "outputs": ["(B) Gold", "(C) both"]}])
    assert scored("leval/quality", sample("leval/quality").answer)["score"] == 1.0
    assert scored("leval/quality", "(B)")["score"] == 1.0 and scored("leval/quality", "C", 1)["score"] == 1.0
    assert scored("leval/quality", "A")["score"] == 0.0
    guess, asked, rng = exam("leval/quality").labels.guess, sample("leval/quality"), Random(0)
    assert guess is not None
    assert {guess(rng, asked) for _ in range(60)} == set("ABCD")


def test_sums_code_topics_and_two_verdicts(data: Path) -> None:
    for name, asked, output in (
        ("gsm100", "Question: 4 times 3?\nLet's think step by step\n", "12"),
        ("codeU", "What does f(2) print?", "[1, 2]"),
        ("topic_retrieval_longchat", "What is the first topic we discussed?", "The future of tea"),
        (
            "sci_fi",
            "Ships fly, True or False? Answer this question based on the world described in the document.",
            "True [fact: False]",
        ),
    ):
        put(data, f"leval/{name}.jsonl", [{**EXAM, "instructions": [asked], "outputs": [output]}])
    assert scored("leval/gsm100", "4 x 3 = 12\nThe answer is 12")["score"] == 1.0
    assert scored("leval/gsm100", "The answer is 13")["score"] == 0.0
    assert scored("leval/codeU", "So the final output is [1, 2]")["score"] == 1.0
    assert scored("leval/topic_retrieval_longchat", "the future of tea.")["score"] == 1.0
    assert scored("leval/topic_retrieval_longchat", "coffee")["score"] == 0.0
    assert scored("leval/sci_fi", "True [fact: True]") == {"score": 0.5, "loyalty": 1.0, "fact": 0.0}
    assert sample("leval/sci_fi").question.endswith("True [fact: False]")


def test_free_answers_are_asked_for_in_the_length_of_the_reference(data: Path) -> None:
    summary = {**FREE, "evaluation": "rouge"}
    put(data, "leval/financial_qa.jsonl", [FREE, {**FREE, "evaluation": "LLM"}])
    put(data, "leval/news_summ.jsonl", [summary])
    assert exam("leval/financial_qa").num_items() == 1
    assert sample("leval/financial_qa").question == "What do rivers carry?\nUse about 4 words."
    assert scored("leval/financial_qa", "Fine sand.")["score"] == pytest.approx(2 / 3)
    assert scored("leval/financial_qa", "")["score"] == 0.0
    found = scored("leval/news_summ", "Rivers carry sand.")
    assert found["rouge1"] == pytest.approx(6 / 7) and found["rouge2"] == pytest.approx(2 / 5)


def test_absent_and_malformed_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_rows_are_checked(
        data, "leval/tpo", "leval/tpo.jsonl", EXAM, ("input", "instructions", "outputs", "evaluation")
    )
    put(data, "leval/patent_summ.jsonl", [{**FREE, "outputs": ["a", "b"]}])
    with pytest.raises(ValueError, match="row 1 of .*1 instructions have 2 outputs"):
        sample("leval/patent_summ")
    put(data, "leval/review_summ.jsonl", [{**FREE, "evaluation": "human"}])
    with pytest.raises(ValueError, match="review_summ.jsonl holds no question of leval"):
        sample("leval/review_summ")
    check_data_are_asked_for("leval/codeU", monkeypatch, "put codeU.jsonl into", "L4NLP/LEval", "GPL-3.0")
