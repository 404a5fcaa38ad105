"""`longspan bench embed` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longspan.cli import run
from tests.encoders import letter_tokenizer, random_encoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_encoder("Bert", max_position_embeddings=150).save_pretrained(tmp_path / "encoder")
    letter_tokenizer().save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_a_table_and_rows(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "embed", str(folder), "--lengths", "150,300", "--documents", "4", "--tasks", "passkey"]
    words += ["--methods", "dense", "--methods", "pi(factor=2)", "--json", str(tmp_path / "out.json")]
    assert run(words) == 0
    shown = capsys.readouterr().out
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["spec"], row["length_tokens"], row["read_tokens"]) for row in rows] == [
        ("dense", 150, 150), ("pi(factor=2.0)", 150, 150), ("dense", 300, 150), ("pi(factor=2.0)", 300, 300),
    ]  # fmt: skip
    cells = [line.split() for line in shown.splitlines() if line.strip().startswith("passkey")]
    percent = [f"{100 * row['accuracy']:.0f}" for row in rows]
    assert cells == [
        ["passkey", "dense", percent[0], f"{percent[2]}*"],
        ["passkey", "pi(factor=2.0)", percent[1], percent[3]],
    ]
    assert run([*words[:-2], "--json", "-"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [row["accuracy"] for row in again["rows"]] == [row["accuracy"] for row in rows]
    assert again["setup"]["pooling"] == "mean"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--pooling", "max"], "got --pooling 'max'; allowed are mean and cls"),
        (["--tasks", "passkeys"], "there is no task 'passkeys' for encoders; did you mean 'passkey'"),
        (
            ["--methods", "ntk(factor=2)"],
            "takes positions from a learned table; use a method for such tables",
        ),
        (["--lengths", "many"], "--lengths has 'many', allowed are token counts"),
        (["--documents", "1"], "Invalid value for '--documents'"),
    ],
)
def test_bad_input(folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], sentence: str) -> None:
    assert (
        run(["bench", "embed", str(folder), "--lengths", "300", "--documents", "4", *more][: 7 + len(more)])
        == 2
    )
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("longspan: ") and sentence in told


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "embed", "./nothing"]) == 2
    assert "no encoder could be loaded from './nothing'" in capsys.readouterr().err
