"""DetectiveQA: novels up to the answer, clues as evidence, options and steps scored."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from longspan.evaluation.metrics.detectiveqa_rules import chosen_letter, step_recall
from longspan.evaluation.published import DataMissing
from tests.evaluation.suites.local_data import (
    check_data_are_asked_for,
    check_the_cut_spares_the_question,
    exam,
    put,
    sample,
    scored,
)

FILE = "detectiveqa/anno_data_en/human_anno/103.json"
QUESTION: dict[str, Any] = {
    "question": "Who took the lamp?",
    "answer": "B",
    "options": {"A": "Ada", "B": "Ben", "C": "Cora", "D": "Dan"},
    "distraction": {},
    "reasoning": ["Ben carried muddy boots into the kitchen", "Only the thief crossed the garden"],
    "answer_position": 4,
    "clue_position": [2, -1],
}
NOVEL = "[1] It rained.\n[2] Ben had muddy boots,\nand hid them.\n[3] Tea was served.\n[4] Ben did it, said the judge.\n"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    put(
        tmp_path,
        FILE,
        {"novel_id": 103, "num_paragraphs": 4, "time_cost": 1, "questions": [QUESTION, QUESTION]},
    )
    for language in ("en", "zh"):
        novels = tmp_path / "detectiveqa" / f"novel_data_{language}"
        novels.mkdir(parents=True)
        (novels / "103-the lamp.txt").write_text(
            NOVEL.replace("It rained", "It rained." if language == "en" else "下雨了")
        )
    return tmp_path


def test_a_novel_ends_before_the_answer(data: Path) -> None:
    asked = sample("detectiveqa/human_en")
    assert exam("detectiveqa/human_en").num_items() == 2
    assert asked.context.endswith("[3] Tea was served.") and "said the judge" not in asked.context
    assert asked.evidence == ("[2] Ben had muddy boots,\nand hid them.",)
    assert "A. Ada\nB. Ben\nC. Cora\nD. Dan" in asked.question and asked.details["id"] == "103/0"


def test_every_file_of_a_folder_is_read(data: Path) -> None:
    put(data, FILE.replace("103", "99"), [{"novel_id": 103, "questions": [QUESTION]}])
    put(
        data,
        FILE.replace("human_anno", "AIsup_anno"),
        [{"novel_id": 103, "questions": [{**QUESTION, "answer": "A"}]}],
    )
    put(data, FILE.replace("_en", "_zh"), [{"novel_id": 103, "questions": [QUESTION]}])
    assert exam("detectiveqa/human_en").num_items() == 3
    assert sample("detectiveqa/assisted_en").references == ("A",)
    assert (
        "下雨了" in sample("detectiveqa/human_zh").context
        and "问题：" in sample("detectiveqa/human_zh").question
    )


def test_scores(data: Path) -> None:
    asked = sample("detectiveqa/human_en")
    assert scored("detectiveqa/human_en", asked.answer) == {"score": 1.0, "steps": 1.0}
    half = json.dumps({"answer": "B", "reasoning": "Muddy boots in the kitchen: Ben."})
    assert scored("detectiveqa/human_en", half) == {"score": 1.0, "steps": 0.5}
    assert scored("detectiveqa/human_en", "A. It was Ada.") == {"score": 0.0, "steps": 0.0}


def test_letters() -> None:
    assert chosen_letter('{"reasoning": "Not A.", "answer": "C"}') == "C"
    assert chosen_letter("The answer is (D).") == "D" and chosen_letter("答案：B") == "B"
    assert chosen_letter("I think C fits, not A") == "C" and chosen_letter("nobody") is None
    assert chosen_letter("The answer is Ada") is None
    assert step_recall("小船离港", ["小船离开港口"]) == 1.0


def test_a_guesser_picks_a_letter(data: Path) -> None:
    labels, asked = exam("detectiveqa/human_en").labels, sample("detectiveqa/human_en")
    assert labels.guess is not None and labels.chance == 0.25
    rng = random.Random(0)
    assert {chosen_letter(labels.guess(rng, asked)) for _ in range(60)} == set("ABCD")


def test_absent_and_malformed_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = [{**QUESTION, "answer": "E"}, {key: value for key, value in QUESTION.items() if key != "options"}]
    put(data, FILE, [{"novel_id": 103, "questions": bad}])
    with pytest.raises(
        ValueError, match=r"row 1 of anno_data_en.* has the answer 'E'; it must be one of A, B, C, D"
    ):
        sample("detectiveqa/human_en")
    with pytest.raises(ValueError, match=r"row 2 of .*KeyError: 'options'"):
        sample("detectiveqa/human_en", 1)
    put(data, FILE, [{"novel_id": 7, "questions": [QUESTION]}])
    with pytest.raises(DataMissing, match=r"put novel_data_en/7-\*.txt into"):
        sample("detectiveqa/human_en")
    (data / "detectiveqa" / "novel_data_en" / "7-plain.txt").write_text("No numbers here.")
    with pytest.raises(ValueError, match="has no paragraphs numbered"):
        sample("detectiveqa/human_en")
    check_data_are_asked_for("detectiveqa/human_en", monkeypatch, "anno_data_en/human_anno/*.json")


def test_a_long_novel_loses_its_middle(data: Path) -> None:
    long = "".join(f"[{number}] Nothing happened on day {number}.\n" for number in range(1, 400))
    (data / "detectiveqa" / "novel_data_en" / "103-the lamp.txt").write_text(long)
    put(data, FILE, [{"novel_id": 103, "questions": [{**QUESTION, "answer_position": 399}]}])
    check_the_cut_spares_the_question("detectiveqa/human_en", length=1600)
