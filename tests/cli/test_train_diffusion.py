"""`longspan train diffusion` from the shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longspan.cli import run
from longspan.training.diffusion.denoiser import load_denoiser


def test_smoke_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = ["train", "diffusion", "reference", "--smoke", "--steps", "2", "--workers", "0"]
    assert run([*arguments, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["step"] for line in lines[:2]] == [1, 2]
    assert lines[2].startswith("step 2, 4,")
    assert lines[3] == f"model in {out / 'model'}"
    denoiser = load_denoiser(out / "model")
    assert (denoiser.window_tokens, denoiser.shift) == (256, True)
    assert run([*arguments, "--out", str(out)]) == 2
    assert "holds a model already; choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "2"], "no text to train on; give --text FOLDER"),
        (["--text", "nowhere", "--steps", "2"], "text folder 'nowhere' does not exist"),
        (["--smoke", "--seconds", "1", "--peak", "-1"], "got a peak of -1; allowed is above 0"),
        (["--text", "nowhere"], "the schedule has no end; give --steps, --seconds or both"),
        (["--smoke", "--window", "81920"], "allowed is 64 up to the base model's 256"),
    ],
)
def test_bad_input_is_one_sentence(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "diffusion", "reference", "--out", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("longspan: ") == 1
    assert message in error
