"""Published questions: found in a local folder, read row by row, cut to a length, and refused in one sentence."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from longspan.evaluation.exams import FIRST_SEED, DataExam
from longspan.evaluation.haystacks import count_tokens
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.published import DataMissing, DataTask, Question, Source, cut_middle, read_rows
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer(ASSETS)
SOURCE = Source(hub="someone/questions", licence="CC0", citation="Someone, 2020")


def parse(row: Mapping[str, Any]) -> Iterable[Question]:
    yield Question(
        context=row["text"],
        question=row["ask"],
        references=(row["gold"],),
        evidence=(f"It is {row['gold']}.",),
    )


TASK = DataTask(
    suite="asked", source=SOURCE, file="data/asked.jsonl", parse=parse, max_new_tokens=8,
    ability="retrieval", diffusion="low", scope="low",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    (tmp_path / "asked" / "data").mkdir(parents=True)
    return tmp_path / "asked" / "data"


def write(folder: Path, *rows: Any) -> None:
    (folder / "asked.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def build(length: int, number: int = 0) -> Any:
    return DataExam(name="asked/it", task=TASK).build(
        length_tokens=length,
        depth=None,
        seed=FIRST_SEED + number,
        haystack=noise_haystack(),
        tokenizer=TOKENIZER,
    )


def test_a_question_is_asked_as_published_and_its_context_loses_its_middle(folder: Path) -> None:
    filler = " ".join(f"Line {number} says nothing." for number in range(400))
    write(folder, {"text": f"It is blue. {filler} The end.", "ask": "What is it?", "gold": "blue"})
    long, short = build(8000), build(300)
    assert long.context == f"It is blue. {filler} The end."
    assert long.depths == (0.0,) and long.answer == "blue"
    assert (long.truncated, short.truncated) == (False, True)
    assert short.context.startswith("It is blue. Line 0") and short.context.endswith("The end.")
    assert (
        260 <= count_tokens(TOKENIZER, short.context) + count_tokens(TOKENIZER, "\n\nWhat is it?") + 20 <= 300
    )


def test_there_are_as_many_items_as_questions(folder: Path) -> None:
    write(folder, *({"text": f"It is {word}.", "ask": "What?", "gold": word} for word in ("red", "green")))
    exam = DataExam(name="asked/it", task=TASK)
    assert exam.num_items() == 2
    assert build(200, 1).references == ("green",)
    with pytest.raises(ValueError, match="asked/it has 2 questions, number 2 was asked for; ask for fewer"):
        build(200, 2)
    with pytest.raises(ValueError, match="alone need .* tokens, length_tokens is 20; ask for more"):
        build(20)


def test_absent_data_say_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LONGSPAN_DATA", raising=False)
    with pytest.raises(
        DataMissing, match=r"put asked.jsonl into DIR/asked and pass --data DIR \(hub data set"
    ):
        build(200)
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    with pytest.raises(
        DataMissing, match=r"put asked.jsonl into .*/asked \(.*licence CC0\), or let --download"
    ):
        build(200)


def test_a_file_of_another_folder_is_not_taken(folder: Path) -> None:
    row = {"text": "It is red.", "ask": "What?", "gold": "red"}
    (folder.parent / "copy" / "data").mkdir(parents=True)
    (folder.parent / "copy" / "data" / "asked.jsonl").write_text(json.dumps(row))
    assert build(200).references == ("red",)
    (folder.parent / "copy" / "data").rename(folder.parent / "copy" / "other")
    with pytest.raises(DataMissing):
        build(200)
    (folder.parent / "copy" / "other" / "asked.jsonl").rename(folder.parent / "asked.jsonl")
    assert build(200).references == ("red",)


def test_a_changed_file_is_read_anew(folder: Path) -> None:
    write(folder, {"text": "It is red.", "ask": "What?", "gold": "red"})
    assert build(200).references == ("red",)
    write(folder, {"text": "It is tan.", "ask": "What?", "gold": "tan"})
    os.utime(folder / "asked.jsonl", ns=(1, 1))
    assert build(200).references == ("tan",)


def test_malformed_data_name_the_place(folder: Path) -> None:
    (folder / "asked.jsonl").write_text('{"text": "a", "ask": "b", "gold": "c"}\n{"text": ')
    with pytest.raises(ValueError, match="asked.jsonl line 2 is not JSON; repair the line"):
        build(200)
    write(folder, {"text": "a", "ask": "b"})
    with pytest.raises(
        ValueError, match=r"row 1 of .*asked.jsonl is not a row of asked as published \(KeyError: 'gold'\)"
    ):
        build(200)
    (folder / "asked.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        build(200)
    (folder / "asked.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no question"):
        build(200)
    (folder / "asked.jsonl").write_text("[1, 2]")
    with pytest.raises(ValueError, match="holds int values where rows"):
        build(200)


def test_rows_of_every_format(tmp_path: Path) -> None:
    rows = [{"a": "1", "b": "x\u2028y"}, {"a": "2", "b": "z"}]
    (tmp_path / "one.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    (tmp_path / "glued.jsonl").write_text("".join(json.dumps(row) for row in rows))
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "data.json").write_text(json.dumps({"version": 2, "data": rows}))
    (tmp_path / "table.csv").write_text("a,b\n1,x\u2028y\n2,z\n", encoding="utf-8")
    for path in sorted(tmp_path.iterdir()):
        assert [dict(row) for row in read_rows(path)] == rows, path
    (tmp_path / "rows.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match="ending '.pkl'; allowed are"):
        list(read_rows(tmp_path / "rows.pkl"))


FAKE_DATASETS = """
asked = []


def load_dataset(name, subset, *, split):
    asked.append((name, subset, split))
    if split == "broken":
        raise OSError("no such data set")
    return iter([{"text": "It is red.", "ask": "What?", "gold": "red"}])
"""


def test_the_hub_is_asked_only_when_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "datasets.py").write_text(FAKE_DATASETS)
    monkeypatch.syspath_prepend(tmp_path / "library")
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    with pytest.raises(DataMissing):
        build(200)
    monkeypatch.setenv("LONGSPAN_DOWNLOAD", "1")
    assert build(200).references == ("red",)
    assert import_module("datasets").asked == [("someone/questions", None, "test")]
    with pytest.raises(
        DataMissing, match="could not be loaded from the hub .no such data set.; put data/asked.jsonl into"
    ):
        replace(TASK, split="broken").questions()


def test_cutting_keeps_both_ends_exactly() -> None:
    text = " ".join(str(number) for number in range(2000))
    cut, was_cut = cut_middle(text, 101, TOKENIZER)
    assert was_cut and count_tokens(TOKENIZER, cut) in range(99, 104)
    assert text.startswith(cut[: len(cut) // 3]) and text.endswith(cut[-len(cut) // 3 :])
    assert cut_middle("short text", 101, TOKENIZER) == ("short text", False)
