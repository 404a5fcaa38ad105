"""Result rows for the tests of reports: fields as the runner writes them, with what a test cares about set."""

from __future__ import annotations

from typing import Any


def row(spec: str = "dense", **fields: Any) -> dict[str, Any]:
    base = {
        "status": "done", "kind": "answer", "spec": spec, "task": "vt", "length_tokens": 4096, "depth": 0.5, "seed": 1,
        "score": 1.0, "read_seconds": 2.0, "prefill_seconds": 0.5, "decode_seconds": 0.5, "generated_tokens": 10,
        "kv_bytes": 8_000_000, "peak_kv_bytes": 9_000_000,
    }  # fmt: skip
    return base | fields


def likelihood(spec: str, nll: float) -> dict[str, Any]:
    buckets = [[0, 512, nll, 511], [512, 1024, nll + 1, 512]]
    fields = {"kind": "likelihood", "task": "perplexity", "length_tokens": 1024, "depth": None}
    return {"status": "done", "spec": spec, "nll": nll + 0.5, "buckets": buckets, **fields}


ROWS = [
    row(), row(score=0.0, depth=0.0),
    row("tail(keep=0.25)", score=0.5, kv_bytes=2_000_000), row("tail(keep=0.25)", depth=None),
    row("dense", length_tokens=8192), row("a<b>&c", status="skipped", reason="<too> long", score=None),
    likelihood("dense", 3.0), likelihood("tail(keep=0.25)", 4.0),
]  # fmt: skip
