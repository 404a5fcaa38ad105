"""LooGLE: both published layouts, its kinds of questions, scores and clozes by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from longspan.evaluation.metrics.loogle_rules import bleu
from tests.evaluation.suites.local_data import (
    check_data_are_asked_for,
    check_rows_are_checked,
    check_the_cut_spares_the_question,
    exam,
    put,
    sample,
    scored,
)

TEXT = "Lind was born in Oss in 1912.\nShe had two brothers. " + "Later she drew maps. " * 400
PAIRS = [
    {
        "Q": "Where was Lind born?",
        "A": "In the town of Oss.",
        "S": ["Lind was born in Oss in 1912.", "not in the text"],
        "type": "computation",
    },
    {"Q": "Order: 1. birth 2. maps", "A": "1, 2", "S": "She had two brothers.", "type": "timeline_reorder"},
]
ROW: dict[str, Any] = {"input": TEXT, "title": "Lind", "qa_pairs": repr(PAIRS), "output": "none"}
MASKS = {"<mask-0>": "Ada Lind", "<mask-1>": "Oss"}
CLOZE: dict[str, Any] = {
    **ROW,
    "qa_pairs": repr([{"Q": "<mask-0> came from <mask-1>.", "A": MASKS, "S": []}]),
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    return tmp_path


def test_each_pair_of_a_text_is_a_question(data: Path) -> None:
    put(data, "loogle/longdep_qa.jsonl", [ROW])
    assert exam("loogle/longdep_qa").num_items() == 2
    asked = sample("loogle/longdep_qa")
    assert asked.question.endswith("Question: Where was Lind born?") and asked.answer_prefix == "Answer:"
    assert asked.evidence == ("Lind was born in Oss in 1912.",) and asked.references == (
        "In the town of Oss.",
    )
    assert sample("loogle/longdep_qa", 1).evidence == ("She had two brothers.",)
    assert exam("loogle/longdep_qa_reorder").num_items() == 1
    assert sample("loogle/longdep_qa_reorder").references == ("1, 2",)
    with pytest.raises(ValueError, match="holds no question of loogle"):
        sample("loogle/longdep_qa_retrieval")
    check_the_cut_spares_the_question("loogle/longdep_qa", length=900)


def test_the_hubs_layout_is_read_too(data: Path) -> None:
    row = {
        "context": TEXT,
        "question": "Where was Lind born?",
        "answer": "In Oss.",
        "evidence": '["She had two brothers."]',
        "title": "Lind",
        "doc_id": "d1",
        "task": "shortdep_qa",
    }
    put(data, "loogle/data/shortdep_qa.jsonl", [row])
    asked = sample("loogle/shortdep_qa")
    assert asked.references == ("In Oss.",) and asked.evidence == ("She had two brothers.",)


def test_scores_worked_out_by_hand(data: Path) -> None:
    put(data, "loogle/longdep_qa.jsonl", [ROW])
    assert scored("loogle/longdep_qa", "In the town of Oss.")["score"] == 1.0
    found = scored("loogle/longdep_qa", "In Oss the town")
    assert found["score"] == pytest.approx(3 / 5)  # In the town
    assert found["rouge1"] == pytest.approx(4 / 5) and found["rouge2"] == pytest.approx(1 / 4)  # the town
    assert found["bleu1"] == pytest.approx(3 / 4 * math.exp(1 - 5 / 4))  # "Oss." keeps its full stop
    assert found["bleu4"] == 0.0
    assert scored("loogle/longdep_qa", "")["score"] == 0.0
    assert bleu("a b a b c", "a b a b", 4) == pytest.approx(1 / 2)


def test_summaries(data: Path) -> None:
    put(
        data, "loogle/longdep_summarization.jsonl", [{**ROW, "qa_pairs": "none", "output": "Lind drew maps."}]
    )
    asked = sample("loogle/longdep_summarization")
    assert asked.references == ("Lind drew maps.",) and asked.answer_prefix == "Summary:"
    assert scored("loogle/longdep_summarization", "Lind drew")["score"] == pytest.approx(2 / 3)


def test_clozes(data: Path) -> None:
    put(data, "loogle/shortdep_cloze.jsonl", [CLOZE])
    assert json.loads(sample("loogle/shortdep_cloze").references[0]) == MASKS
    for answer in (json.dumps(MASKS), repr(MASKS)):
        assert scored("loogle/shortdep_cloze", answer) == {"score": 1.0, "matched": 2.0, "masks": 2.0}
    half = "{'<mask-0>': 'Lind', '<mask-1>': 'Oss'}"
    assert scored("loogle/shortdep_cloze", half)["score"] == 0.5
    assert scored("loogle/shortdep_cloze_partial", half)["score"] == 1.0
    for answer in ("Ada Lind and Oss", "__import__('os')", "[1]", ""):
        assert scored("loogle/shortdep_cloze", answer)["score"] == 0.0


def test_templates_of_the_folder_are_used(data: Path) -> None:
    template = "Fill, as in {{'<mask-0>': 'Bo'}}.\n{input}\n Gaps: {Q} Which?\nAnswer:"
    put(data, "loogle/config/task2prompt.json", {"shortdep_cloze": template})
    put(data, "loogle/shortdep_cloze.jsonl", [CLOZE])
    asked = sample("loogle/shortdep_cloze", length=20_000)
    assert asked.context.startswith("Fill, as in {'<mask-0>': 'Bo'}.\nLind was born")
    assert asked.question == " Gaps: <mask-0> came from <mask-1>. Which?\nAnswer:"


def test_absent_and_malformed_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_rows_are_checked(data, "loogle/longdep_qa", "loogle/longdep_qa.jsonl", ROW, ("input", "qa_pairs"))
    put(data, "loogle/shortdep_qa.jsonl", [{**ROW, "qa_pairs": "[{'Q': 1"}])
    with pytest.raises(ValueError, match=r"row 1 of .*shortdep_qa.jsonl is not a row of loogle as published"):
        sample("loogle/shortdep_qa")
    check_data_are_asked_for(
        "loogle/shortdep_cloze", monkeypatch, "put shortdep_cloze.jsonl into", "LooGLE", "CC BY-SA 4.0"
    )
