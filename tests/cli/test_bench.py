"""`longspan bench` from the command line: options, files, resuming, Ctrl-C, the proof."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import longspan
from longspan.cli import run
from longspan.cli._bench_options import read_depths, read_lengths, read_seeds, read_tasks
from longspan.errors import UserInputError
from longspan.evaluation import proof
from longspan.evaluation.runner import FIRST_SEED
from tests.evaluation.fake_model import FakeModel


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `longspan bench` in an empty folder on the fake model; gives the exit code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sea.txt").write_text(
        " ".join(f"Sentence number {n} says little about the sea." for n in range(2000))
    )
    monkeypatch.setattr(longspan, "load", lambda name, **settings: FakeModel(), raising=False)

    def call(*words: str) -> int:
        small = () if "--proof" in words else ("--tasks", "niah_single_2", "--lengths", "600")
        return run(["bench", "--haystack", "sea.txt", *small, *words])

    return call


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_run_writes_rows_report_and_json(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--depths", "0,100", "--seeds", "2", "--json", "out.json", "--out", "here") == 0
    rows = rows_of(tmp_path / "here")
    assert [(row["spec"], row["seed"], row["depth"], row["score"]) for row in rows] == [
        ("dense", FIRST_SEED, 0.0, 1.0), ("dense", FIRST_SEED, 1.0, 1.0),
        ("dense", FIRST_SEED + 1, 0.0, 1.0), ("dense", FIRST_SEED + 1, 1.0, 1.0),
    ]  # fmt: skip
    result = json.loads((tmp_path / "out.json").read_text())
    summary = result["summary"][0]
    assert (summary["spec"], summary["task"], summary["num_samples"], summary["accuracy"]) == (
        "dense", "ruler/niah_single_2", 4, 1.0,
    )  # fmt: skip
    assert summary["interval_kind"] == "wilson"
    (lengths,) = result["effective_lengths"]
    assert (lengths["spec"], lengths["scores"], lengths["effective_tokens"]) == ("dense", {"600": 1.0}, 600)
    assert result["comparisons"] == []
    seeds = f"{FIRST_SEED},{FIRST_SEED + 1}"
    assert result["command"] == (
        "longspan bench --model reference --methods dense --tasks ruler/niah_single_2 --lengths 600 --depths 0,100 "
        f"--seeds {seeds} --haystack sea.txt"
    )
    assert "--seeds" in (tmp_path / "here" / "report.html").read_text()
    shown = capsys.readouterr().out
    assert "100%" in shown and "51% to 100%" in shown and "here/report.html" in shown


def test_json_on_standard_output_stands_alone(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--depths", "50", "--json", "-") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["summary"][0]["num_samples"] == 1
    assert "Report:" in shown.err
    assert bench("--depths", "50") == 0
    assert "Report:" in capsys.readouterr().out


def test_a_second_run_measures_nothing_and_fresh_measures_again(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "longspan-bench"
    assert bench("--depths", "50") == 0
    first = (folder / "results.jsonl").read_bytes()
    assert bench("--depths", "50") == 0
    assert (folder / "results.jsonl").read_bytes() == first
    assert "1 of 1 samples, 1 of them from an earlier run." in capsys.readouterr().out
    assert bench("--depths", "50", "--fresh") == 0
    assert (folder / "results.jsonl.1").read_bytes() == first
    assert len(rows_of(folder)) == 1


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = FakeModel.read
    calls = []

    def interrupted(self: FakeModel, text: str, *, progress: bool | None) -> Any:
        calls.append(text)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(self, text, progress=progress)

    monkeypatch.setattr(FakeModel, "read", interrupted)
    assert bench("--depths", "0,50,100") == 130
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "Stopped. 2 of 3 results are kept in longspan-bench/results.jsonl; the same command goes on." in shown
    )
    assert "stopped before it was reached" in (tmp_path / "longspan-bench" / "report.html").read_text()
    assert bench("--depths", "0,50,100") == 0
    assert len(calls) == 4
    assert len(rows_of(tmp_path / "longspan-bench")) == 3


def test_after_ctrl_c_the_report_says_what_has_no_pair_yet(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: FakeModel, text: str, *, progress: bool | None) -> Any:
        if self.spec == "truncate" and len(self.questions) > 2:
            raise KeyboardInterrupt
        return read(self, text, progress=progress)

    read = FakeModel.read
    monkeypatch.setattr(FakeModel, "read", interrupted)
    assert bench("--methods", "dense", "--methods", "truncate", "--depths", "0,50,100") == 130
    page = (tmp_path / "longspan-bench" / "report.html").read_text()
    assert "<code>truncate</code> minus <code>dense</code>" in page
    assert "skipped with truncate: stopped before it was reached" in page
    assert "another model" not in page


def test_a_cut_line_is_dropped_with_a_word(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--depths", "0,50") == 0
    path = tmp_path / "longspan-bench" / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert bench("--depths", "0,50") == 0
    assert "cut short" in capsys.readouterr().out
    assert len(rows_of(path.parent)) == 2


def test_skipped_lengths_are_said(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--lengths", "64,600", "--depths", "50") == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "skipped 1 of ruler/niah_single_2 at 64 with dense: this puzzle needs" in shown
    assert shown.endswith("1 of 2 samples were skipped, see above")
    assert bench("--lengths", "64", "--depths", "50") == 2
    assert "nothing could be measured: this puzzle needs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--methods", "densse"], "did you mean 'dense'"),
        (["--tasks", "niah_singel_2"], "did you mean 'niah_single_2'"),
        (["--lengths", "4k,x"], "--lengths has 'x', allowed are token counts such as 4096, 8K or 1M"),
        (["--depths", "120"], "--depths has '120', allowed are percentages"),
        (["--seeds", "0"], "--seeds is '0'"),
        (["--samples", "0"], "samples"),
        (["--haystack", "nowhere"], "there is no haystack 'nowhere'"),
        (["--proof", "--lengths", "512"], "--lengths has no effect with --proof"),
        (["--proof", "--model", "x"], "--model has no effect with --proof"),
        (["--proof", "--methods", "nothing"], "is no method with a claim"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    bench: Any, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(*words) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_option_texts() -> None:
    assert read_lengths("512, 4K,1m") == [512, 4096, 2**20]
    assert read_depths("0,12.5,100%") == [0.0, 0.125, 1.0]
    assert read_seeds("3") == [FIRST_SEED, FIRST_SEED + 1, FIRST_SEED + 2]
    assert read_seeds("7,9") == [7, 9] and read_seeds("7,") == [7]
    assert read_tasks("vt,vt,perplexity") == ["ruler/vt", "perplexity/perplexity"]
    assert {"keyvalue/kv64", "keyvalue/keys8_numbers"} <= set(read_tasks("keyvalue"))
    with pytest.raises(UserInputError, match="empty"):
        read_lengths(" , ")


def test_list_tasks_needs_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--list-tasks"]) == 0
    assert "perplexity" in capsys.readouterr().out


def test_proof_writes_the_ledger_and_goes_on(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    claim = {"task": "niah_single_2", "length_tokens": 600, "against": "dense", "spec": "dense", "samples": 5}
    cards = {
        "good": SimpleNamespace(claim={"text": "finds it", "at_least": 0.5, **claim}),
        "bad": SimpleNamespace(claim={"text": "beats dense", "margin": 0.5, **claim}),
        "silent": SimpleNamespace(claim={}),
    }
    monkeypatch.setattr(proof, "all_cards", lambda: cards)
    assert bench("--proof", "--methods", "good") == 0
    ledger = json.loads((tmp_path / "docs" / "proof.json").read_text())
    assert [row["verdict"] for row in ledger["rows"]] == ["holds, clearly", "does not hold, clearly"]
    assert len(rows_of(tmp_path / "longspan-bench")) == 5
    capsys.readouterr()
    assert bench("--proof") == 0
    assert len(rows_of(tmp_path / "longspan-bench")) == 5
    page = (tmp_path / "docs" / "proof.md").read_text()
    assert "1 hold, 1 do not hold, 0 without a verdict, 1 without a claim." in page
    assert "Without a claim: `silent`." in page
    assert "does not hold" in " ".join(capsys.readouterr().out.split())
