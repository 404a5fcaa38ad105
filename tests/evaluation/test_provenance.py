"""What a number was measured with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

import longspan
from longspan.evaluation import provenance


def test_versions_are_those_that_run() -> None:
    found = provenance.versions()
    assert list(found) == ["longspan", "torch", "transformers", "python"]
    assert found["longspan"] == longspan.__version__
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_the_commit_tells_edits_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "longspan" / "evaluation" / "provenance.py"
    source.parent.mkdir(parents=True)
    source.write_text("1")
    monkeypatch.setattr(provenance, "__file__", str(source))
    assert provenance.commit() is None

    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    head = git("rev-parse", "--short=12", "HEAD")
    assert provenance.commit() == head
    source.write_text("2")
    first = provenance.commit()
    source.write_text("3")
    assert first is not None and first.startswith(f"{head}+")
    assert provenance.commit() not in (first, head)
