"""Ways to extend the reference model's window, trained alike: same base, text, tokens, optimiser and tasks.

    python -m benchmarks.extension --text books/ --length 16384 --tokens 13107200 --out extension-runs
    python -m benchmarks.extension --page docs/extension.md

Every run is one `longspan train extend`, alone on its device so that seconds compare (`--device cuda:0,cuda:1` shares the
runs out). All models are then measured side by side, on tasks and texts that no run saw, at the trained window, the target
and twice the target, as "A Controlled Study on Long Context Extension and Generalization in LLMs" (2024) asks. Finished runs
and rows are not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import StatisticsError, correlation, fmean
from typing import Any

from longspan._files import write_json_whole, write_whole

RESULTS = Path(__file__).parent / "results" / "extension.json"
WINDOW = 4096
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
NEEDLE, LIKELIHOOD = "ruler/niah_single_1", "perplexity/perplexity"
TASKS = {
    NEEDLE: "needle",
    "keyvalue/keys8_numbers": "8 keys",
    "keyvalue/kv64": "64 keys",
    "ruler/vt": "tracing",
}
BASE = "untrained"
STEP_TOKENS = 65_536


def schemes(factor: int) -> dict[str, str]:
    """Runs by name, each with its scheme; `factor`: target over window."""
    return {
        "pi": f'full(positions="pi(factor={factor})")',
        "ntk": f'full(positions="ntk(factor={factor})")',
        "yarn": f'full(positions="yarn(factor={factor})")',
        "abf": 'full(positions="abf(theta=500000)")',
        "pose": f'pose(positions="yarn(factor={factor})")',
        "e2_llm": "e2_llm()",
        "clex": "clex()",
        "long_recipe": f'long_recipe(positions="ntk(factor={factor})")',
        "shifted": f'shifted(positions="pi(factor={factor})")',
    }


def train_command(name: str, scheme: str, given: argparse.Namespace) -> list[str]:
    """One run, as a user starts it."""
    command: list[object] = ["-m", "longspan", "train", "extend", "reference", "--scheme", scheme]
    command += ["--length", given.length, "--out", given.out / name, "--tokens", given.tokens]
    command += ["--batch-tokens", STEP_TOKENS, "--lr", given.lr, "--task-share", "0.5"]
    for folder in given.text:
        command += ["--text", folder]
    return [sys.executable, *map(str, command)]


def run_all(commands: dict[str, list[str]], devices: Sequence[str], each: int, logs: Path, verb: str) -> None:
    """Run every command, `each` at once on a device, which it sees as the only one; output goes to NAME.log in `logs`."""
    logs.mkdir(parents=True, exist_ok=True)
    waiting = list(commands)
    free = [device for _ in range(each) for device in devices]
    running: list[tuple[str, str, float, subprocess.Popen[bytes]]] = []
    while waiting or running:
        while waiting and free:
            name, device = waiting.pop(0), free.pop(0)
            environment = os.environ | ({"OMP_NUM_THREADS": "1"} if each > 1 else {})
            if device.startswith("cuda:"):
                environment["CUDA_VISIBLE_DEVICES"] = device.removeprefix("cuda:")
            with (logs / f"{name}.log").open("w") as log:
                process = subprocess.Popen(
                    commands[name], env=environment, stdout=log, stderr=subprocess.STDOUT
                )
            running.append((name, device, time.perf_counter(), process))
        for entry in list(running):
            name, device, start, process = entry
            if process.poll() is not None:
                running.remove(entry)
                free.append(device)
                end = "" if process.returncode == 0 else f", failed, see {logs / name}.log"
                print(f"{verb} {name}: {time.perf_counter() - start:.0f} s with loading{end}", flush=True)
        time.sleep(0.5)


def measure(name: str, given: argparse.Namespace) -> None:
    """Every task at every length for one trained model, or for the base under what needs no training."""
    from longspan.cli._bench_run import open_runner
    from longspan.evaluation.exams import FIRST_SEED
    from longspan.evaluation.runner import Job, grid
    from longspan.spec import canonical

    if name == BASE:
        model = "reference"
        specs = ["dense", canonical(f"yarn(factor={given.length // WINDOW})"), canonical("lm_infinite()")]
    else:
        model = str(given.out / name / "model")
        specs = [json.loads((given.out / name / "model" / "longspan.json").read_text())["spec"]]
    load = {"device": given.device, "dtype": given.dtype}
    runner = open_runner(model, load, "pydoc", given.out / "measured" / name, False, None)
    jobs: list[Job] = []
    for length in (WINDOW, given.length, 2 * given.length):
        shared: dict[str, Any] = {"specs": specs, "lengths": [length], "tokenizer": runner.model.tokenizer}
        seeds = [FIRST_SEED + i for i in range(given.samples)]
        jobs += grid(tasks=[NEEDLE], depths=DEPTHS, seeds=seeds, **shared)
        others = [task for task in TASKS if task != NEEDLE]
        jobs += grid(tasks=others, depths=(None,), seeds=seeds, samples=4 * given.samples, **shared)
        jobs += grid(tasks=[LIKELIHOOD], depths=(None,), seeds=seeds, samples=2, **shared)
    for _ in runner.run(jobs):
        pass


def train_and_measure(names: Sequence[str], known: dict[str, str], given: argparse.Namespace) -> None:
    """What is missing in the folder of runs: models first, then the rows of every model and of the base."""
    devices = given.device.split(",")
    untrained = [name for name in names if not (given.out / name / "model" / "longspan.json").is_file()]
    run_all(
        {name: train_command(name, known[name], given) for name in untrained},
        devices,
        1,
        given.out / "logs",
        "trained",
    )
    trained = [name for name in names if (given.out / name / "model" / "longspan.json").is_file()]
    own = [sys.executable, "-m", "benchmarks.extension", *sys.argv[1:], "--device", devices[0].split(":")[0]]
    lanes = -(-given.lanes // len(devices))
    run_all(
        {name: [*own, "--measure", name] for name in [*trained, BASE]},
        devices,
        lanes,
        given.out / "measured",
        "measured",
    )


def collect(names: Sequence[str], given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each run and spec: what it cost, and means of its scores by length."""
    from longspan.evaluation.comparison import read_rows
    from longspan.evaluation.pages import scores_by_cell
    from longspan.evaluation.stretch import last_perplexity

    found = []
    for name in names:
        rows = read_rows(given.out / "measured" / name / "results.jsonl")
        known = scores_by_cell(rows)
        card: dict[str, Any] = {}
        if name != BASE:
            card = json.loads((given.out / name / "model" / "longspan.json").read_text())
        for spec in dict.fromkeys(row["spec"] for row in rows):
            scores: dict[str, Any] = {}
            for length in sorted({row["length_tokens"] for row in rows}):
                cells = {}
                for task, title in TASKS.items():
                    held = known.get((spec, task, length))
                    cells[title] = {"mean": round(fmean(held), 4), "samples": len(held)} if held else None
                value = last_perplexity(rows, spec, length)
                scores[str(length)] = cells | {"perplexity": None if value is None else round(value, 3)}
            found.append(
                {
                    "run": name,
                    "scheme": card.get("settings", {}).get("scheme"),
                    "spec": spec,
                    "length": given.length,
                    "row_tokens": card.get("row_tokens"),
                    "steps": card.get("steps", 0),
                    "tokens": card.get("tokens", 0),
                    "lr": card.get("settings", {}).get("lr"),
                    "train_seconds": card.get("seconds", 0),
                    "train_device": card.get("device"),
                    "peak_memory_bytes": card.get("peak_memory_bytes"),
                    "scores": scores,
                    "device": rows[0]["device"],
                    "dtype": rows[0]["dtype"],
                    "versions": rows[0]["versions"],
                    "commit": rows[0]["commit"],
                }
            )
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: what a run cost, and at each length the mean of the tasks, each task, and perplexity."""
    lines = []
    for target in sorted({row["length"] for row in rows}):
        own = [row for row in rows if row["length"] == target]
        for length in (WINDOW, target, 2 * target):
            lines += [f"### Trained for {target:,} tokens, measured at {length:,}", ""]
            heads = ["run", "run with", "seconds", "mean", *TASKS.values(), "perplexity"]
            lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
            for row in own:
                cells = row["scores"].get(str(length), {})
                values = [cells.get(title) for title in TASKS.values()]
                known = [value["mean"] for value in values if value]
                spec = row["spec"] if len(row["spec"]) < 40 else row["spec"][:36] + "..."
                shown = [
                    row["run"],
                    f"`{spec}`",
                    f"{row['train_seconds']:.0f}",
                    f"**{100 * fmean(known):.0f}**" if known else "–",
                    *("–" if value is None else f"{100 * value['mean']:.0f}" for value in values),
                    "–" if cells.get("perplexity") is None else f"{cells['perplexity']:.1f}",
                ]
                lines.append("| " + " | ".join(shown) + " |")
            lines.append("")
    return "\n".join(lines)


def ranks(values: Sequence[float]) -> list[float]:
    """Place of each value from 1, equal ones sharing the mean of their places."""
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]


def agreement(rows: Sequence[dict[str, Any]], length: int) -> float | None:
    """Spearman's rank correlation over the runs of low perplexity with a high mean score at a length."""
    points = []
    for row in rows:
        cells = row["scores"].get(str(length), {})
        values = [cells[title]["mean"] for title in TASKS.values() if cells.get(title)]
        if row["run"] != BASE and values and cells.get("perplexity"):
            points.append((-cells["perplexity"], fmean(values)))
    if len(points) < 3:
        return None
    try:
        return correlation(*(ranks(values) for values in zip(*points, strict=True)))
    except StatisticsError:  # all alike
        return None


