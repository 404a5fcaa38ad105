"""LongMemEval: chats by date, types and abstention apart, a score without a judge and what a judge is told."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from longspan.evaluation.judging import open_metric
from longspan.evaluation.suites.longmemeval import KINDS, TASKS
from tests.evaluation.suites.local_data import (
    check_data_are_asked_for,
    check_rows_are_checked,
    check_the_cut_spares_the_question,
    exam,
    put,
    sample,
    scored,
)

FILE = "longmemeval/longmemeval_s_cleaned.json"


def row(kind: str, name: str = "q1", answer: Any = "a blue Volvo") -> dict[str, Any]:
    return {
        "question_id": name,
        "question_type": kind,
        "question": "Which car did I buy?",
        "answer": answer,
        "question_date": "2023/05/30 (Tue) 10:00",
        "haystack_session_ids": ["late", "answer_1"],
        "haystack_dates": ["2023/05/20 (Sat) 02:21", "2023/05/02 (Tue) 09:00"],
        "haystack_sessions": [
            [{"role": "user", "content": "Thanks a lot."}, {"role": "assistant", "content": "Any time."}],
            [{"role": "user", "content": " I bought a blue Volvo. ", "has_answer": True}],
        ],
        "answer_session_ids": ["answer_1"],
    }


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    put(
        tmp_path,
        FILE,
        [*(row(kind) for kind in KINDS if kind != "abstention"), row("multi-session", "q9_abs")],
    )
    return tmp_path


def test_chats_stand_by_date_under_their_dates(data: Path) -> None:
    asked = sample("longmemeval/single_session_user")
    assert asked.context.split("\n\n")[1:] == [
        "### Session 1\nDate: 2023/05/02 (Tue) 09:00",
        "user: I bought a blue Volvo.",
        "### Session 2\nDate: 2023/05/20 (Sat) 02:21",
        "user: Thanks a lot.",
        "assistant: Any time.",
    ]
    assert asked.question.endswith("Current date: 2023/05/30 (Tue) 10:00\nQuestion: Which car did I buy?")
    assert asked.evidence == ("user: I bought a blue Volvo.",)
    assert asked.details["sessions"] == ["answer_1"]


@pytest.mark.parametrize("name", [name for name in TASKS if not name.startswith("oracle_")])
def test_each_type_has_its_question_and_the_ideal_answer_scores_all(data: Path, name: str) -> None:
    asked = sample(f"longmemeval/{name}")
    assert exam(f"longmemeval/{name}").num_items() == 1
    assert scored(f"longmemeval/{name}", asked.answer)["score"] == 1.0
    assert scored(f"longmemeval/{name}", "A walrus.")["score"] == 0.0


def test_the_score_without_a_judge_is_the_part_of_the_words(data: Path) -> None:
    found = scored("longmemeval/multi_session", "It was blue.")
    assert found["score"] == 0.5 and found["by_judge"] == 0.0
    assert scored("longmemeval/abstention", "I don't know, you never told me.")["score"] == 1.0


class Judge:
    name = "script"

    def __init__(self, reply: str) -> None:
        self.said, self.asked = reply, ""

    def reply(self, prompt: str, *, max_new_tokens: int) -> str:
        self.asked = prompt
        return self.said


@pytest.mark.parametrize(
    ("task", "reply", "mention"),
    [
        ("temporal_reasoning", '{"verdict": "correct"}', "off by one counts as right"),
        ("knowledge_update", '{"verdict": "correct"}', "Older values may stand beside the new one"),
        ("single_session_preference", '[{"check": 1, "score": 1}]', "use what the user told"),
        ("abstention", '[{"check": 1, "score": 1}]', "cannot be answered from what is known"),
    ],
)
def test_a_judge_is_told_the_allowances(data: Path, task: str, reply: str, mention: str) -> None:
    asked, judge = sample(f"longmemeval/{task}"), Judge(reply)
    found = partial(open_metric, judge=judge)("A lorry.", asked.references, asked.details)
    assert found["score"] == found["by_judge"] == 1.0
    assert mention in judge.asked and "A lorry." in judge.asked


def test_the_oracle_file_is_another_file(data: Path) -> None:
    put(data, "longmemeval/longmemeval_oracle.json", [row("multi-session", answer=7)])
    assert sample("longmemeval/oracle_multi_session").references == ("7",)


def test_absent_and_malformed_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_rows_are_checked(
        data,
        "longmemeval/multi_session",
        FILE,
        row("multi-session"),
        ["question_id", "haystack_dates", "answer"],
    )
    check_data_are_asked_for("longmemeval/multi_session", monkeypatch, "longmemeval_s_cleaned.json", "MIT")


def test_long_chats_lose_their_middle(data: Path) -> None:
    long = row("multi-session")
    long["haystack_sessions"][0] += [
        {"role": "user", "content": f"I said something on day {number}."} for number in range(300)
    ]
    put(data, FILE, [long])
    check_the_cut_spares_the_question("longmemeval/multi_session", length=1100)
