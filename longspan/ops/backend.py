"""Which implementation of an op runs, and why another does not.

Every op has several: `naive` (float32, readable), `triton` (CUDA), and where they win `gluon` (Hopper), `cpu` or `cudnn`. An op
lists those it has, best first, with the reason why one cannot serve the call; the first without a reason runs. Nothing
is chosen silently: `watch_backends` counts what ran, and `longspan env` shows what can run on this machine.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_HEAD_DIM = 256
OLDEST_CAPABILITY = (8, 0)  # Ampere: bfloat16 matrix units and asynchronous copies


@dataclass(frozen=True)
class Choice:
    """What ran, and why those before it did not: `skipped` holds `(backend, reason)`."""

    op: str
    backend: str
    skipped: tuple[tuple[str, str], ...] = ()


_WATCHERS: ContextVar[tuple[Counter[Choice], ...]] = ContextVar("longspan_backends", default=())


@contextmanager
def watch_backends() -> Iterator[Counter[Choice]]:
    """Count every `Choice` that is made inside the `with` block."""
    seen: Counter[Choice] = Counter()
    token = _WATCHERS.set((*_WATCHERS.get(), seen))
    try:
        yield seen
    finally:
        _WATCHERS.reset(token)


def choose(op: str, candidates: Mapping[str, str | None], forced: str | None = None) -> str:
    """The backend that runs.

    Args:
        op: its name, for messages and watchers.
        candidates: backends, best first, each with the reason why it cannot serve this call, or None when it can.
        forced: one of them by name; None for the first that can.

    Raises:
        ValueError: the forced one is unknown or cannot; nothing was launched.
    """
    if forced is not None:
        if forced not in candidates:
            raise ValueError(f"got backend={forced!r} for {op}; allowed are {', '.join(candidates)}")
        if candidates[forced] is not None:
            can = ", ".join(name for name, reason in candidates.items() if reason is None)
            raise ValueError(
                f"{op} cannot run on backend={forced!r}: {candidates[forced]}; use {can}, or leave it out"
            )
        chosen = forced
    else:
        chosen = next(name for name, reason in candidates.items() if reason is None)
    watchers = _WATCHERS.get()
    if watchers:
        before = list(candidates)[: list(candidates).index(chosen)]
        skipped = tuple((name, str(candidates[name])) for name in before if candidates[name] is not None)
        for seen in watchers:
            seen[Choice(op, chosen, skipped)] += 1
    return chosen


def triton_reason(*tensors: Tensor, forced: bool = False) -> str | None:
    """Why Triton kernels cannot take these tensors; None when they can.

    `forced` also admits CPU tensors under Triton's interpreter (TRITON_INTERPRET=1), which is for tests.
    """
    missing = missing_triton()
    if missing is not None:
        return missing
    first = tensors[0]
    if not first.is_cuda and not (forced and os.environ.get("TRITON_INTERPRET") == "1"):
        return f"the tensors are on {first.device.type}, not on a CUDA device"
    if first.is_cuda and (capability := capability_of(first.device.index or 0)) < OLDEST_CAPABILITY:
        return _too_old(capability)
    for x in tensors:
        if x.dtype not in TRITON_DTYPES:
            return f"{x.dtype} is not one of bfloat16, float16 and float32"
        if x.shape[-1] > MAX_HEAD_DIM:
            return f"head_dim {x.shape[-1]} is above {MAX_HEAD_DIM}"
    return None


def backend_rows(seen: Mapping[Choice, int]) -> list[dict[str, Any]]:
    """What ran, for result files: op, backend, calls, and why other backends did not, most calls first."""
    rows = [
        {"op": choice.op, "backend": choice.backend, "calls": calls, "not": dict(choice.skipped)}
        for choice, calls in seen.items()
    ]
    return sorted(rows, key=lambda row: (-row["calls"], row["op"], row["backend"]))


def machine_backends() -> dict[str, str]:
    """Backends by name, each with "runs" and where, or the reason why it cannot run on this machine."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    no_device = "no: there is no CUDA device"
    found = {"triton": f"no: {missing_triton()}" if missing_triton() else no_device, "cudnn": no_device}
    if device is not None and not missing_triton():
        capability = torch.cuda.get_device_capability()
        old = capability < OLDEST_CAPABILITY
        found["triton"] = f"no: {_too_old(capability)}" if old else f"runs on {device}"
    if device is not None:
        on = torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cudnn.is_available()
        found["cudnn"] = f"runs on {device}" if on else "no: this PyTorch has no cuDNN attention"
    found["gluon"] = _gluon_state(found["triton"])
    return {**found, "cpu": "runs", "naive": "runs"}


def _gluon_state(triton_state: str) -> str:
    """Gluon kernels are for Hopper GPUs and one version of triton; see `ops.block_sparse.gluon`."""
    from longspan.ops.block_sparse.gluon import machine_reason

    if triton_state.startswith("no"):
        return triton_state
    reason = machine_reason(torch.cuda.current_device())
    return triton_state if reason is None else f"no: {reason}"


@cache
def missing_triton() -> str | None:
    """Why there is no Triton here, or None."""
    return None if find_spec("triton") else "triton is not installed"


def _too_old(capability: tuple[int, int]) -> str:
    return f"compute capability {capability[0]}.{capability[1]} is older than 8.0"


@cache
def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; elsewhere, in Triton's interpreter, 2: enough programs to cut heads apart."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


@cache
def capability_of(index: int) -> tuple[int, int]:
    """Compute capability of a CUDA device."""
    return torch.cuda.get_device_capability(index)
