"""Cartridges beside the whole context and beside other contexts of the same bytes: answers about facts hidden in prose.

    python -m benchmarks.cartridges --text pride-and-prejudice.md war-and-peace.md --folder run/

For each text file a document of `--length` tokens is made, with `--facts` invented facts in it (those of the suite `facts`), and a
cartridge of it is trained on one thread of the CPU, unless the folder holds one already (`--resume` goes on with broken runs).
Each fact is then asked for, in words that training never saw, of the whole context, the cartridge, the untrained cartridge
(which is the text cut to as many tokens) and SnapKV at a sixteenth. Of two documents or more, the cartridges put behind one another
are asked about all of them. Bytes are measured, room for a question included. A figure has `--facts` questions a document, so two
answers more or less are chance.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="a text file for each document")
    parser.add_argument("--folder", type=Path, required=True, help="where documents and cartridges go")
    parser.add_argument("--model", default="reference")
    parser.add_argument("--length", type=int, default=3500)
    parser.add_argument("--facts", type=int, default=24)
    parser.add_argument("--tokens-kept", type=int, default=205)
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--conversations", type=int, default=640)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    config = CartridgeConfig(
        tokens_kept=given.tokens_kept, steps=given.steps, conversations=given.conversations
    )
    rows: list[dict[str, Any]] = []
    try:
        model = longspan.load(given.model, device="cpu")
        given.folder.mkdir(parents=True, exist_ok=True)
        made = []
        for number, text in enumerate(given.text, start=1):
            words, puzzles = document(model, text, given.length, given.facts, number)
            file = given.folder / f"document-{number}.cartridge.safetensors"
            if not file.is_file() or given.resume:
                train_cartridge(
                    model, words, config, out=file, resume=given.resume, report=lambda r: print(r, flush=True)
                )
            made.append((text.name, words, puzzles, file))
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
    facts = {"model": model.name, "device": "cpu", "threads": 1, **versions(), "commit": commit()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_json_whole(given.out, [row | facts for row in rows])
    print(f"wrote {len(rows)} rows to {given.out}")


if __name__ == "__main__":
    main()
