"""LIBRA: rows as published, instructions of the official configuration, right answers less wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longspan.evaluation.metrics import grade
from longspan.evaluation.metrics.libra_rules import libra_count, libra_em, libra_qa
from longspan.evaluation.scoring import score_predictions
from longspan.evaluation.suites.libra import TASKS
from tests.evaluation.suites.local_data import (
    check_data_are_asked_for,
    check_the_cut_spares_the_question,
    put,
    sample,
    scored,
)

PASSKEY = "libra/passkey/test-00000-of-00001.jsonl"
ROW: dict[str, Any] = {
    "context": "Ключ — 48213. " + "Трава зелёная. " * 400,
    "input": "Какой ключ?",
    "positive_outputs": ["48213"],
    "negative_outputs": ["11111", "22222"],
    "length": "4k",
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    put(tmp_path, PASSKEY, [ROW])
    return tmp_path


def test_there_are_21_tasks_of_one_data_set() -> None:
    assert len(TASKS) == 21
    assert all(task.subset == name and task.source.hub == "ai-forever/LIBRA" for name, task in TASKS.items())


def test_rows_of_a_task_come_from_its_own_folder(data: Path) -> None:
    put(data, PASSKEY.replace("passkey", "ru_qasper"), [{**ROW, "input": "О чём статья?"}])
    assert sample("libra/passkey").question.endswith("Вопрос: Какой ключ?")
    assert sample("libra/ru_qasper").question.endswith("О чём статья?")
    with pytest.raises(ValueError, match="ru_tpo"):
        sample("libra/ru_tpo")


def test_parquet_files_of_the_hub(data: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (data / PASSKEY).unlink()
    parquet.write_table(arrow.Table.from_pylist([ROW]), (data / PASSKEY).with_suffix(".parquet"))
    assert sample("libra/passkey").references == ("48213",)


def test_a_question_and_its_scores(data: Path) -> None:
    asked = sample("libra/passkey")
    assert "Ключ — 48213." in asked.context and asked.answer_prefix == "Ответ:" and asked.max_new_tokens == 16
    assert asked.details == {"length": "4k", "negative_outputs": ["11111", "22222"]}
    assert scored("libra/passkey", asked.answer)["score"] == 1.0
    assert scored("libra/passkey", "48213 или 11111")["score"] == 0.5
    assert scored("libra/passkey", "48213, 11111, 22222")["score"] == 0.0
    assert scored("libra/passkey", "0")["score"] == 0.0
    check_the_cut_spares_the_question("libra/passkey")


def test_the_official_instructions_are_used_where_they_are(data: Path) -> None:
    template = "Запомни ключ.\n{context}\nТолько ключ.\nВопрос:{input}\nОтвет:"
    put(data, "libra/configs/datasets_config.json", {"passkey": {"instruction": template}})
    asked = sample("libra/passkey", length=60_000)
    assert asked.context == f"Запомни ключ.\n{ROW['context']}"
    assert asked.question == "Только ключ.\nВопрос:Какой ключ?" and asked.answer_prefix == "Ответ:"


def test_metrics() -> None:
    assert grade(libra_count, "5 из 8", ("5",))["score"] == 0.5
    assert grade(libra_qa, "Синий кит", ("синий большой кит",))["score"] == pytest.approx(0.8)
    assert grade(libra_em, "Петя дома", ("Вася", "Петя"), {"negative_outputs": []})["score"] == 1.0
    assert grade(libra_em, "петя", ("Петя",))["score"] == 0.0
    # one of four wrong answers named
    assert grade(libra_em, "да, а", ("да",), {"negative_outputs": ["а", "б", "в", "г"]})["score"] == 0.75


def test_predictions_made_elsewhere(tmp_path: Path) -> None:
    rows = [
        {"pred": "48213", "answers": ["48213"], "negative_outputs": []},
        {"pred": "48213 11111", "answers": ["48213"], "negative_outputs": ["11111", "2"]},
    ]
    put(tmp_path, "preds.jsonl", rows)
    # "2" stands in 48213 as well: both wrong answers are named
    assert score_predictions(TASKS["passkey"].metric, tmp_path / "preds.jsonl").score == 50.0


def test_absent_and_malformed_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(data, PASSKEY, [{key: value for key, value in ROW.items() if key != "positive_outputs"}])
    with pytest.raises(
        ValueError, match=r"row 1 of passkey/test-.* is not a row of libra .*'positive_outputs'"
    ):
        sample("libra/passkey")
    check_data_are_asked_for(
        "libra/passkey", monkeypatch, "passkey.parquet", "ai-forever/LIBRA", "--download"
    )
