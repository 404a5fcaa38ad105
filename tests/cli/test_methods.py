"""`longspan methods` on small method files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import longspan.cli.methods
from longspan.cli import run
from tests.fake_methods import install

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr(longspan.cli.methods, "_PROOF_FILE", tmp_path / "proof.json")
    return install(tmp_path, monkeypatch)


def test_the_list_has_every_method_and_its_idea(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    names = [line[0] for line in lines if line and line[0] in ("dense", "squeeze", "stretch")]
    assert names == ["dense", "squeeze", "stretch"]
    row = next(line for line in lines if line and line[0] == "squeeze")
    assert row[1:6] == ["cache", "Storage", "prefill", "no", "frees"]
    assert " ".join(row[6:]) == "Keeps the keys that late queries look at most"


def test_one_card_shows_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "proof.json").write_text(
        json.dumps({"squeeze": {"spec": "a", "verdict": "holds", "measured": "93%"}})
    )
    assert run(["methods", "squeeze"]) == 0
    text = capsys.readouterr().out
    for part in (
        "Squeeze: a paper (2024)",
        "score(k) = sum over queries of softmax(q k)",
        "a question",
        "keeps 90% at a quarter",
        "squeeze(keep=0.25) against dense, niah_single_1 at 4,096 tokens: accuracy at least 90%",
        "tolerance: chunks",
        "fraction of tokens kept (paper: 1024 tokens, \u00a74)",
        "Literal['max', 'mean']",
        "93%",
        "holds",
    ):
        assert part in text


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out" / "methods.json"
    assert run(["methods", "--json", str(file)]) == 0
    entries = json.loads(file.read_text())
    assert [entry["name"] for entry in entries] == ["dense", "squeeze", "stretch"]
    assert [path.name for path in file.parent.iterdir()] == ["methods.json"]
    capsys.readouterr()
    assert run(["methods", "squeeze", "--json", "-"]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert (entry["name"], entry["year"], entry["proof"]) == ("squeeze", 2024, None)


def test_an_unknown_name_has_its_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "sqeeze"]) == 2
    assert capsys.readouterr().err == "longspan: there is no method 'sqeeze'; did you mean 'squeeze'?\n"


def test_pages(tmp_path: Path, methods: Path) -> None:
    folder = tmp_path / "pages"
    assert run(["methods", "--docs", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "dense.md",
        "squeeze.md",
        "stretch.md",
    ]
    page = (folder / "squeeze.md").read_text(encoding="utf-8")
    assert "| `keep` | `float` | `0.25` | fraction of tokens kept (paper: 1024 tokens, \u00a74) |" in page
    assert "| `layers` | `tuple[int, ...] \\| None` | `None` | None: all |" in page
    assert "[squeeze](squeeze.md) | cache | Storage | prefill | frees |" in (folder / "README.md").read_text()
    (folder / "NOTES.md").write_text("mine\n")
    (methods / "cache" / "squeeze.py").unlink()
    assert run(["methods", "--docs", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "NOTES.md",
        "README.md",
        "dense.md",
        "stretch.md",
    ]


def test_a_wrong_card_is_one_line(methods: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (methods / "cache" / "wrong.py").write_text('"""Idea."""\nCARD = {"year": 3}\n')
    assert run(["methods"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "wrong.py: CARD has no key 'title'" in error
