"""Pairs by sample: what counts, what is left out and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longspan.errors import UserInputError
from longspan.evaluation.comparison import compare_rows, compare_with, p_text, points_text, read_rows
from longspan.evaluation.metrics.statistics import paired_difference, sign_test


def row(seed: int, score: float | None, spec: str = "dense", **fields: Any) -> dict[str, Any]:
    base = {
        "key": f"{spec}-{seed}-{fields}", "status": "done", "kind": "answer", "spec": spec, "task": "ruler/vt",
        "length_tokens": 4096, "depth": None, "seed": seed, "fingerprint": "f00d", "haystack": "sea:1",
        "generator": "g1", "score": score,
    }  # fmt: skip
    return base | fields


def skipped(seed: int, spec: str = "dense", **fields: Any) -> dict[str, Any]:
    return row(seed, None, spec, status="skipped", reason="out of memory", **fields)


def compared(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> Any:
    return compare_rows(mine, theirs, first="A", second="B")


def test_wins_losses_and_the_mean_difference() -> None:
    mine = [row(1, 1.0), row(2, 1.0), row(3, 0.5), row(4, 0.0), row(5, 1.0, task="facts/single")]
    theirs = [row(4, 0.0), row(3, 1.0), row(2, 0.0), row(1, 0.25), row(5, 1.0, task="facts/single")]
    found = compared(mine, theirs)
    tracing, facts = found.tasks
    assert (tracing.task, tracing.wins, tracing.losses, tracing.ties) == ("ruler/vt", 2, 1, 1)
    assert (tracing.mean, tracing.other_mean, tracing.difference) == (0.625, 0.3125, 0.3125)
    assert tracing.p_value == sign_test(2, 1)
    low, high = tracing.interval
    _, interval = paired_difference([1.0, 1.0, 0.5, 0.0], [0.25, 0.0, 1.0, 0.0])
    assert (low, high, tracing.interval_kind) == (interval.low, interval.high, "bootstrap")
    assert (facts.task, facts.ties, facts.interval_kind) == ("facts/single", 1, "rule")
    assert found.overall is not None
    assert (found.overall.num_pairs, found.overall.difference) == (5, pytest.approx(0.25))
    assert found.unpaired == ()
    assert json.loads(json.dumps(found.as_dict()))["overall"]["wins"] == 2


@pytest.mark.parametrize(
    ("mine", "theirs", "reason"),
    [
        (row(1, 1.0), row(2, 1.0), "not measured with B"),
        (row(1, 1.0), row(1, 1.0, depth=0.5), "not measured with B"),
        (row(1, 1.0), row(1, 1.0, length_tokens=8192), "not measured with B"),
        (row(1, 1.0), row(1, 1.0, fingerprint="beef"), "measured on another model"),
        (row(1, 1.0), row(1, 1.0, haystack="sea:2"), "another haystack"),
        (row(1, 1.0), row(1, 1.0, generator="g2"), "another version of the task"),
        (row(1, 1.0), skipped(1), "skipped with B: out of memory"),
        (row(1, 1.0), row(1, None, nll=2.0), "has a likelihood, no score"),
    ],
)
def test_what_is_no_pair_is_counted_and_named(
    mine: dict[str, Any], theirs: dict[str, Any], reason: str
) -> None:
    found = compared([mine, row(9, 1.0)], [theirs, row(9, 1.0)])
    assert found.overall is not None and found.overall.num_pairs == 1
    assert reason in [left.reason for left in found.unpaired]
    assert found.num_unpaired == sum(left.count for left in found.unpaired) >= 1
    assert {left.task for left in found.unpaired} == {"ruler/vt"}


def test_of_rows_for_one_sample_the_last_measured_one_counts() -> None:
    found = compared([row(1, 0.0), row(1, 1.0, device="cuda"), skipped(1, device="tpu")], [row(1, 0.0)])
    assert found.overall is not None and (found.overall.wins, found.overall.num_pairs) == (1, 1)
    (left,) = found.unpaired
    assert (left.reason, left.count) == ("measured more than once with A, the last one counts", 2)


def test_every_spec_against_one() -> None:
    rows = [row(1, 1.0), row(1, 0.0, "truncate"), row(1, 1.0, "snapkv")]
    found = compare_with(rows, "dense")
    assert [(one.first, one.second, one.overall and one.overall.losses) for one in found] == [
        ("truncate", "dense", 1), ("snapkv", "dense", 0),
    ]  # fmt: skip
    assert compare_with(rows, "pi") == []
    assert compared([], []).overall is None


def test_reading_changes_nothing_and_passes_over_a_cut_line(tmp_path: Path) -> None:
    lines = [json.dumps(row(seed, 1.0)) for seed in (1, 2)]
    file = tmp_path / "results.jsonl"
    file.write_text("\n".join(lines) + "\n" + lines[0][:20])
    before = file.read_bytes()
    assert (
        [found["seed"] for found in read_rows(tmp_path)]
        == [1, 2]
        == [found["seed"] for found in read_rows(file)]
    )
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "there is no results file"), ("", "holds no rows"), ("[1]\n", "line 1 is not a result row")],
)
def test_what_is_no_results_file_is_said(tmp_path: Path, content: str | None, sentence: str) -> None:
    file = tmp_path / "some.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserInputError, match=sentence):
        read_rows(file)


def test_words() -> None:
    assert [points_text(value) for value in (0.125, -0.5, 0.0, -0.0001, 1)] == [
        "+12.5",
        "−50",
        "0",
        "0",
        "+100",
    ]
    assert [p_text(value) for value in (1.0, 0.0423, 0.00012, 0.5)] == ["1.00", "0.042", "<0.001", "0.50"]
