"""Files are written whole or not at all."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from longspan.cli._output import write_json, write_text

if TYPE_CHECKING:
    from pathlib import Path


def test_write_json_makes_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b.json"
    write_json(file, {"x": [1, "\u00e9"]})
    assert json.loads(file.read_text(encoding="utf-8")) == {"x": [1, "\u00e9"]}
    assert file.stat().st_mode & 0o600 == 0o600


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "page.md"
    write_text(file, "old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        write_text(file, "new")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]
