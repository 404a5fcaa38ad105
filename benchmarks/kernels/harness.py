"""One kernel case: checked first, then timed against its baseline, in turns, in one process."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], object]
LONG_MS, VERY_LONG_MS = 2000.0, 10000.0
GRAPH_CALLS = 8  # in a CUDA graph, at least


@dataclass(kw_only=True)
class Case:
    """What is timed.

    Args:
        op, case: names, as in the row.
        tokens: stored tokens.
        density: share of the (query, key) pairs that is visited, or None.
        error: relative error against the float32 naive twin (`relative_error`), on this case's own data or, where that
            is too large, on rows of it.
        tolerance: above it nothing is timed.
        ours, baseline: calls of equal work on different buffers, used in rotation so that no input stays in cache.
        baseline_name: such as "cuDNN SDPA".
        flops, num_bytes: what ours must do at least: operations, bytes read and written once.
        graph: capture the calls, several in a row as a model's layers are, in one CUDA graph (launches of a few microseconds
            would hide the kernels otherwise).
        facts: more keys of the row, such as the backend that ran.
    """

    op: str
    case: str
    tokens: int
    density: float | None = None
    error: Callable[[], float]
    tolerance: float
    ours: Sequence[Call]
    baseline: Sequence[Call]
    baseline_name: str
    flops: float = 0.0
    num_bytes: float = 0.0
    graph: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


class GateError(RuntimeError):
    """A case is wrong; it is not timed."""


def relative_error(out: Tensor, reference: Tensor) -> float:
    """||out - reference|| / ||reference||; infinite where anything is not finite."""
    difference = (out.double() - reference.double()).norm() / reference.double().norm().clamp(min=1e-30)
    return float(difference) if bool(torch.isfinite(out).all()) else float("inf")


def measure(case: Case, *, seconds: float = 0.3, limits: dict[str, float]) -> dict[str, Any]:
    """The row of a case.

    Args:
        seconds: GPU time to spend on each side.
        limits: measured rates of this GPU, `flops` (matrix operations a second) and `bytes` (bytes a second).

    Raises:
        GateError: the error is above the tolerance.
    """
    error = case.error()
    if not error <= case.tolerance:
        raise GateError(
            f"{case.op} {case.case} at {case.tokens} tokens: error {error:.2e} > {case.tolerance:.0e}"
        )
    ours, baseline = time_in_turns(case.ours, case.baseline, seconds=seconds, graph=case.graph)
    floor_ms = 1e3 * max(case.flops / limits["flops"], case.num_bytes / limits["bytes"])
    return {
        "op": case.op,
        "case": case.case,
        "tokens": case.tokens,
        "density": None if case.density is None else round(case.density, 4),
        "ours_ms": _digits(ours),
        "baseline": case.baseline_name,
        "baseline_ms": _digits(baseline),
        "ratio": round(baseline / ours, 3),
        "error": float(f"{error:.2e}"),
        "tflops": round(case.flops / ours / 1e9, 1) if case.flops else None,
        "terabytes_per_second": round(case.num_bytes / ours / 1e9, 3) if case.num_bytes else None,
        "floor_ms": _digits(floor_ms) if floor_ms else None,
        "share_of_limit": round(floor_ms / ours, 3) if floor_ms else None,
        "graph": case.graph,
        **case.facts,
    }


def time_in_turns(
    first: Sequence[Call], second: Sequence[Call], *, seconds: float, graph: bool
) -> tuple[float, float]:
    """Median milliseconds of a call of each side, timed in turns with events after a warm-up."""
    if graph:
        return _time_graphs(first, second, seconds)
    sides = [list(first), list(second)]
    once = []
    for calls in sides:
        cold = _time(calls[0])
        once.append(cold if cold > VERY_LONG_MS else _time(calls[-1]))  # the first call may compile
    if max(once) > LONG_MS:  # of seconds, one sample says enough
        return once[0], once[1]
    times: tuple[list[float], list[float]] = ([], [])
    rounds = max(3, min(200, int(seconds * 1e3 / max(once))))
    for turn in range(rounds):
        for calls, found in zip(sides, times, strict=True):
            found.append(_time(calls[turn % len(calls)]))
    return statistics.median(times[0]), statistics.median(times[1])


def _time_graphs(first: Sequence[Call], second: Sequence[Call], seconds: float) -> tuple[float, float]:
    """As `time_in_turns`, for graphs of all calls of a side, or of these several times."""

    def in_a_row(calls: Sequence[Call]) -> tuple[Call, int]:
        rounds = -(-GRAPH_CALLS // len(calls))
        return _captured(lambda: [call() for _ in range(rounds) for call in calls]), rounds * len(calls)

    (ours, num_ours), (baseline, num_baseline) = in_a_row(first), in_a_row(second)
    times = time_in_turns([ours], [baseline], seconds=seconds, graph=False)
    return times[0] / num_ours, times[1] / num_baseline


def measured_limits() -> dict[str, float]:
    """Rates of this GPU: bfloat16 products of 8192 x 8192 matrices, and a copy of 4 GiB counting both ways."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    product, copy = time_in_turns([lambda: a @ b], [lambda: target.copy_(source)], seconds=0.3, graph=False)
    return {"flops": 2 * 8192**3 / product * 1e3, "bytes": 2 * source.nbytes / copy * 1e3}


def _captured(call: Call) -> Call:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = call()
    graph.held = held
    return graph.replay


def _time(call: Call) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _digits(milliseconds: float) -> float:
    return float(f"{milliseconds:.4g}")
