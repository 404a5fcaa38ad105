"""The results file survives crashes, full disks and changed settings."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

import pytest

from longspan.evaluation.results import IDENTITY, ResultLog, row_key, set_aside


def identity(**changes: Any) -> dict[str, Any]:
    return {name: 1 for name in IDENTITY} | changes


def row(key: str, **fields: Any) -> dict[str, Any]:
    return {"key": key, "status": "done", "score": 1.0, **fields}


def test_key_depends_on_every_identity_field_and_on_nothing_else() -> None:
    keys = {row_key(identity(**{name: 2})) for name in IDENTITY}
    assert len(keys) == len(IDENTITY)
    assert row_key(identity()) == row_key(dict(reversed(identity().items())))
    assert "commit" not in IDENTITY
    with pytest.raises(ValueError, match="commit"):
        row_key(identity(commit="abc"))


def test_rows_come_back_in_a_new_process(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    log = ResultLog(path)
    log.append(row("a", prediction="zwölf\nLinien"))
    log.append(row("b", score=0.25))
    again = ResultLog(path)
    assert list(again.rows) == ["a", "b"]
    assert again.rows["a"]["prediction"] == "zwölf\nLinien"
    assert again.done("b") == row("b", score=0.25)
    assert again.dropped_bytes == 0


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_cut_short_is_dropped_and_the_next_row_is_whole(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "results.jsonl"
    log = ResultLog(path)
    log.append(row("a"))
    log.append(row("b"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    again = ResultLog(path)
    assert list(again.rows) == ["a"]
    assert again.dropped_bytes == len(whole) - whole.index(b"\n") - 1 - cut
    again.append(row("b"))
    assert path.read_bytes() == whole


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(f"{json.dumps(row('a'))}\nnot json\n{json.dumps(row('b'))}\n")
    with pytest.raises(ValueError, match=r"line 2 .*--fresh"):
        ResultLog(path)
    path.write_text(f"{json.dumps(row('a'))}\n[1]\n")
    with pytest.raises(ValueError, match="line 2"):
        ResultLog(path)


def test_skipped_rows_are_kept_but_not_done(tmp_path: Path) -> None:
    log = ResultLog(tmp_path / "results.jsonl")
    log.append({"key": "a", "status": "skipped", "reason": "too long"})
    assert log.done("a") is None
    log.append(row("a"))
    assert ResultLog(log.path).done("a") == row("a")


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = ResultLog(tmp_path / "results.jsonl")
    log.append(row("a"))
    before = log.path.read_bytes()

    class FullDisk(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() == len(before):
                return super().write(bytes(data)[:7])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", lambda path, mode, buffering: FullDisk(path, "ab"))
    with pytest.raises(OSError, match="No space left") as caught:
        log.append(row("b"))
    assert caught.value.filename == str(log.path)
    monkeypatch.undo()
    assert log.path.read_bytes() == before
    assert list(log.rows) == ["a"]


def test_what_is_not_json_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    log = ResultLog(tmp_path / "results.jsonl")
    with pytest.raises(ValueError, match="JSON"):
        log.append(row("a", nll=float("nan")))
    assert not log.path.exists()


def test_fresh_sets_earlier_rows_aside_without_overwriting(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert set_aside(path) is None
    for number in (1, 2):
        ResultLog(path).append(row(f"key{number}"))
        assert set_aside(path) == tmp_path / f"results.jsonl.{number}"
        assert not path.exists()
    assert list(ResultLog(tmp_path / "results.jsonl.1").rows) == ["key1"]
