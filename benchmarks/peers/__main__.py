"""The same model, samples and budgets under kvpress and under longspan.

    python -m benchmarks.peers export --samples 4 --out peers/              # model folder and samples, for any library
    python benchmarks/peers/kvpress_run.py peers/                           # in kvpress's own environment
    python -m benchmarks.peers compare peers/                               # ours on the same samples; one table

`compare` scores both by the task's own metric, sample by sample, and writes benchmarks/results/kvpress.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import longspan
from longspan._files import write_json_whole, write_whole
from longspan.engine.context import stop_ids
from longspan.engine.prompt import Prompt, encode, text_chunks
from longspan.evaluation.compression import MODES
from longspan.evaluation.exams import FIRST_SEED, AnswerExam, asked
from longspan.evaluation.provenance import commit, versions
from longspan.evaluation.registry import find_task, find_tasks
from longspan.evaluation.runner import open_haystack

RESULTS = Path(__file__).parents[1] / "results" / "kvpress.json"
SKIPPED = ("ruler/qa_1", "ruler/qa_2")  # a model of this size answers none of them
OURS = {  # where names or settings differ; the other settings are the card's own
    "snapkv": "snapkv(keep={keep}, window_tokens=32, pool_tokens=7, pooling=mean)",
    "pyramidkv": "pyramidkv(keep={keep}, window_tokens=32, pool_tokens=7, pooling=mean)",
    "adakv": "adakv(keep={keep}, window_tokens=32, pool_tokens=7, pooling=mean)",
    "tova": "tova(keep={keep}, when=read)",
    "keydiff": "keydiff(keep={keep}, when=read)",
    "streaming": "streaming(keep={keep}, when=read)",
}


def cases(length: int, samples: int, model: Any) -> Iterator[tuple[str, Any, Any]]:
    """RULER's samples in both modes: id, exam, sample."""
    _, haystack = open_haystack("pydoc")
    for seed in range(FIRST_SEED, FIRST_SEED + samples):
        for mode in MODES:
            for name in (name for name, entry in find_tasks().items() if entry.suite == "ruler"):
                if name in SKIPPED:
                    continue
                exam = find_task(mode + name).exam
                item = exam.build(
                    length_tokens=length, depth=None, seed=seed, haystack=haystack, tokenizer=model.tokenizer
                )
                yield f"{mode + name} {seed}", exam, item


def export(given: argparse.Namespace) -> None:
    """Write the model as a stock folder, and each sample as token ids."""
    model = longspan.load("reference")
    (given.out / "model").mkdir(parents=True, exist_ok=True)
    model.hf_model.set_attn_implementation("sdpa")
    model.hf_model.save_pretrained(given.out / "model")
    model.tokenizer.save_pretrained(given.out / "model")
    lines = []
    for name, _, item in cases(given.length, given.samples, model):
        chunks, _ = text_chunks(
            model.tokenizer, item.context, model.hf_model.get_input_embeddings().num_embeddings
        )
        question = Prompt.of(model.tokenizer).question(
            asked(model.tokenizer, item.question), item.answer_prefix
        )
        line = {
            "id": name,
            "context_ids": [int(token) for chunk in chunks for token in chunk],
            "question_ids": encode(model.tokenizer, question).tolist(),
            "stop_ids": sorted(stop_ids(model)),
            "max_new_tokens": item.max_new_tokens,
        }
        lines.append(json.dumps(line))
    write_whole(given.out / "samples.jsonl", "\n".join(lines) + "\n")
    write_json_whole(given.out / "export.json", {"length": given.length, "samples": given.samples})
    print(f"{len(lines)} samples and a model in {given.out}")


def compare(given: argparse.Namespace) -> None:
    """Run ours on what kvpress answered, score both; all parts there, write and print a table."""
    number, parts = (int(x) for x in given.part.split("/"))
    plan = json.loads((given.folder / "export.json").read_text())
    base = longspan.load("reference", dtype=given.dtype, device=given.device)
    theirs: dict[str, list[dict[str, Any]]] = {}
    for row in read_lines(given.folder, "kvpress"):
        theirs.setdefault(row["sample"], []).append(row)
    done = {(row["spec"], row["sample"]): row for row in read_lines(given.folder, "longspan")}
    pairs: list[dict[str, Any]] = []
    with (given.folder / f"longspan.{number}.jsonl").open("a") as out:
        for place, (name, exam, item) in enumerate(cases(plan["length"], plan["samples"], base)):
            assert isinstance(exam, AnswerExam)
            for row in theirs.get(name, []) if place % parts == number - 1 or parts == 1 else []:
                spec = spec_of(row["press"], row["ratio"])
                if (spec, name) not in done:
                    measured = exam.measure(base.with_methods(spec), item)
                    done[spec, name] = {"spec": spec, "sample": name, **measured}
                    out.write(json.dumps(done[spec, name]) + "\n")
                    out.flush()
                pairs.append(pair(row, done[spec, name], exam, item, base))
    if parts > 1:
        return
    facts = {"length": plan["length"], "device": str(base.info.device), "longspan_versions": versions()}
    found = [line | facts | {"commit": commit()} for line in summary(pairs)]
    write_json_whole(given.results, found)
    print(table(found))


