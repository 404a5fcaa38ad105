"""`longspan bench compare` and the lists, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longspan.cli import run
from longspan.evaluation.registry import find_suite_cards, find_tasks


def write(folder: Path, scores: dict[str, list[float]], **fields: Any) -> Path:
    """A results file with a row a (spec, seed)."""
    folder.mkdir()
    rows = [
        {
            "key": f"{spec}{seed}", "status": "done", "kind": "answer", "spec": spec, "task": "ruler/vt",
            "length_tokens": 4096, "depth": None, "seed": seed, "fingerprint": "f00d", "score": score,
        } | fields
        for spec, given in scores.items() for seed, score in enumerate(given)
    ]  # fmt: skip
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    write(tmp_path / "old", {"dense": [1, 1, 0, 0], "snapkv": [0, 0, 0, 0]})
    write(tmp_path / "new", {"dense": [1, 1, 1, 0], "truncate": [1, 0, 0, 0]})
    return "old", "new"


def compared(tmp_path: Path, *words: str) -> list[dict[str, Any]]:
    assert run(["bench", "compare", *words, "--json", "out.json"]) == 0
    return json.loads((tmp_path / "out.json").read_text())["comparisons"]


def test_two_files_compare_the_specs_of_both(folders: tuple[str, str], tmp_path: Path) -> None:
    (found,) = compared(tmp_path, *folders)
    assert (found["first"], found["second"]) == ("A: dense", "B: dense")
    overall = found["overall"]
    assert (overall["wins"], overall["losses"], overall["ties"], overall["difference"]) == (0, 1, 3, -0.25)


def test_specs_can_be_chosen(folders: tuple[str, str], tmp_path: Path) -> None:
    (found,) = compared(tmp_path, *folders, "--spec-a", "snapkv", "--spec-b", "truncate")
    assert (found["first"], found["second"], found["overall"]["losses"]) == ("snapkv", "truncate", 1)
    (found,) = compared(tmp_path, "old", "--against", "snapkv")
    assert (found["first"], found["second"], found["overall"]["wins"]) == ("dense", "snapkv", 2)
    (found,) = compared(tmp_path, "new/results.jsonl")
    assert (found["first"], found["second"]) == ("truncate", "dense")


def test_two_files_with_a_spec_each_need_no_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a", {"snapkv": [1.0]})
    write(tmp_path / "b", {"dense": [0.5]})
    (found,) = compared(tmp_path, "a", "b")
    assert (found["first"], found["second"], found["overall"]["difference"]) == ("snapkv", "dense", 0.5)


def test_the_table_and_the_page(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "compare", "old", "--out", "page.html"]) == 0
    shown = capsys.readouterr().out
    assert "snapkv minus dense" in shown and "−50" in shown and "not corrected" in shown
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and "longspan bench compare old" in page and "−50" in page


def test_json_on_standard_output_is_alone(
    folders: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "compare", *folders, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["comparisons"][0]["first"] == "A: dense"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere"], "there is no results file 'nowhere'"),
        (["old", "new", "--against", "dense"], "--against has no effect with two files"),
        (["old", "--against", "dense", "--spec-b", "dense"], "leave one out"),
        (["old", "--against", "truncate"], "is not in old"),
        (["old", "--spec-a", "snapkvv"], "did you mean 'snapkv'"),
        (["only"], "holds one spec only"),
        (["only", "other"], "no sample could be paired (measured on another model)"),
        (["old", "two"], "no spec is in both files"),
        ([], "Missing argument 'A'"),
        (["old", "--json", "old"], "is a folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    folders: tuple[str, str],
    tmp_path: Path,
    words: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "only", {"dense": [1]})
    write(tmp_path / "other", {"dense": [1]}, fingerprint="beef")
    write(tmp_path / "two", {"pi": [1], "ntk": [1]})
    assert run(["bench", "compare", *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_options_before_the_sub_command_are_refused(
    folders: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "--tasks", "vt", "compare", "old"]) == 2
    assert "--tasks has no effect before 'compare'" in capsys.readouterr().err
    assert run(["bench", "comapre", "old"]) == 2
    assert "No such command 'comapre'" in capsys.readouterr().err


def test_lists_need_no_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["bench", "--list"]) == 0
    shown = capsys.readouterr().out
    for name, card in find_suite_cards().items():
        assert name in shown and str(card["year"]) in shown
    assert "retrieval" in shown and "Lost in the Middle" in shown
    assert run(["bench", "--list-tasks"]) == 0
    shown = capsys.readouterr().out
    for name, entry in find_tasks().items():
        line = next(line for line in shown.splitlines() if f" {name} " in line)
        labels = entry.exam.labels
        expected = "perplexity" if labels is None else f"{labels.ability} {labels.diffusion} {labels.scope}"
        assert expected in " ".join(line.split())
