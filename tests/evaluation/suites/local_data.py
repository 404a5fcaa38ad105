"""Published files made by hand, for the tests of suites that read them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from longspan.evaluation.exams import FIRST_SEED, DataExam, exam_of
from longspan.evaluation.haystacks import count_tokens
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.metrics import grade
from longspan.evaluation.published import DataMissing
from longspan.evaluation.sample import TEMPLATE_TOKENS
from longspan.evaluation.task import Sample
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer(ASSETS)


def put(root: Path, file: str, rows: Any) -> None:
    """Rows as a file below the data folder: one a line for .jsonl, one list (or object) for .json."""
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (
        [json.dumps(row, ensure_ascii=False) for row in rows]
        if path.suffix == ".jsonl"
        else [json.dumps(rows)]
    )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def exam(name: str) -> DataExam:
    suite, task = name.split("/")
    found = exam_of(name, import_module(f"longspan.evaluation.suites.{suite}").TASKS[task])
    assert isinstance(found, DataExam)
    return found


def sample(name: str, number: int = 0, length: int = 4096) -> Sample:
    built: Sample = exam(name).build(
        length_tokens=length,
        depth=None,
        seed=FIRST_SEED + number,
        haystack=noise_haystack(),
        tokenizer=TOKENIZER,
    )
    return built


def scored(name: str, prediction: str, number: int = 0, length: int = 4096) -> Mapping[str, float]:
    asked = sample(name, number, length)
    return grade(exam(name).labels.metric, prediction, asked.references, asked.details)


def check_data_are_asked_for(name: str, monkeypatch: pytest.MonkeyPatch, *mentions: str) -> None:
    """Absent data are named in one sentence."""
    monkeypatch.delenv("LONGSPAN_DATA", raising=False)
    with pytest.raises(DataMissing) as caught:
        sample(name)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in mentions), str(caught.value)


def check_rows_are_checked(
    root: Path, name: str, file: str, row: Mapping[str, Any], fields: Sequence[str]
) -> None:
    """A row without one of its fields is refused, with its number and the field."""
    for number, field in enumerate(fields):
        other = {key: value for key, value in row.items() if key != field}
        put(root, file, [row, other])
        stamp = (number + 1) * 10**9
        os.utime(root / file, ns=(stamp, stamp))
        with pytest.raises(
            ValueError, match=rf"row 2 of .* is not a row of .* as published \(KeyError: '{field}'\)"
        ):
            sample(name)


def check_the_cut_spares_the_question(name: str, number: int = 0, length: int = 600) -> None:
    """A text longer than asked for loses its middle: start, end and question stay."""
    whole, cut = sample(name, number, 60_000), sample(name, number, length)
    assert cut.question == whole.question and cut.answer_prefix == whole.answer_prefix
    assert len(cut.context) < len(whole.context)
    assert cut.context[:40] == whole.context[:40] and cut.context[-40:] == whole.context[-40:]
    parts = (cut.context, cut.question, cut.answer_prefix)
    used = TEMPLATE_TOKENS + cut.max_new_tokens + sum(count_tokens(TOKENIZER, part) for part in parts)
    assert length - 16 <= used <= length
