"""LongBench: rows as published, templates of the folder, scores by hand, columns of LongBench-E."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longspan.evaluation.suites.longbench import EXTENDED, KINDS, PROMPTS, TASKS
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
    "input": "Who painted the gate?",
    "context": "Passage 1:\nThe gate {old} was painted by Ada Lind.\n"
    + "Nothing else happened there. " * 400,
    "answers": ["Ada Lind", "Lind"],
    "length": 4100,
    "dataset": "hotpotqa",
    "language": "en",
    "all_classes": None,
    "_id": "a1",
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    return tmp_path


def test_there_are_21_tasks_and_13_extended_ones() -> None:
    assert len(KINDS) == len(PROMPTS) == 21 and len(EXTENDED) == 13
    assert set(TASKS) == {*KINDS, "trec_fixed", "lsht_fixed", *(f"{name}_e" for name in EXTENDED)}
    assert TASKS["hotpotqa_e"].subset == "hotpotqa_e" and TASKS["trec_fixed"].file == "data/trec.jsonl"


def test_a_question_in_own_words(data: Path) -> None:
    put(data, "longbench/hotpotqa.jsonl", [ROW])
    asked = sample("longbench/hotpotqa")
    assert "The gate {old} was painted by Ada Lind." in asked.context
    assert asked.question.endswith("Question: Who painted the gate?") and asked.answer_prefix == "Answer:"
    assert asked.references == ("Ada Lind", "Lind") and asked.details["length"] == 4100
    assert asked.max_new_tokens == 32
    assert scored("longbench/hotpotqa", "Ada Lind")["score"] == 1.0
    assert scored("longbench/hotpotqa", "nobody")["score"] == 0.0
    assert scored("longbench/hotpotqa", "the painter Lind")["score"] == pytest.approx(2 / 3)
    check_the_cut_spares_the_question("longbench/hotpotqa")


def test_templates_of_the_folder_are_used_as_they_are(data: Path) -> None:
    template = 'Read {"this"}.\n\n{context}\n\nSo: {input}\nAnswer:'
    put(data, "longbench/config/dataset2prompt.json", {"hotpotqa": template})
    put(data, "longbench/data/hotpotqa.jsonl", [{**ROW, "input": "What of {context}?"}])
    asked = sample("longbench/hotpotqa", length=20_000)
    assert asked.context == 'Read {"this"}.\n\n' + ROW["context"]
    assert asked.question == "So: What of {context}?\nAnswer:" and asked.answer_prefix == ""
    assert asked.details["prompt"] == "published"


def test_code_to_complete_stays_in_the_text(data: Path) -> None:
    row = {**ROW, "context": "x = 1\n", "input": "y = x +", "answers": [" 1"]}
    put(data, "longbench/repobench-p.jsonl", [row])
    asked = sample("longbench/repobench-p")
    assert asked.context.endswith("x = 1\ny = x +") and asked.question == "Next line of code:"
    assert scored("longbench/repobench-p", "# first\n 1\nz")["score"] == 1.0


def test_paragraphs_are_evidence(data: Path) -> None:
    text = "Paragraph 1: One.\n\nParagraph 2: Two, with\n\na break.\n\nParagraph 12: Twelve."
    put(data, "longbench/passage_retrieval_en.jsonl", [{**ROW, "context": text, "answers": ["Paragraph 2"]}])
    asked = sample("longbench/passage_retrieval_en")
    assert asked.evidence == ("Paragraph 2: Two, with\n\na break.",)
    assert scored("longbench/passage_retrieval_en", "Paragraph 2 or 12")["score"] == 0.5
    chinese = {**ROW, "context": "段落1：甲。\n\n段落2：乙。", "answers": ["段落1"]}
    put(data, "longbench/passage_retrieval_zh.jsonl", [chinese])
    assert sample("longbench/passage_retrieval_zh").evidence == ("段落1：甲。",)


def test_classes_are_read_in_the_first_line(data: Path) -> None:
    classes = ["Food", "Animal", "Animal organ", "Colour"]
    row = {**ROW, "input": "Question: What do owls eat?\nType:", "answers": ["Food"], "all_classes": classes}
    put(data, "longbench/trec.jsonl", [row])
    assert sample("longbench/trec").question == row["input"]
    assert scored("longbench/trec", "\nFood\nAnimal")["score"] == 1.0
    assert scored("longbench/trec", "Food or Colour")["score"] == 0.5
    put(
        data,
        "longbench/lsht.jsonl",
        [{**row, "answers": ["Animal organ and Food"], "all_classes": [*classes, "Animal organ and Food"]}],
    )
    # "Animal" and "Animal organ" are parts of the right name; the official walk passes over every second of them.
    assert scored("longbench/lsht", "Animal organ and Food")["score"] == 0.5
    assert scored("longbench/lsht_fixed", "Animal organ and Food")["score"] == 1.0


def test_extended_tasks_give_their_columns(data: Path) -> None:
    rows = [{**ROW, "length": length} for length in (3999, 4000, 8000)]
    put(data, "longbench/hotpotqa_e.jsonl", rows)
    columns = [scored("longbench/hotpotqa_e", "Ada Lind", number) for number in range(3)]
    assert [sorted(one) for one in columns] == [["0-4k", "score"], ["4-8k", "score"], ["8k+", "score"]]
    assert exam("longbench/hotpotqa_e").labels.metric_name == "qa_f1"


def test_absent_and_malformed_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_rows_are_checked(
        data,
        "longbench/qasper",
        "longbench/qasper.jsonl",
        ROW,
        ("context", "input", "answers", "all_classes"),
    )
    put(data, "longbench/musique.jsonl", [{**ROW, "answers": []}])
    with pytest.raises(ValueError, match="row 1 of .*`answers` is empty"):
        sample("longbench/musique")
    put(data, "longbench/dataset2prompt.json", ["no", "templates"])
    put(data, "longbench/qmsum.jsonl", [ROW])
    with pytest.raises(ValueError, match="dataset2prompt.json must hold one object of strings"):
        sample("longbench/qmsum")
    check_data_are_asked_for("longbench/lcc", monkeypatch, "put lcc.jsonl into", "THUDM/LongBench", "MIT")
