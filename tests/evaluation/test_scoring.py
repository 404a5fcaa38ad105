"""Files of predictions made elsewhere get the task's metric, or one sentence about the line that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longspan.errors import UserInputError
from longspan.evaluation.registry import find_task
from longspan.evaluation.scoring import score_predictions


def metric(name: str = "ruler/niah_multivalue") -> Any:
    labels = find_task(name).exam.labels
    assert labels is not None
    return labels.metric


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path


def test_the_mean_is_on_a_scale_to_100(tmp_path: Path) -> None:
    rows = [
        {"pred": "It is 12 and\u2028 34.", "answers": ["12", "34"], "length": 7},
        {"pred": "Only 12", "answers": ["12", "34"], "all_classes": None},
        {"prediction": "nothing", "references": ["12", "34"]},
        {"pred": "", "answers": "12"},
    ]
    found = score_predictions(metric(), write(tmp_path / "p.jsonl", *rows))
    assert (found.score, found.num_samples) == (pytest.approx(37.5), 4)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"pred": "a"}', "line 1 has no `answers`"),
        ('{"answers": ["a"]}', "line 1 has no `pred`"),
        ('{"pred": 3, "answers": ["a"]}', "line 1: `pred` is int; give a string"),
        ('{"pred": "a", "answers": []}', "line 1: `answers` is empty"),
        ("[1]", "line 1 is not an object"),
        ('{"pred": "a",', "line 1 is not JSON"),
        ("", "holds no prediction"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    (tmp_path / "p.jsonl").write_text(line)
    with pytest.raises(UserInputError, match=sentence):
        score_predictions(metric(), tmp_path / "p.jsonl")
