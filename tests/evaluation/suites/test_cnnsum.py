"""CNNSum: both prompts, the official templates where they are, Rouge-L over Chinese words."""

from __future__ import annotations

from pathlib import Path

import pytest

from longspan.evaluation.suites.cnnsum import TASKS
from tests.evaluation.suites.local_data import (
    check_data_are_asked_for,
    check_rows_are_checked,
    check_the_cut_spares_the_question,
    put,
    sample,
    scored,
)

FILE = "cnnsum/cnnsum_L_16k.jsonl"
ROW = {
    "context": "小船离开了港口。" + "海上下着雨。" * 300 + "他们回家了。",
    "summary": "小船离开港口，在雨中回家。",
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    put(tmp_path, FILE, [ROW])
    return tmp_path


def test_both_prompts(data: Path) -> None:
    end, begin = sample("cnnsum/16k", length=60_000), sample("cnnsum/16k_begin", length=60_000)
    assert end.context.endswith(ROW["context"]) and "摘要" in end.question and end.answer_prefix == "摘要："
    assert begin.context.startswith("请阅读") and begin.question == "摘要：" and begin.answer_prefix == ""
    assert end.references == begin.references == (ROW["summary"],)
    assert TASKS["128k"].max_new_tokens == 500 and TASKS["32k_begin"].max_new_tokens == 400


def test_the_official_prompts_are_used_where_they_are(data: Path) -> None:
    prompts = {
        "Prompt-IE": "甲：\n\n{}\n\n请写摘要。\n\n摘要：",
        "Prompt-IB": "请写摘要。\n节选：\n\n{}\n\n摘要：",
    }
    put(data, "cnnsum/prompts.json", prompts)
    end, begin = sample("cnnsum/16k", length=60_000), sample("cnnsum/16k_begin", length=60_000)
    assert end.context == f"甲：\n\n{ROW['context']}"
    assert (end.question, end.answer_prefix) == ("请写摘要。", "摘要：")
    assert begin.context == f"请写摘要。\n节选：\n\n{ROW['context']}" and begin.question == "摘要："


def test_scores(data: Path) -> None:
    assert scored("cnnsum/16k", ROW["summary"])["score"] == pytest.approx(1.0)
    assert scored("cnnsum/16k", "")["score"] == 0.0
    assert 0 < scored("cnnsum/16k", "小船在雨中。")["score"] < 1


def test_absent_and_malformed_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_the_cut_spares_the_question("cnnsum/16k", length=900)
    check_rows_are_checked(data, "cnnsum/16k", FILE, ROW, ["context", "summary"])
    check_data_are_asked_for("cnnsum/64k", monkeypatch, "cnnsum_XXL_64k.jsonl")
