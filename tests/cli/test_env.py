"""`longspan env`."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING

import torch
import transformers

import longspan
from longspan.cli import run

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_env_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "env.json"
    assert run(["env", "--json", str(file)]) == 0
    facts = json.loads(file.read_text())
    assert facts["longspan"] == longspan.__version__
    assert facts["torch"] == torch.__version__
    assert facts["transformers"] == transformers.__version__
    assert facts["python"] == platform.python_version()
    assert facts["threads"] == torch.get_num_threads()
    assert len(facts["devices"]) == torch.cuda.device_count()
    shown = capsys.readouterr().out
    assert torch.__version__ in shown
    assert "threads" in shown
