"""`longspan bench score`, `samples` and `pages` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longspan.cli import run
from longspan.evaluation.proof import load_claims
from longspan.evaluation.results import IDENTITY, row_key


def test_samples_go_out_and_their_answers_come_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    words = [
        "bench",
        "samples",
        "ruler/vt,keyvalue/kv64",
        "--lengths",
        "1K,2K",
        "--samples",
        "2",
        "--out",
        str(file),
    ]
    assert run(words) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["task"], row["length"]) for row in rows] == [
        ("ruler/vt", 1024), ("keyvalue/kv64", 1024), ("ruler/vt", 1024), ("keyvalue/kv64", 1024),
        ("ruler/vt", 2048), ("keyvalue/kv64", 2048), ("ruler/vt", 2048), ("keyvalue/kv64", 2048),
    ]  # fmt: skip
    assert all(row["prompt"].startswith(row["context"]) and row["question"] in row["prompt"] for row in rows)
    traced = [row for row in rows if row["task"] == "ruler/vt"]
    for right, row in enumerate(traced):
        row["pred"] = " ".join(row["answers"][: right + 2])
    answered = tmp_path / "answered.jsonl"
    answered.write_text("\n".join(map(json.dumps, traced)))
    capsys.readouterr()
    assert run(["bench", "score", "ruler/vt", str(answered), "--json", str(tmp_path / "score.json")]) == 0
    assert "ruler/vt: 70.00 over 4 samples (string_match_all)" in capsys.readouterr().out
    found = json.loads((tmp_path / "score.json").read_text())
    assert (found["score"], found["num_samples"], found["metric"]) == (
        pytest.approx(70),
        4,
        "string_match_all",
    )


def test_what_cannot_be_made_is_said_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LONGSPAN_DATA", raising=False)
    file = tmp_path / "prompts.jsonl"
    assert run(["bench", "samples", "ruler/qa_1,ruler/fwe", "--samples", "1", "--out", str(file)]) == 3
    assert len(file.read_text().splitlines()) == 1
    assert "skipped ruler/qa_1 at 4096 tokens: the data of ruler are not here" in " ".join(
        capsys.readouterr().out.split()
    )
    assert (
        run(["bench", "samples", "ruler/qa_1", "--samples", "1", "--out", str(tmp_path / "none.jsonl")]) == 2
    )
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["score", "ruler/vtt", "x.jsonl"], "there is no task 'ruler/vtt'"),
        (["score", "perplexity", "x.jsonl"], "scores likelihoods, not predictions"),
        (["score", "ruler/vt", "none.jsonl"], "No such file"),
        (["samples", "ruler/vt", "--out", "x.jsonl", "--data", "nowhere"], "--data 'nowhere' is no folder"),
        (["samples", "ruler/vt", "--out", "x.jsonl", "--model", "./nowhere"], "no tokenizer could be loaded"),
        (["pages", "ruler", "--part", "3/2"], "--part is '3/2'"),
        (["pages", "ruler", "--from", "none.jsonl"], "is no file"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and len(error.strip().splitlines()) == 1


def test_pages_are_written_from_rows_and_keep_what_stands_around(tmp_path: Path) -> None:
    fields = {name: "x" for name in IDENTITY} | {
        "suite": "ruler", "task": "ruler/vt", "spec": "dense", "length_tokens": 2048, "depth": None, "seed": 1,
    }  # fmt: skip
    row = fields | {"key": row_key(fields), "status": "done", "score": 0.5, "versions": {}, "commit": "abc"}
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "proof.md").write_text("# Proof\n\nclaims\n")
    for _ in range(2):
        words = ["--from", str(tmp_path / "results.jsonl"), "--docs", str(tmp_path)]
        assert run(["bench", "pages", "ruler", *words]) == 0
    page = (tmp_path / "proof.md").read_text()
    assert page.startswith("# Proof\n\nclaims\n") and page.count("## RULER by method") == 1
    assert "| `dense` | `dense` | **50.0** | 50 |" in page
    assert run(["bench", "pages", "suites", *words]) == 0
    assert "| `vt` | tracing |" in (tmp_path / "suites.md").read_text()


def test_a_ledger_of_rows_from_several_machines(tmp_path: Path) -> None:
    claim = next(claim for claim in load_claims()[0] if claim.method == "dense")
    rows = []
    for number in range(claim.samples):
        fields = {name: "x" for name in IDENTITY} | {
            "suite": "ruler", "task": claim.task, "spec": "dense", "length_tokens": claim.length_tokens,
            "kind": "answer", "depth": None, "seed": number,
        }  # fmt: skip
        costs = {
            "prefill_seconds": 1.0,
            "decode_seconds": 1.0,
            "kv_bytes": 8,
            "peak_kv_bytes": 8,
            "generated_tokens": 1,
        }
        done = {"key": row_key(fields), "status": "done", "score": 1.0, "correct": True, "versions": {}}
        rows.append(json.dumps(fields | costs | done | {"commit": "abc"}))
    (tmp_path / "a.jsonl").write_text("\n".join(rows[:12]) + "\n")
    (tmp_path / "b.jsonl").write_text("\n".join(rows[8:]) + "\n")  # four of them twice
    (tmp_path / "proof.md").write_text("# Proof\n")
    words = ["--from", str(tmp_path / "a.jsonl"), "--docs", str(tmp_path)]
    assert run(["bench", "pages", "proof", *words]) == 0
    assert f"12 of {claim.samples} samples are there" in (tmp_path / "proof.md").read_text()
    assert run(["bench", "pages", "proof", "--from", str(tmp_path / "b.jsonl"), *words]) == 0
    assert json.loads((tmp_path / "proof.json").read_text())["numbers"]["dense"]["holds"] is True


def test_published_data_are_cited_and_cuts_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {
        "input": "Where is it?", "context": "It is in Oslo. " + "Nothing here. " * 400, "answers": ["Oslo"], "length": 900,
        "dataset": "hotpotqa", "language": "en", "all_classes": None, "_id": "1",
    }  # fmt: skip
    (tmp_path / "longbench").mkdir()
    (tmp_path / "longbench" / "hotpotqa.jsonl").write_text(json.dumps(row))
    words = ["--tasks", "longbench/hotpotqa", "--lengths", "512", "--samples", "3", "--data", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGSPAN_DATA", "")
        assert run(["bench", *words, "--out", str(tmp_path / "out")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 of 1 samples lost the middle of their text to fit --lengths" in shown
    assert "longbench: licence MIT" in shown and "cite Bai et al." in shown
