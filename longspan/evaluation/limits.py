"""What is too much: a sample that would take too long or too much memory is skipped with a reason instead of tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Limits", "free_memory", "refusal"]

_SHORT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def refusal(error: BaseException) -> str | None:
    """The reason to show when this error means that a model cannot do a sample; None for an error of any other sort.

    A ValueError is the engine's or a method's own sentence. Torch raises RuntimeError when memory runs out.
    """
    if isinstance(error, ValueError):
        return str(error)
    first = (str(error).splitlines() or [""])[0]
    if isinstance(error, MemoryError) or any(phrase in str(error).lower() for phrase in _SHORT_OF_MEMORY):
        return f"out of memory: {first}" if first else "out of memory"
    return None


def free_memory(device_type: str) -> Callable[[], int | None]:
    """A function that gives the free bytes of the GPU, or of the machine; None where the system does not say."""

    def cuda() -> int:
        import torch

        return torch.cuda.mem_get_info()[0]

    def machine() -> int | None:
        try:
            lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        found = next((line for line in lines if line.startswith("MemAvailable:")), None)
        return int(found.split()[1]) * 1024 if found else None

    return cuda if device_type == "cuda" else machine


@dataclass(kw_only=True)
class Limits:
    """Predicts a sample's cost from shorter ones of the same spec: it grows at least in proportion to the length.

    Proportion is a lower bound (dense attention grows faster), so that nothing is skipped that would have fitted.

    Args:
        seconds: the longest a sample may take; None for no limit.
        free_bytes: gives the bytes free now, or None.
    """

    seconds: float | None = 600.0
    free_bytes: Callable[[], int | None] = lambda: None
    _seen: dict[tuple[str, str], tuple[int, float, int]] = field(default_factory=dict, init=False)

    def learn(self, row: Mapping[str, Any]) -> None:
        """Remember what a measured row cost; the longest length, and there the fastest sample, count."""
        if row["status"] != "done":
            return
        key = (row["spec"], row["kind"])
        spent = sum(row.get(name) or 0.0 for name in ("read_seconds", "prefill_seconds", "decode_seconds"))
        peak = row.get("peak_kv_bytes") or 0
        length, least, _ = self._seen.get(key, (0, 0.0, 0))
        if row["length_tokens"] > length:
            self._seen[key] = (row["length_tokens"], spent, peak)
        elif row["length_tokens"] == length:
            self._seen[key] = (length, min(least, spent), peak)

    def too_costly(self, spec: str, length_tokens: int, kind: str) -> str | None:
        """Why a sample of this length should not be tried; None when it may."""
        length, seconds, peak = self._seen.get((spec, kind), (0, 0.0, 0))
        if not length or length_tokens <= length:
            return None
        growth = length_tokens / length
        if self.seconds is not None and seconds * growth > self.seconds:
            return (
                f"would take at least {seconds * growth:,.0f} s a sample "
                f"(it took {seconds:,.1f} s at {length:,} tokens), the limit is {self.seconds:,.0f} s; "
                "raise --limit-seconds to try"
            )
        free = self.free_bytes()
        if free is not None and peak * growth > free:
            return f"needs at least {peak * growth / 1e9:,.1f} GB for keys and values, {free / 1e9:,.1f} GB are free"
        return None
