"""The official metrics on published predictions, against the published scores.

    python benchmarks/metric_parity.py FOLDER

FOLDER holds checkouts, by name, of the repositories that publish predictions: LongLoRA, InfiniteBench, LEval, babilong, LVEval,
LongProc, NeedleChain, RULER (a fork with predictions, which also needs `squad-v2-dev.json` beside it). What is absent is left
out and said. Writes `docs/metrics.md` and `benchmarks/results/metric_parity.json`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from metric_parity_checks import CHECKS, Cell

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "metric_parity.json"
PAGE = ROOT / "docs" / "metrics.md"


def page(cells: Sequence[Cell], absent: Sequence[str]) -> str:
    """The table as Markdown."""
    equal = sum(one.equal for one in cells)
    lines = [
        "# Official metrics, checked",
        "",
        "The metrics of `longspan/evaluation/metrics/`, run on the answers that benchmarks published, against the scores that they "
        "published for them. Scores are per cent, equal to the digits published (L-Eval cuts digits off); "
        "LongProc and NeedleChain publish no answers, so there the published solutions must score 1, and are counted; BABILong and "
        "RULER's questions have no published score for these answers, so there it is the official scorer's. "
        "`python benchmarks/metric_parity.py FOLDER` makes this page anew.",
        "",
        f"**{equal} of {len(cells)} equal.** Where an official scorer has a fault, its metric here has it too, and says so; "
        "a metric of the same name with `_fixed` does not.",
        "",
        "| benchmark | task | published | ours | equal | note |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.benchmark} | {one.task} | {one.published} | {one.ours} | {'yes' if one.equal else '**no**'} | {one.note} |"
        for one in cells
    ]
    if absent:
        lines += ["", f"Not run, for want of their checkouts: {', '.join(absent)}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="folder with the checkouts")
    folder = parser.parse_args().folder
    present = [name for name in CHECKS if (folder / name).is_dir()]
    absent = [name for name in CHECKS if name not in present]
    if not present:
        parser.error(
            f"{folder} holds none of the checkouts {', '.join(CHECKS)}; clone at least one of them there"
        )
    cells = [one for name in present for one in CHECKS[name](folder)]
    for one in cells:
        print(
            f"{one.benchmark:14} {one.task:48} {one.published:>10} {one.ours:>10} {'' if one.equal else 'NOT EQUAL'}"
        )
    texts = {
        RESULTS: json.dumps({"absent": absent, "cells": [asdict(one) for one in cells]}, indent=1) + "\n"
    }
    for path, text in {**texts, PAGE: page(cells, absent)}.items():
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)


if __name__ == "__main__":
    main()