def write_page(file: Path, results: Path) -> None:
    """Put the table between the page's marks; the words around it stay."""
    from longspan.evaluation.pages import put_between

    rows = json.loads(results.read_text(encoding="utf-8"))
    start, end = "<!-- made by `python -m benchmarks.extension --page` -->", "<!-- end of the table -->"
    devices = sorted({row["train_device"] for row in rows if row["train_device"]})
    trained = sorted({(row["tokens"], row["lr"]) for row in rows if row["tokens"]})
    head = (
        f"Trained on {', '.join(devices)}: "
        + "; ".join(f"{n:,} tokens, learning rate {lr:g}" for n, lr in trained)
        + "."
    )
    agreements = []
    for target in sorted({row["length"] for row in rows}):
        own = [row for row in rows if row["length"] == target]
        for length in (target, 2 * target):
            value = agreement(own, length)
            if value is not None:
                agreements.append(f"{value:+.2f} at {length:,}")
    if agreements:
        head += f" Rank correlation (Spearman) of perplexity with the mean score over the runs: {', '.join(agreements)}."
    section = f"{head}\n\n{table(rows)}"
    whole = file.read_text(encoding="utf-8") if file.is_file() else "# Extension, compared\n"
    write_whole(file, put_between(whole, start, end, section))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text",
        type=Path,
        action="append",
        default=[],
        help="folder of books or of shards; may be given again",
    )
    parser.add_argument("--length", type=int, default=16384, help="target in tokens")
    parser.add_argument("--tokens", type=int, default=200 * STEP_TOKENS, help="of each run")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument(
        "--samples", type=int, default=2, help="of the needle at each depth; four times as many of the others"
    )
    parser.add_argument("--runs", help="some of the runs, by commas; all by default")
    parser.add_argument("--lanes", type=int, default=4, help="models measured at once")
    parser.add_argument("--device", default="cuda", help="one, or several by commas: cuda:0,cuda:1")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, default=Path("extension-runs"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--measure", metavar="RUN", help="measure one run only (used by the command itself)")
    parser.add_argument(
        "--collect", action="store_true", help="train and measure nothing: gather what --out holds"
    )
    parser.add_argument("--page", type=Path, help="write the results as a page, train nothing")
    given = parser.parse_args()
    if given.page:
        write_page(given.page, given.results)
        return
    known = schemes(given.length // WINDOW)
    names = list(known) if given.runs is None else given.runs.split(",")
    if unknown := [name for name in names if name not in known]:
        parser.error(f"got run {unknown[0]!r}; allowed are {', '.join(known)}")
    if given.measure:
        measure(given.measure, given)
        return
    if not given.collect:
        train_and_measure(names, known, given)
    names = [*names, BASE]
    found = [name for name in names if (given.out / "measured" / name / "results.jsonl").is_file()]
    rows = collect(found, given)
    others = json.loads(given.results.read_text()) if given.results.is_file() else []
    kept = [
        row for row in others if (row["run"], row["length"]) not in {(r["run"], r["length"]) for r in rows}
    ]
    given.results.parent.mkdir(parents=True, exist_ok=True)
    write_json_whole(given.results, kept + rows)
    print(table(rows))


if __name__ == "__main__":
    main()
