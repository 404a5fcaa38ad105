"""`longspan contexts` and `longspan ask --store` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import longspan
from longspan.cli import run
from tests.models import random_ids, random_model, word_tokenizer, words

NAME = "the [bold] book"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of two contexts, one of them with a name."""
    model = longspan.load(random_model(), tokenizer=word_tokenizer())
    store = longspan.ContextStore(tmp_path / "store")
    store.read(model, random_ids(300))
    store.save(model.read(random_ids(20, seed=1)), NAME)
    return store.folder


def test_the_list_shows_what_is_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert run(["contexts", "list", str(folder), "--json", str(tmp_path / "list.json")]) == 0
    shown = capsys.readouterr().out
    rows = json.loads((tmp_path / "list.json").read_text())
    assert [row["num_tokens"] for row in rows] == [20, 300] and rows[0]["name"] == NAME
    assert all(row["key"] in shown for row in rows) and NAME in shown and "2 contexts" in shown
    assert run(["contexts", "list", str(folder), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == rows


def test_verify_tells_what_is_damaged(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["contexts", "verify", str(folder)]) == 0
    assert "2 contexts, every byte as it was written." in capsys.readouterr().out
    file = max(folder.glob("*.span"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    assert run(["contexts", "verify", str(folder), "--json", str(tmp_path / "v.json")]) == 1
    assert "was altered" in " ".join(capsys.readouterr().out.split())
    found = json.loads((tmp_path / "v.json").read_text())
    assert found["contexts"] == 2 and [problem["file"] for problem in found["problems"]] == [file.name]


def test_remove_and_rebuild(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "index.sqlite").write_bytes(b"broken" * 1000)
    assert run(["contexts", "rebuild", str(folder)]) == 0
    assert "2 contexts listed" in capsys.readouterr().out
    assert run(["contexts", "remove", str(folder), NAME]) == 0
    assert "Removed 1; 1 left." in capsys.readouterr().out
    assert len(list(folder.glob("*.span"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "{tmp}/none"], "there is no folder"),
        (["list", "{tmp}/file"], "file is a file; give a folder for the store"),
        (["verify", "{tmp}"], "holds no saved contexts"),
        (["remove", "{store}", "the bok"], "there is no context 'the bok' in"),
        (["remove", "{store}", NAME.upper()], f"did you mean {NAME!r}?"),
        (["list", "{store}", "--json", "{tmp}"], "is a folder; give a file to write"),
        (["remove", "{store}"], "Missing argument"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    folder: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    given = [part.replace("{tmp}", str(tmp_path)).replace("{store}", str(folder)) for part in arguments]
    assert run(["contexts", *given]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("name", ["list", "verify", "remove", "rebuild"])
def test_every_sub_command_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["contexts", name, "--help"]) == 0
    assert f"Example: longspan contexts {name}" in " ".join(capsys.readouterr().out.split())


def test_ask_reads_no_text_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    random_model().save_pretrained(model)
    word_tokenizer().save_pretrained(model)
    book, store = tmp_path / "book.txt", tmp_path / "store"
    book.write_text(words(random_ids(150)))
    asked = ["ask", str(book), "w5 w6", "--model", str(model), "--store", str(store), "--max-new-tokens", "4"]
    results = []
    for number in range(2):
        assert run([*asked, "--json", str(tmp_path / f"{number}.json")]) == 0
        results.append(json.loads((tmp_path / f"{number}.json").read_text()))
    assert [result["cached_tokens"] for result in results] == [0, 150]
    assert results[0]["answers"][0]["answer"] == results[1]["answers"][0]["answer"]
    assert "150 tokens read (150 of them from" in " ".join(capsys.readouterr().out.split())
    assert run([*asked[:-4], "--store", str(book)]) == 2
    assert "is a file; give a folder for the store" in capsys.readouterr().err
