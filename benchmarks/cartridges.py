"""Cartridges beside the whole context and beside other contexts of the same bytes: answers about facts hidden in prose.

    python -m benchmarks.cartridges --text pride-and-prejudice.md war-and-peace.md --folder run/

For each text file a document of `--length` tokens is made, with `--facts` invented facts in it (those of the suite `facts`), and a
cartridge of it is trained, unless the folder holds one already (`--resume` goes on with broken runs): on one thread of the CPU, or on
a GPU, where `--workers` documents are trained at once, each in a process of its own. Passages of `--beside`, which is neither a
document nor a fact, stand beside a cartridge in a share of its steps.
Each fact is then asked for, in words that training never saw, of the whole context, the cartridge, the untrained cartridge
(which is the text cut to as many tokens) and SnapKV at a sixteenth. Of two documents or more, the cartridges put behind one another
are asked about all of them. Bytes are measured, room for a question included. A figure has `--facts` questions a document, so two
answers more or less are chance.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import longspan
from longspan._files import write_json_whole
from longspan.engine.model import SpanModel
from longspan.evaluation.haystacks.text import text_haystack
from longspan.evaluation.provenance import commit, versions
from longspan.evaluation.sample import assemble
from longspan.evaluation.suites.facts import draw_facts, fact_puzzle
from longspan.evaluation.task import Puzzle
from longspan.methods.cache.cartridges.cartridge import load_cartridge
from longspan.training.cartridges.config import CartridgeConfig
from longspan.training.cartridges.train import train_cartridge

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cartridges.json"


def document(
    model: SpanModel, text: Path, length_tokens: int, num_facts: int, seed: int
) -> tuple[str, list[Puzzle]]:
    """Prose of a book with facts hidden in it, and a puzzle for each that asks for it."""
    rng = random.Random(seed)
    facts = draw_facts(num_facts, rng)
    hidden = fact_puzzle(facts, rng)
    sample = assemble(hidden, text_haystack(text), length_tokens, model.tokenizer, rng)
    return sample.context, [fact_puzzle([fact], random.Random(0)) for fact in facts]


def ask_all(model: SpanModel, text: str, puzzles: Sequence[Puzzle]) -> dict[str, Any]:
    """Share of the facts that a context tells, and its bytes."""
    context, found = model.read(text, progress=False), 0
    started = time.perf_counter()
    for puzzle in puzzles:
        said = context.ask(puzzle.question, max_new_tokens=puzzle.max_new_tokens, sources=False).text
        found += puzzle.references[0].lower() in said.lower()
    return {
        "spec": model.spec,
        "right": found,
        "asked": len(puzzles),
        "kv_bytes": context.kv_bytes,
        "seconds_per_answer": round((time.perf_counter() - started) / len(puzzles), 3),
    }


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cartridge to be trained."""

    model: str
    device: str | None
    dtype: str | None
    words: str
    beside: str | None
    config: CartridgeConfig
    file: Path
    resume: bool


def train(job: Job, model: SpanModel | None = None) -> None:
    """Train a cartridge, with a model of its own where none is given."""
    if model is None:
        torch.set_num_threads(1)
        model = longspan.load(job.model, device=job.device, dtype=job.dtype)
    name = job.file.name.partition(".")[0]
    train_cartridge(
        model,
        job.words,
        job.config,
        out=job.file,
        beside=job.beside,
        resume=job.resume and job.file.with_name(job.file.name + ".checkpoint").is_file(),
        report=lambda record: print(name, record, flush=True),
    )


def train_all(jobs: Sequence[Job], workers: int, model: SpanModel) -> None:
    """Train cartridges, `workers` at a time; one at a time with `model` itself."""
    if min(workers, len(jobs)) < 2:
        for job in jobs:
            train(job, model)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(train, jobs))


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="a text file for each document")
    parser.add_argument("--folder", type=Path, required=True, help="where documents and cartridges go")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="text files for passages beside")
    parser.add_argument("--model", default="reference")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: cuda where there is one")
    parser.add_argument("--dtype", help="float32, bfloat16; default: that of the device")
    parser.add_argument(
        "--workers", type=int, help="documents trained at once; default: on a GPU all, else 1"
    )
    parser.add_argument("--length", type=int, default=3500)
    parser.add_argument("--facts", type=int, default=24)
    parser.add_argument("--tokens-kept", type=int, default=205)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--conversations", type=int, default=1600)
    parser.add_argument("--beside-share", type=float, default=CartridgeConfig.beside_share)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options()
    given = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    try:
        config = CartridgeConfig(
            tokens_kept=given.tokens_kept,
            steps=given.steps,
            conversations=given.conversations,
            beside_share=given.beside_share,
        )
        model = longspan.load(given.model, device=given.device, dtype=given.dtype)
        device = model.info.device
        workers = given.workers or (len(given.text) if device.type == "cuda" else 1)
        if device.type == "cpu":
            torch.set_num_threads(1)
        given.folder.mkdir(parents=True, exist_ok=True)
        beside = "\n\n".join(file.read_text(encoding="utf-8") for file in given.beside) or None
        made, jobs = [], []
        for number, text in enumerate(given.text, start=1):
            words, puzzles = document(model, text, given.length, given.facts, number)
            file = given.folder / f"document-{number}.cartridge.safetensors"
            job = Job(
                model=given.model,
                device=str(device),
                dtype=given.dtype,
                words=words,
                beside=beside,
                config=config,
                file=file,
                resume=given.resume,
            )
            made.append((text.name, words, puzzles, file))
            if not file.is_file() or given.resume:
                jobs.append(job)
        train_all(jobs, workers, model)
        for name, words, puzzles, file in made:
            trained = load_cartridge(file)
            specs = {
                "whole context": "dense",
                "cartridge": f'cartridges(file="{file}")',
                "untrained cartridge": f"cartridges(tokens={trained.num_tokens})",
                "snapkv": "snapkv(keep=0.0625)",
            }
            for what, spec in specs.items():
                row = ask_all(model.with_methods(spec), words, puzzles)
                rows.append({"document": name, "what": what} | row | {"training": dict(trained.settings)})
        if len(made) > 1:
            spec = "cartridges(files=[" + ", ".join(f'"{file}"' for *_, file in made) + "])"
            together = "\n\n".join(words for _, words, _, _ in made)
            for name, _, puzzles, _ in made:
                row = ask_all(model.with_methods(spec), together, puzzles)
                rows.append({"document": name, "what": "composed"} | row)
    except ValueError as error:
        parser.error(str(error))
    for row in rows:
        print(
            f"{row['document']:24} {row['what']:20} {row['right']}/{row['asked']}  {row['kv_bytes']:>11,} bytes"
        )
    facts = {
        "model": model.name,
        "device": str(device),
        "threads": torch.get_num_threads(),
        **versions(),
        "commit": commit(),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    # the folder is this machine's
    kept = [row | facts | {"spec": row["spec"].replace(f"{given.folder}/", "")} for row in rows]
    write_json_whole(given.out, kept)
    print(f"wrote {len(rows)} rows to {given.out}")


if __name__ == "__main__":
    main()
