"""`longspan train extend` and `longspan train schemes` from the shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from longspan.cli import run
from longspan.engine import api
from tests.models import word_tokenizer
from tests.training.tiny import TARGET, text_folder, tiny_model

PI = 'full(positions="pi(factor=4)")'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder with a window of 64 tokens."""
    path = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def text(tmp_path: Path) -> str:
    return str(text_folder(tmp_path / "text"))


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.count("longspan: ") == 1
    return error.split("longspan: ")[1]


def test_smoke_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reference model's tokenizer and recipe, a tiny model in its place."""
    out = tmp_path / "run"
    arguments = ["train", "extend", "reference", "--scheme", 'pose(positions="yarn(factor=4)")']
    arguments += ["--length", "16384", "--out", str(out), "--smoke", "--steps", "4", "--workers", "0"]
    assert run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["step"] for line in lines[:2]] == [1, 4]
    assert lines[2].startswith("step 4 of 4, 8,192 tokens, ")
    assert lines[2].endswith("; finished")
    assert lines[3] == f"model in {out / 'model'}"
    card = json.loads((out / "model" / "longspan.json").read_text())
    assert (card["spec"], card["method"]) == ("dense", "yarn(factor=4.0)")
    config = AutoModelForCausalLM.from_pretrained(out / "model").config
    assert config.max_position_embeddings == 1024
    assert config.rope_parameters["original_max_position_embeddings"] == 256
    assert AutoTokenizer.from_pretrained(out / "model").chat_template


def test_a_run_in_pieces(model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = [
        "train",
        "extend",
        model,
        "--scheme",
        'pose(positions="truncated_basis()")',
        "--workers",
        "0",
    ]
    arguments += ["--length", str(TARGET), "--text", text, "--out", str(out), "--tokens", "2048"]
    arguments += ["--batch-tokens", "512", "--lr", "0.001", "--task-share", "0"]
    assert run([*arguments, "--seconds", "0"]) == 0
    assert "step 0 of 4, 0 tokens, 0 s; not finished: run again with --resume" in capsys.readouterr().out
    assert run([*arguments, "--resume"]) == 0
    shown = capsys.readouterr().out
    assert "step 4 of 4, 2,048 tokens" in shown
    assert f"model in {out / 'model'}; run it with --methods 'truncated_basis'" in shown
    assert run(arguments) == 2
    assert "holds a run already; go on with --resume, or choose another --out" in error_of(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scheme", "nope", "--length", "256"], "there is no scheme 'nope'"),
        (
            ["--scheme", 'full(positions="pi(factor=0.5)")', "--length", "256"],
            "full: pi: got factor=0.5; allowed is 1",
        ),
        (["--scheme", 'full(positions="pi(factor=4) + ntk(factor=4)")', "--length", "256"], "has 2 methods"),
        (
            ["--scheme", "full", "--length", "256", "--text", "{text}", "--text", "absent"],
            "text folder 'absent' does not",
        ),
        (["--scheme", "full", "--length", "256", "--resume"], "nothing to resume: "),
        (
            ["--scheme", "full", "--length", "256", "--steps", "1", "--tokens", "1"],
            "is given once: as --steps or as --tokens",
        ),
        (["--scheme", "full", "--length", "256", "--lora-also", "norms"], "give --lora RANK with it"),
        (["--scheme", "full", "--length", "256", "--lr", "nan"], "got a learning rate of nan"),
        (["--scheme", "full", "--length", "0"], "'--length'"),
    ],
)
def test_refused_before_a_model_is_loaded(
    arguments: list[str],
    message: str,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "_from_pretrained", lambda *a, **k: pytest.fail("a model was loaded"))
    words = [word.replace("{text}", text) for word in arguments]
    words += [] if "--text" in words or "--resume" in words else ["--text", text]
    assert run(["train", "extend", "some/model", *words]) == 2
    assert message in error_of(capsys)


def test_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "extend", "reference", "--scheme", PI, "--length", "16384"]) == 2
    assert "no text to train on; give --text FOLDER" in error_of(capsys)


@pytest.mark.parametrize(
    ("scheme", "length", "message"),
    [
        (PI, 64, "got --length 64, but the model's window already has 64 tokens"),
        (
            'full(positions="pi(factor=2)")',
            256,
            "pi(factor=2.0) slows the slowest frequency 2 times, enough for 128",
        ),
        ("e2_llm(max_scale=2)", 256, "reaches 128 tokens, and the target is 256"),
    ],
)
def test_refused_for_the_model(
    scheme: str,
    length: int,
    message: str,
    model: str,
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    arguments = ["train", "extend", model, "--scheme", scheme, "--length", str(length), "--text", text]
    assert run([*arguments, "--out", str(out)]) == 2
    assert message in error_of(capsys)
    assert not out.exists()


def test_the_list_of_schemes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert run(["train", "schemes"]) == 0
    shown = capsys.readouterr().out
    for part in ("full", "pose", "e2_llm", "with one skip of positions in each", "Skip-wise Training (2023)"):
        assert part in shown
    for name in ("extend", "schemes"):
        assert run(["train", name, "--help"]) == 0
        assert "Example" in capsys.readouterr().out
