"""LV-Eval: eleven tasks at five lengths, keywords, and the words that prove nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longspan.evaluation.metrics.lveval_rules import lveval_f1
from longspan.evaluation.suites.lveval import KINDS, LENGTHS, TASKS
from tests.evaluation.suites.local_data import (
    check_data_are_asked_for,
    check_rows_are_checked,
    check_the_cut_spares_the_question,
    put,
    sample,
    scored,
)

ROW: dict[str, Any] = {
    "input": "Where does the ferry land?",
    "context": "### Passage 1\nThe ferry lands at the north pier of Oss.\n" + "Gulls fly by. " * 500,
    "answers": ["at the north pier of Oss", "Oss"],
    "length": 15_500,
    "dataset": "hotpotwikiqa_mixup_16k",
    "language": "en",
    "answer_keywords": "north pier of",
    "confusing_facts": "The ferry lands at the south pier.",
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    return tmp_path


def test_every_task_has_five_lengths() -> None:
    assert len(KINDS) == 11 and set(TASKS) == {f"{name}_{length}" for name in KINDS for length in LENGTHS}
    assert TASKS["lic_mixup_256k"].file == "lic_mixup/lic_mixup_256k.jsonl"
    assert {task.max_new_tokens for name, task in TASKS.items() if "factrecall" in name} == {16}


def test_keywords_decide_and_the_first_reference_counts(data: Path) -> None:
    put(data, "lveval/hotpotwikiqa_mixup/hotpotwikiqa_mixup_16k.jsonl", [ROW])
    name = "lveval/hotpotwikiqa_mixup_16k"
    asked = sample(name)
    assert (
        asked.question.endswith("Question: Where does the ferry land?") and asked.answer_prefix == "Answer:"
    )
    assert scored(name, "At the north pier of Oss.")["score"] == 1.0
    assert scored(name, "the north pier")["score"] == pytest.approx(4 / 7)
    assert scored(name, "Oss")["score"] == 0.0  # no keyword, though the second reference
    assert scored(name, "of at Oss")["score"] == pytest.approx(2 * 3 / 8)  # "of" is one of three keywords
    (data / "lveval" / "metrics.py").write_text("import os\nABANDON_WORDS_EN = ['of']\n")
    assert scored(name, "of at Oss")["score"] == 0.0  # and proves nothing
    (data / "lveval" / "metrics.py").write_text("ABANDON_WORDS_EN = open('x')\n")
    with pytest.raises(ValueError, match="is not LV-Eval's scorer"):
        scored(name, "of at Oss")
    check_the_cut_spares_the_question(name)


def test_files_of_predictions_name_the_keywords_otherwise() -> None:
    details = {"gold_ans": "north pier", "answers": ["north pier"]}
    assert lveval_f1("north pier", ["north pier"], details) == 1.0
    assert (
        lveval_f1("a pier", ["a long stone one"], {"gold_ans": "north wall stairs lamps boats anchors"})
        == 0.0
    )


def test_plain_f1_and_chinese(data: Path) -> None:
    put(
        data,
        "lveval/factrecall_en_32k.jsonl",
        [{key: value for key, value in ROW.items() if key != "answer_keywords"}],
    )
    assert scored("lveval/factrecall_en_32k", "Oss")["score"] == pytest.approx(2 / 6)
    chinese = {
        **ROW,
        "input": "渡轮停在哪里？",
        "context": "渡轮停在北边的码头。" * 40,
        "answers": ["北边的码头"],
        "answer_keywords": "码头",
        "language": "zh",
    }
    for name in ("lic_mixup", "dureader_mixup", "factrecall_zh"):
        put(data, f"lveval/{name}_16k.jsonl", [chinese])
        assert sample(f"lveval/{name}_16k").question.endswith("问题：渡轮停在哪里？")
        assert scored(f"lveval/{name}_16k", "北边的码头")["score"] == pytest.approx(1.0)
        assert scored(f"lveval/{name}_16k", "山上")["score"] == 0.0


def test_absent_and_malformed_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "lveval/loogle_CR_mixup_64k"
    check_rows_are_checked(data, name, f"{name}.jsonl", ROW, ("context", "input", "answers", "length"))
    check_data_are_asked_for(
        "lveval/cmrc_mixup_128k", monkeypatch, "put cmrc_mixup_128k.jsonl into", "Infinigence/LVEval"
    )
