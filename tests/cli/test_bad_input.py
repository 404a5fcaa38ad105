"""What a user gets wrong ends in one sentence and exit code 2, before it costs time; Ctrl-C keeps what is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longspan.cli import run
from longspan.cli._output import check_writable, write_text
from longspan.engine import api
from longspan.errors import UserInputError
from longspan.evaluation import demonstration
from tests.models import random_ids, random_model, word_tokenizer, words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder with a window of 256 tokens."""
    path = tmp_path_factory.mktemp("model")
    random_model().save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def book(tmp_path: Path) -> str:
    path = tmp_path / "book.txt"
    path.write_text(words(random_ids(40)))
    return str(path)


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence on stderr; transformers may have drawn its own bars before it."""
    error = capsys.readouterr().err
    assert error.count("longspan: ") == 1
    return "longspan: " + error.split("longspan: ")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "", "Who?"], "there is no file ''"),
        (["ask", "{book}", "Who?", " "], "the question is empty"),
        (["ask", "{book}", "caf\udce9"], "is not in UTF-8"),
        (["ask", "{book}", "Who?", "--json", "{folder}"], "is a folder; give a file to write"),
        (["demo", "--report", "{folder}"], "is a folder; give a file to write"),
        (["demo", "--lengths", "1024,99999999999"], "got a length of 99999999999 tokens"),
        (["bench", "--out", "{book}"], "book.txt is a file, not a folder"),
        (["bench", "--tasks", ""], "--tasks is empty"),
        (["bench", "--seeds", ""], "--seeds is empty"),
        (["bench", "--lengths", "129M"], "--lengths has '129M'"),
        (["train"], "no command given (see `longspan train --help`)"),
        (["train", "reference"], "longspan: no usable text found"),
        (["train", "reference", "--rows", "inf"], "'--rows'"),
        (["train", "reference", "--start-from", "nowhere"], "nowhere is not a model folder"),
        (["train", "measure", "nowhere", "--shards", "nowhere"], "nowhere is not a model folder"),
    ],
)
def test_refused_before_a_model_is_loaded(
    arguments: list[str],
    message: str,
    book: str,
    folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    assert run([word.replace("{book}", book).replace("{folder}", folder) for word in arguments]) == 2
    assert message in error_of(capsys)


def test_a_short_text_needs_no_method_even_in_a_small_window(folder: str, book: str) -> None:
    assert run(["ask", book, "w5", "--model", folder]) == 0


def test_a_pipe_is_a_text_file(folder: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("w5 w6 w7",))
    writer.start()
    assert run(["ask", str(pipe), "w5", "--model", folder, "--json", str(tmp_path / "a.json")]) == 0
    writer.join()
    assert json.loads((tmp_path / "a.json").read_text())["tokens"] in (3, 4)  # with bos or without


def test_answers_so_far_are_written_when_a_later_question_fails(
    folder: str,
    book: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "a.json"
    arguments = ["ask", book, "w5", "w6 " * 300, "--model", folder, "--json", str(out)]
    assert run(arguments) == 2
    assert "the question has 300 tokens" in error_of(capsys)
    assert [entry["question"] for entry in json.loads(out.read_text())["answers"]] == ["w5"]

    out.unlink()
    real = type(api.load(folder).read("w5")).ask

    def ask(self: Any, question: str, **settings: Any) -> Any:
        if question == "w7":
            raise KeyboardInterrupt
        return real(self, question, **settings)

    monkeypatch.setattr(type(api.load(folder).read("w5")), "ask", ask)
    assert run(["ask", book, "w5", "w7", "--model", folder, "--json", str(out)]) == 130
    assert error_of(capsys) == "longspan: interrupted\n"
    assert [entry["question"] for entry in json.loads(out.read_text())["answers"]] == ["w5"]


def test_demo_keeps_its_results_after_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = demonstration.run_demo

    def stopped(*arguments: Any, **settings: Any) -> Iterator[Any]:
        yield next(real(*arguments, **settings))
        raise KeyboardInterrupt

    monkeypatch.setattr(demonstration, "run_demo", stopped)
    page, rows = tmp_path / "demo.html", tmp_path / "demo.json"
    arguments = ["demo", "--lengths", "1024,2048", "--facts", "2", "--methods", "dense"]
    assert run([*arguments, "--report", str(page), "--json", str(rows)]) == 130
    assert "Stopped after 1 of 2 readings." in capsys.readouterr().out
    assert "Stopped after 1 of 2 readings." in page.read_text()
    assert [row["length_tokens"] for row in json.loads(rows.read_text())["rows"]] == [1024, 1024]


def test_ctrl_c_while_loading_cannot_be_swallowed() -> None:
    code = """
import os, signal
from longspan.cli._output import loading
with loading():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
    except BaseException:
        pass
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "longspan: interrupted\n")


def test_bench_fresh_is_the_way_out_of_a_broken_results_file(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "results.jsonl"
    broken.write_bytes(b"[" * 200_000 + b"\n")
    bench = ["bench", "--model", folder, "--haystack", "noise", "--tasks", "niah_single_2", "--depths", "0"]
    bench += ["--lengths", "400", "--out", str(tmp_path)]
    assert run(bench) == 2
    assert "line 1 is not a result row" in error_of(capsys)
    assert run([*bench, "--fresh"]) == 0
    assert (tmp_path / "results.jsonl.1").read_bytes() == b"[" * 200_000 + b"\n"
    assert len(broken.read_text().splitlines()) == 1


def test_bench_that_measured_nothing_is_an_error_and_keeps_the_reasons(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = ["bench", "--model", folder, "--haystack", "noise", "--tasks", "niah_single_2", "--depths", "0"]
    assert run([*bench, "--lengths", "10", "--out", str(tmp_path)]) == 2
    assert "nothing could be measured: this puzzle needs" in error_of(capsys)
    assert json.loads((tmp_path / "results.jsonl").read_text())["status"] == "skipped"


def test_bench_refuses_a_haystack_of_bytes(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hay.txt").write_bytes(b"a \x00 b. " * 100)
    assert (
        run(["bench", "--model", folder, "--haystack", str(tmp_path / "hay.txt"), "--out", str(tmp_path)])
        == 2
    )
    assert "looks like a binary file" in error_of(capsys)


def test_a_failed_write_names_the_file_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device", "/tmp/.x.json.abc")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space") as caught:
        write_text(tmp_path / "x.json", "{}")
    assert caught.value.filename == str(tmp_path / "x.json")


def test_check_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(None, Path("-"), tmp_path / "new" / "x.json")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserInputError, match="file is a file, not a folder"):
        check_writable(tmp_path / "file" / "sub" / "x.json")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserInputError, match="is read-only here; choose another place"):
        check_writable(tmp_path / "x.json")
