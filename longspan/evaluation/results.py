"""The results file: one JSON line a sample, appended as it is measured, resumed after a stop.

A row is a plain dictionary. Fields (units in the names; `None` where not measured):

    key                 identity of the row, see `row_key`
    status, reason      "done", or "skipped" with why
    suite, task, kind   task is "suite/task"; kind is "answer" (score in 0..1) or "likelihood" (nll and buckets)
    spec                canonical method spec; "dense" is the model as it is
    length_tokens       the length asked for; actual_tokens: what the tokenizer counted in the context
    depth               where the needle lies, 0..1 of the context; None: the task chooses
    seed                decides the puzzle and the text around it
    score               accuracy of this sample, 0..1
    scores, metric      parts of the score by name, and the metric's name
    ability, diffusion, scope   what the task asks for
    prediction, references, question, evidence
    depths, excerpt     where the evidence stands, 0..1, and the text around it: [before, evidence, after]
    cut, truncated      the answer reached the most tokens allowed; the published text lost its middle
    read_seconds, prefill_seconds, decode_seconds, generated_tokens, prompt_tokens
    kv_bytes, peak_kv_bytes
    nll, buckets        mean nats a token, and [start, end, nll, num_tokens] by position
    model, fingerprint, device, dtype, haystack, generator, versions, commit, time

Skipped rows are kept as a record, and tried again by the next run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["IDENTITY", "ResultLog", "Row", "row_key", "set_aside"]

Row = Mapping[str, Any]
"""A result row, as described above."""

IDENTITY = (
    "suite", "task", "kind", "spec", "length_tokens", "depth", "seed",
    "model", "fingerprint", "device", "dtype", "haystack", "generator", "longspan",
)  # fmt: skip
"""Fields that decide whether two rows measure the same thing. The commit is not one: rows of several are reported."""


def row_key(identity: Mapping[str, Any]) -> str:
    """Short digest of everything that decides what a row measures.

    Args:
        identity: a value for each name in `IDENTITY`, nothing else.

    Returns:
        16 hexadecimal digits.
    """
    if set(identity) != set(IDENTITY):
        wrong = sorted(set(identity) ^ set(IDENTITY))
        raise ValueError(
            f"identity has the wrong fields ({', '.join(wrong)}), it needs exactly {', '.join(IDENTITY)}."
        )
    text = json.dumps({name: identity[name] for name in IDENTITY}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class ResultLog:
    """A results file on disk, and its rows by key.

    Opening drops a last line that a crash or a full disk cut short. A later row replaces an earlier one of its key.

    Args:
        path: the JSONL file; made with its folders when the first row is appended.

    Raises:
        ValueError: a line before the last one is not JSON, or has no key.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: dict[str, dict[str, Any]] = {}
        self.dropped_bytes = 0
        if self.path.exists():
            self._load()

    def _load(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].split(b"\n")[:-1], start=1):
            try:
                row = json.loads(line)
                self.rows[row["key"]] = row
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(
                    f"{self.path} line {number} is not a result row, expected one JSON object with a key a line; "
                    "repair the line, or start over with --fresh."
                ) from error
        self.dropped_bytes = len(data) - whole
        if self.dropped_bytes:
            os.truncate(self.path, whole)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row and flush it; a failed write leaves the file as it was before.

        Args:
            row: must hold a `key`; everything in it must be JSON.

        Raises:
            OSError: the disk refused, for one because it is full.
        """
        line = json.dumps(dict(row), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:
            before = file.tell()
            try:
                written = file.write(line)
                while written < len(line):
                    written += file.write(line[written:])
            except OSError as error:
                file.truncate(before)
                raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.rows[row["key"]] = dict(row)

    def done(self, key: str) -> dict[str, Any] | None:
        """The measured row of a key, or None when it has not been measured (a skipped row has not)."""
        row = self.rows.get(key)
        return row if row is not None and row["status"] == "done" else None


def set_aside(path: Path) -> Path | None:
    """Start over: move a results file, whatever it holds, to the first free `<name>.<number>` beside it.

    Returns:
        Where the old rows are now, or None when there were none.
    """
    if not path.exists():
        return None
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    os.replace(path, aside)
    return aside
