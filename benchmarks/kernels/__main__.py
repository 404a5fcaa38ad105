"""Kernels on a GPU: each case is checked against its float32 naive twin, then timed against its baseline.

    python -m benchmarks.kernels --out benchmarks/results/kernels.json
    python -m benchmarks.kernels decode quantised --quick

Every file beside this one that has `cases(quick)` is one op. Random data, rotated buffers, medians of calls timed in
turns. A case whose error is too large is not timed, and the command ends with exit code 1.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.harness import Case, GateError, measure, measured_limits
from longspan._files import write_whole
from longspan.evaluation.provenance import commit

RESULTS = Path(__file__).parents[1] / "results" / "kernels.json"
OPS = sorted(
    path.stem
    for path in Path(__file__).parent.glob("[a-z]*.py")
    if path.stem != "harness" and "def cases(" in path.read_text(encoding="utf-8")
)


def write(rows: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def show(row: dict[str, Any]) -> None:
    share = row["share_of_limit"]
    print(
        f"{row['op']:<22} {row['case']:<34} {row['tokens']:>8} {row['density'] or '':>7} {row['ours_ms']:>9.4g} ms "
        f"{row['baseline_ms']:>9.4g} ms {row['ratio']:>7.2f}x  {row['tflops'] or '':>6} TF/s "
        f"{row['terabytes_per_second'] or '':>6} TB/s  {'' if share is None else format(share, '.0%'):>4} of limit  "
        f"err {row['error']:.1e}  {row['baseline']}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"some of {', '.join(OPS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="few sizes, none of them large")
    parser.add_argument("--seconds", type=float, default=0.3, help="GPU time for each side of a case")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    unknown = sorted(set(given.ops) - set(OPS))
    if unknown:
        parser.error(f"got op {unknown[0]!r}; allowed are {', '.join(OPS)}")
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device here; the kernels are timed on a GPU")
    import triton

    facts = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit(),
    }
    limits = measured_limits()
    facts["limit_tflops"], facts["limit_terabytes_per_second"] = (
        round(limits[name] / 1e12, 3) for name in ("flops", "bytes")
    )
    print(facts, flush=True)
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    for op in given.ops or OPS:
        start = time.perf_counter()
        found: Iterator[Case] = importlib.import_module(f"benchmarks.kernels.{op}").cases(given.quick)
        while (case := next(found, None)) is not None:
            try:
                row = measure(case, seconds=given.seconds, limits=limits)
            except GateError as error:
                wrong.append(str(error))
                print("WRONG", error, flush=True)
            else:
                rows.append({**row, **facts})
                show(rows[-1])
                write(rows, given.out)
            del case
            gc.collect()
            torch.cuda.empty_cache()
        print(f"{op}: {time.perf_counter() - start:.0f} s", flush=True)
    print(f"wrote {len(rows)} rows to {given.out}")
    if wrong:
        raise SystemExit(f"{len(wrong)} cases were wrong and were not timed")


if __name__ == "__main__":
    main()
