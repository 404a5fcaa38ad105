"""`longspan train cartridge` from the shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longspan.cli import run
from longspan.methods.cache.cartridges.cartridge import load_cartridge
from tests.models import random_ids, random_model, word_tokenizer, words

SMALL = ["--tokens-kept", "8", "--steps", "3", "--conversations", "6", "--batch-rows", "3", "--device", "cpu"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    random_model().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_cartridge_from_end_to_end(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = tmp_path / "doc.txt", tmp_path / "doc.cartridge.safetensors"
    text.write_text(words(random_ids(60)), encoding="utf-8")
    other = tmp_path / "other.txt"
    other.write_text(words(random_ids(90, seed=1)), encoding="utf-8")
    arguments = [
        "train",
        "cartridge",
        model,
        "--text",
        str(text),
        "--out",
        str(out),
        "--beside",
        str(other),
        *SMALL,
    ]
    assert run([*arguments, "--seconds", "0"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "self-study is not over, so there is no cartridge yet"
    assert run([*arguments, "--resume"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["step"] for line in lines[:2]] == [1, 3]
    assert lines[2].startswith("step 3 of 3, ") and lines[2].endswith("; finished")
    assert lines[4] == f"read the same text with --methods 'cartridges(file=\"{out}\")'"
    found = load_cartridge(out)
    assert found.num_tokens == 8
    assert found.settings["beside_share"] == 0.5 and found.settings["held_out_kl"]["trained_beside"] > 0
    assert run(["ask", str(text), "w10 w11", "--model", model, "--methods", f'cartridges(file="{out}")']) == 0
    assert run(arguments) == 2
    assert "holds a run already; go on with --resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "nowhere.txt"], "there is no text file nowhere.txt; give one document"),
        (["--beside", "nowhere.md"], "there is no text file nowhere.md; give text files to --beside"),
        (["--beside-share", "2"], "got beside_share=2.0; allowed is 0"),
        (["--device", "nonsense"], "got device='nonsense', which is not here; use cpu"),
        (["--questions", "none"], "got questions='none'; allowed is spans or asked"),
        (["--lr", "0"], "got lr=0.0; allowed is above 0"),
    ],
)
def test_bad_input_is_one_sentence(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "doc.txt"
    text.write_text("w3 w4", encoding="utf-8")
    arguments = ["train", "cartridge", "reference", "--text", str(text), "--out", str(tmp_path / "out")]
    assert run([*arguments, *options]) == 2
    error = capsys.readouterr().err
    assert error.count("longspan: ") == 1
    assert message in error
