"""What reading and asking cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What reading or asking cost. Bytes are measured from storage; `seconds` has the phases read, prefill, decode;
    `backends` says which implementation of each op ran, how often, and why others did not (see `ops.backend`)."""

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    kv_bytes: int
    peak_kv_bytes: int
    seconds: dict[str, float]
    backends: list[dict[str, Any]]


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Count the `with` block towards a phase, work that a GPU still does included."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            elapsed = time.perf_counter() - start
            self.seconds[phase] = self.seconds.get(phase, 0.0) + elapsed
