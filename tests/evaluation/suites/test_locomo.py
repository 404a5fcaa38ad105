"""LoCoMo: a conversation by its dates, questions by category, the evidence turns, scores by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from longspan.evaluation.scoring import score_predictions
from longspan.evaluation.suites.locomo import TASKS
from tests.evaluation.suites.local_data import (
    check_data_are_asked_for,
    check_rows_are_checked,
    check_the_cut_spares_the_question,
    exam,
    put,
    sample,
    scored,
)

FILE = "locomo/locomo10.json"
ROW: dict[str, Any] = {
    "sample_id": "conv-1",
    "conversation": {
        "speaker_a": "Ada",
        "speaker_b": "Ben",
        "session_10_date_time": "9:00 am on 2 June, 2023",
        "session_10": [{"speaker": "Ben", "dia_id": "D10:1", "text": "I moved to Oslo last week."}],
        "session_2_date_time": "4:10 pm on 1 May, 2023",
        "session_2": [
            {"speaker": "Ada", "dia_id": "D2:1", "text": "I keep bees and goats now."},
            {"speaker": "Ben", "dia_id": "D2:2", "text": "Look!", "blip_caption": "a red canoe"},
        ],
    },
    "qa": [
        {"question": "What does Ada keep?", "answer": "bees, goats", "evidence": ["D2:01; D2:2", "D"], "category": 1},
        {"question": "When did Ben move?", "answer": 2023, "evidence": ["D10:1"], "category": 2},
        {"question": "Is Ada outdoors a lot?", "answer": "Likely yes; she keeps bees", "evidence": [], "category": 3},
        {"question": "What did Ben show?", "answer": "a red canoe", "evidence": ["D2:2"], "category": 4},
        {"question": "What does Ben keep?", "evidence": ["D2:1"], "category": 5, "adversarial_answer": "bees"},
    ],
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    put(tmp_path, FILE, [ROW])
    return tmp_path


def test_sessions_stand_in_the_order_of_their_numbers(data: Path) -> None:
    text = sample("locomo/single_hop").context
    assert text.startswith("Below is a conversation between Ada and Ben")
    assert text.index("DATE: 4:10 pm on 1 May, 2023") < text.index("DATE: 9:00 am on 2 June, 2023")
    assert 'Ben said, "Look!" and shared a red canoe.' in text


def test_evidence_is_named_by_turns(data: Path) -> None:
    both = ('Ada said, "I keep bees and goats now."', 'Ben said, "Look!" and shared a red canoe.')
    assert sample("locomo/multi_hop").evidence == both
    assert sample("locomo/temporal").evidence == ('Ben said, "I moved to Oslo last week."',)
    assert sample("locomo/open_domain").evidence == sample("locomo/adversarial").evidence == ()


@pytest.mark.parametrize("name", TASKS)
def test_the_ideal_answer_scores_all_and_another_nothing(data: Path, name: str) -> None:
    asked = sample(f"locomo/{name}")
    assert scored(f"locomo/{name}", asked.answer)["score"] == 1.0
    assert scored(f"locomo/{name}", "a purple walrus")["score"] == 0.0


def test_partial_scores(data: Path) -> None:
    assert scored("locomo/multi_hop", "bees")["score"] == 0.5
    assert scored("locomo/single_hop", "a canoe")["score"] == pytest.approx(2 / 3)
    assert scored("locomo/open_domain", "Likely")["score"] == pytest.approx(2 / 3)
    assert scored("locomo/temporal", "in 2023")["score"] == pytest.approx(2 / 3)


def test_adversarial_questions(data: Path) -> None:
    asked, fixed = sample("locomo/adversarial"), sample("locomo/adversarial_fixed")
    assert "Not mentioned in the conversation" in asked.question and "bees" in asked.question
    assert "bees" not in fixed.question
    assert scored("locomo/adversarial", "The text does not say.")["score"] == 0.0
    assert scored("locomo/adversarial_fixed", "The text does not say.")["score"] == 1.0
    assert scored("locomo/adversarial_fixed", "Not mentioned, but bees.")["score"] == 0.0


def test_predictions_made_elsewhere(data: Path) -> None:
    rows: list[Mapping[str, Any]] = [
        {"pred": "bees", "answers": ["bees, goats"], "category": 1},
        {"pred": "Not mentioned.", "answers": ["-"], "category": 5},
    ]
    put(data, "preds.jsonl", rows)
    assert score_predictions(TASKS["multi_hop"].metric, data / "preds.jsonl").score == 75.0


def test_absent_and_malformed_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_rows_are_checked(data, "locomo/single_hop", FILE, ROW, ["conversation", "qa"])
    check_data_are_asked_for("locomo/single_hop", monkeypatch, "locomo10.json", "CC BY-NC 4.0")


def test_a_long_conversation_loses_its_middle(data: Path) -> None:
    turns = [
        {"speaker": "Ada", "dia_id": f"D2:{number}", "text": f"Nothing new on day {number}."}
        for number in range(1, 300)
    ]
    put(data, FILE, [{**ROW, "conversation": {**ROW["conversation"], "session_2": turns}}])
    check_the_cut_spares_the_question("locomo/single_hop")
    assert exam("locomo/single_hop").num_items() == 1
