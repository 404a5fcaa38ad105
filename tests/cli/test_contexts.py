"""`longspan contexts` and `longspan ask --store` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import longspan
from longspan.cli import contexts, run
from longspan.storage.range_server import RangeClient, serve
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
        (["publish", "{store}", "the bok", "{tmp}/out"], "there is no context 'the bok' in"),
        (["serve", "{tmp}/none"], "there is no folder"),
        (["serve", "{tmp}", "--megabits", "0"], "got --megabits 0; give a number above 0"),
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


@pytest.mark.parametrize("name", ["list", "verify", "remove", "rebuild", "publish", "serve", "ask"])
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


def test_publish_and_ask_over_http_and_from_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, store, out = tmp_path / "model", tmp_path / "store", tmp_path / "published"
    random_model().save_pretrained(model)
    word_tokenizer().save_pretrained(model)
    span = longspan.load(str(model))
    context = span.read(random_ids(2500))
    longspan.ContextStore(store).save(context, NAME)
    context.save(tmp_path / "book.span")
    assert run(["contexts", "publish", str(store), NAME, str(out)]) == 0
    assert "hand it out with: longspan contexts serve" in " ".join(capsys.readouterr().out.split())
    expected = context.ask("w5 w6", max_new_tokens=4).text
    with serve(out) as served:
        for source in (served.url, str(out), str(tmp_path / "book.span")):
            file = tmp_path / "result.json"
            asked = ["contexts", "ask", source, "w5 w6", "--model", str(model), "--max-new-tokens", "4"]
            assert run([*asked, "--json", str(file)]) == 0
            result, shown = json.loads(file.read_text()), " ".join(capsys.readouterr().out.split())
            assert result["tokens"] == 2500 and result["answers"][0]["answer"] == expected
            assert expected in shown and ("came as" in shown) == (not source.endswith(".span"))
            if result["chunks"]:
                assert [chunk["num_tokens"] for chunk in result["chunks"]] == [1024, 1024, 452]
                assert {chunk["how"] for chunk in result["chunks"]} <= {"exact", "text"}
    assert run(["contexts", "ask", served.url, "w5", "--model", str(model)]) == 2
    assert "check that it is up" in capsys.readouterr().err
    assert (
        run(["contexts", "ask", str(tmp_path / "book.span"), "w5", "--model", str(model), "--deadline", "1"])
        == 2
    )
    assert "leave deadline_seconds out" in " ".join(capsys.readouterr().err.split())


def test_serve_hands_out_until_it_is_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "level0.bin").write_bytes(b"0123456789")
    got = []

    class Stop:
        def wait(self) -> None:
            with RangeClient(capsys.readouterr().out.split()[-1]) as client:
                got.append(client.get("level0.bin", first=2, num_bytes=3))
            raise KeyboardInterrupt

    monkeypatch.setattr(contexts, "Event", Stop)
    assert run(["contexts", "serve", str(tmp_path), "--port", "0"]) == 130
    assert got == [b"234"]
