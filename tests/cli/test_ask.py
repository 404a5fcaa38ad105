"""`longspan ask` and `longspan demo` as a user runs them, with the bundled model, and what they say to bad input."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from longspan.cli import run

FACT = "The harbour master of Brindlewick keeps a brass lantern in the cellar."
TEXT = (
    ("The sea was grey that morning, and nobody on the quay said much about it. " * 12)
    + FACT
    + " They went home before dark. " * 12
)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


QUESTION = "What does the harbour master of Brindlewick keep in the cellar?"


def test_ask_answers_and_names_its_source(
    book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ask", str(book), QUESTION, "--json", str(tmp_path / "out.json")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "bundled reference model" in shown and "brass lantern" in shown
    result = json.loads((tmp_path / "out.json").read_text())
    assert "lantern" in result["answers"][0]["answer"].lower()
    assert FACT in result["answers"][0]["sources"][0]["text"]
    assert result["spec"] == "dense" and result["kv_bytes"] > 0


def test_ask_reads_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert run(["ask", "-", QUESTION, "--methods", "snapkv(keep=0.9)"]) == 0
    assert "snapkv(keep=0.9)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.txt", "Who?"], "there is no file nowhere.txt"),
        ([".", "Who?"], "is a folder"),
        (["{book}", "Who?", "--methods", "snapkv(keep=0)"], "got keep=0"),
        (["{book}", "Who?", "--methods", "snapkv(keep=1.5)"], "got keep=1.5"),
        (["{book}", "Who?", "--methods", "snapkvv"], "did you mean"),
        (["{book}", "Who?", "--methods", "snapkv(kep=0.5)"], "did you mean"),
        (["{book}", "Who?", "--methods", "yarn(factor=4) + pi(factor=2)"], "only one method can"),
        (["{book}", "Who?", "--model", "./no-such-folder"], "is not a model folder"),
        (["{book}", " "], "the question is empty"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    book: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ask", *(part.replace("{book}", str(book)) for part in arguments)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error.lower() or message in error
    assert "Traceback" not in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"\x89PNG\r\n\xff\xfe\x00", "is not a text"),
        (b"a\x00b", "binary file"),
    ],
)
def test_files_that_hold_no_text(
    tmp_path: Path, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(content)
    assert run(["ask", str(path), "Who?"]) == 2
    assert message in capsys.readouterr().err


def test_demo_compares_specs_and_writes_its_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, rows = tmp_path / "demo.html", tmp_path / "demo.json"
    arguments = [
        "demo",
        "--lengths",
        "1024,2048",
        "--facts",
        "3",
        "--methods",
        "dense",
        "--methods",
        "snapkv(keep=0.5)",
    ]
    assert run([*arguments, "--report", str(page), "--json", str(rows)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "snapkv(keep=0.5)" in shown and "Report:" in shown
    html = page.read_text()
    assert (
        "<svg" in html and "snapkv(keep=0.5)" in html and "://" not in html.replace("http://www.w3.org", "")
    )
    scored = json.loads(rows.read_text())["rows"]
    assert len(scored) == 2 * 2 * 3
    dense = [row["score"] for row in scored if row["spec"] == "dense"]
    assert sum(dense) / len(dense) >= 0.8


def test_demo_says_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["demo", "--lengths", "1024,4096", "--facts", "1", "--methods", "dense", "--minutes", "0.1"]
    assert run([*arguments, "--report", str(tmp_path / "demo.html")]) == 0
    assert "left out" in capsys.readouterr().out


def test_demo_refuses_lengths_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--lengths", "4k"]) == 2
    assert "whole numbers of tokens" in capsys.readouterr().err