def read_lines(folder: Path, whose: str) -> list[dict[str, Any]]:
    """Rows of all parts."""
    files = sorted(folder.glob(f"{whose}.*jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def spec_of(press: str, dropped: float) -> str:
    """Ours with the settings of a press."""
    spec = OURS.get(press, f"{press}(keep={{keep}})")
    return spec.format(keep=round(1 - dropped, 4))


def pair(theirs: dict[str, Any], ours: dict[str, Any], exam: Any, item: Any, base: Any) -> dict[str, Any]:
    """One sample under both, scored alike."""
    score = None
    if "error" not in theirs:
        text = base.tokenizer.decode(theirs["token_ids"], skip_special_tokens=True)
        score = exam.marked(text.strip(), item)["score"]
    return {
        "press": theirs["press"],
        "ratio": theirs["ratio"],
        "mode": next(mode for mode in reversed(MODES) if ours["sample"].startswith(mode)),
        "spec": ours["spec"],
        "ours": ours["score"],
        "theirs": score,
        "error": theirs.get("error"),
        "our_bytes": ours["kv_bytes"],
        "their_bytes": theirs.get("kv_bytes"),
        "versions": {key: theirs[key] for key in ("kvpress", "transformers", "torch")},
    }


def summary(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the samples that both answered, by press, ratio and mode."""
    cells: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for pair in pairs:
        cells.setdefault((pair["press"], pair["ratio"], pair["mode"]), []).append(pair)
    rows = []
    for (press, ratio, mode), held in sorted(cells.items()):
        both = [pair for pair in held if pair["theirs"] is not None]
        row: dict[str, Any] = {
            "press": press,
            "dropped": ratio,
            "question": "seen" if mode else "hidden",
            "spec": held[0]["spec"],
            "samples": len(both),
            "versions": held[0]["versions"],
            "error": next((pair["error"] for pair in held if pair["error"]), None),
        }
        if both:
            gaps = [pair["ours"] - pair["theirs"] for pair in both]
            row |= {
                "equal": sum(abs(gap) < 1e-9 for gap in gaps),
                "gap_error": round(stdev(gaps) / len(gaps) ** 0.5, 4) if len(gaps) > 1 else None,
                "ours": round(fmean(pair["ours"] for pair in both), 4),
                "theirs": round(fmean(pair["theirs"] for pair in both), 4),
                "our_bytes": round(fmean(pair["our_bytes"] for pair in both)),
                "their_bytes": round(fmean(pair["their_bytes"] for pair in both)),
            }
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a line for each press, budget and mode; beside ours the standard error of the difference, and how many samples score
    alike."""
    lines = [
        "| press | dropped | question | n | alike | kvpress | longspan | their MB | our MB |",
        "|---" * 9 + "|",
    ]
    for row in rows:
        cells = [row["press"], f"{row['dropped']:.0%}", row["question"], str(row["samples"])]
        if "ours" in row:
            noise = "" if row["gap_error"] is None else f" ± {100 * row['gap_error']:.1f}"
            cells += [str(row["equal"]), f"{100 * row['theirs']:.1f}", f"{100 * row['ours']:.1f}{noise}"]
            cells += [f"{row['their_bytes'] / 1e6:.2f}", f"{row['our_bytes'] / 1e6:.2f}"]
        else:
            cells += ["–", str(row["error"])[:40], "–", "–", "–"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("export")
    first.add_argument("--samples", type=int, default=4, help="of each task and mode")
    first.add_argument("--length", type=int, default=4096)
    first.add_argument("--out", type=Path, required=True)
    first.set_defaults(run=export)
    second = commands.add_parser("compare")
    second.add_argument("folder", type=Path)
    second.add_argument("--device", default="cpu")
    second.add_argument("--dtype", default="float32")
    second.add_argument(
        "--part", default="1/1", help="K/N: measure the K-th of N parts of ours and write no table"
    )
    second.add_argument("--results", type=Path, default=RESULTS)
    second.set_defaults(run=compare)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
