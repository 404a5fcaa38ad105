"""A masked-diffusion model past the window it was trained on, beside the causal model it was made of.

    python -m benchmarks.diffusion --text SHARDS --train-seconds 150 --out benchmarks/results/diffusion.json

Trains the bundled model into a denoiser with the reference recipe's data (or takes `--model`, a folder that `longspan train
diffusion` wrote), then measures both at 1, 2, 4 and 8 times the window, on the shards' held-out titles or on the text's end:

* perplexity over the whole text and over its last quarter; the denoiser's is LLaDA's Monte-Carlo bound, an upper one;
* RULER's single needle by depth, in a block of 12 tokens filled in `--steps` steps, or 12 greedy tokens of the causal model;
* both again under `ntk`, at the factor that the scaling laws of RoPE give for the length and at 1.5 times that.

What the time does not suffice for is left out, and said. Without `--smoke` the figure and the table of docs/diffusion.md are
written anew; `--from RESULTS` does only that.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.diffusion.measure import (
    BLOCK_TOKENS,
    Causal,
    NeedleMaker,
    law_factor,
    needle,
    perplexity,
    texts,
)
from benchmarks.diffusion.page import check_page, figure, table, write_page
from benchmarks.kernels.__main__ import write
from longspan._files import write_whole
from longspan.cli._output import check_writable
from longspan.evaluation.provenance import commit
from longspan.reference.config import RecipeConfig
from longspan.reference.shards import read_shards
from longspan.reference.train import pick_device
from longspan.training.diffusion.config import DiffusionConfig
from longspan.training.diffusion.denoiser import Denoiser, load_causal, load_denoiser
from longspan.training.diffusion.rows import hold_out
from longspan.training.diffusion.train import preferred_attention, train
from longspan.training.export import CARD
from longspan.training.text import make_rows

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "diffusion.json"
PAGE, FIGURE = ROOT / "docs" / "diffusion.md", ROOT / "docs" / "images" / "diffusion.svg"
TIMES = (1, 2, 4, 8)
DEPTHS = tuple(step / 10 for step in range(11))
MODELS = ("diffusion", "causal")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement. spec: of the frequencies. law_times: its factor over the scaling law's, None for the model's own
    frequencies. run: gives its rows."""

    what: str
    model: str
    spec: str
    law_times: float | None
    tokens: int
    run: Callable[[], list[dict[str, Any]]]


def cases(
    models: dict[str, Denoiser | Causal], held_out: np.ndarray, *, lengths: list[int], given: Any
) -> list[Case]:
    """All measurements, those that matter most first."""
    window = lengths[0]
    rope = models["diffusion"].rope
    tokenizer = models["causal"].tokenizer
    whole = texts(held_out, tokenizer.bos_token_id, lengths, given.texts)
    maker = NeedleMaker(tokenizer, held_out)
    prompts = {length: maker.prompts(length, given.depths, given.samples) for length in lengths}

    def case(what: str, name: str, length: int, law_times: float | None = None) -> Case:
        factor = None if law_times is None else round(law_times * law_factor(rope, length), 2)
        spec = "dense" if factor is None else f"ntk(factor={factor:g})"

        def run() -> list[dict[str, Any]]:
            if what == "needle":
                return needle(models[name], prompts[length], spec, given.steps)
            return [perplexity(models[name], whole[:, :length], spec, given.draws)]

        return Case(what=what, model=name, spec=spec, law_times=law_times, tokens=length, run=run)

    longer = [length for length in lengths if length > window]
    found = [case("perplexity", name, length) for length in lengths for name in MODELS]
    found += [case("needle", name, length) for length in lengths for name in MODELS]
    found += [case("needle", "diffusion", length, times) for times in (1.5, 1.0) for length in longer]
    found += [case("needle", "causal", length, 1.5) for length in longer]
    found += [case("perplexity", name, length, 1.5) for length in longer for name in MODELS]
    return found


def measure(
    todo: list[Case], facts: dict[str, Any], *, deadline: float, out: Path, window: int
) -> list[dict[str, Any]]:
    """Rows of all cases; the file is written anew after each."""
    rows: list[dict[str, Any]] = []
    for case in todo:
        known = {
            "op": "diffusion",
            "case": case.what,
            "model": case.model,
            "spec": case.spec,
            "law_times": case.law_times,
            "tokens": case.tokens,
            "window": window,
        }
        began = time.monotonic()
        if began > deadline:
            made: list[dict[str, Any]] = [{"skipped": "the time was over"}]
        else:
            try:
                made = case.run()
            except torch.OutOfMemoryError:
                made = [{"skipped": "does not fit into memory"}]
        seconds = round(time.monotonic() - began, 2)
        rows += [{**known, **row, "seconds": seconds, **facts} for row in made]
        shown = [{key: value for key, value in row.items() if key != "wrong_reply"} for row in made]
        print(case.what, case.model, case.spec, case.tokens, f"{seconds} s", json.dumps(shown), flush=True)
        write(rows, out)
    return rows


def unseen(given: argparse.Namespace, folder: Path, tail: np.ndarray, bos: int) -> tuple[np.ndarray, str]:
    """Text to measure on, and what it is: the titles that the reference recipe holds out, or else what this run held out."""
    folders = [part for part in (*given.text, folder / "shards") if any(part.rglob("heldout-*.xz"))]
    if folders:
        return read_shards(folders, "heldout", bos=bos, processes=1).tokens, "titles that neither model saw"
    return (
        tail,
        "the end of the training text, which the denoiser was not trained on and the causal model may have been",
    )


def prepare(given: argparse.Namespace, folder: Path) -> tuple[Denoiser, np.ndarray, dict[str, Any]]:
    """The denoiser where it is measured, the text that it was not trained on, and how it was made."""
    device = pick_device() if given.model else None
    if given.model:
        denoiser = load_denoiser(given.model)
        card = json.loads((given.model / CARD).read_text(encoding="utf-8"))
        recipe = RecipeConfig(buckets=((denoiser.window_tokens, 16),))
        made = make_rows(denoiser.tokenizer, given.text, folder, recipe, resume=False, smoke=given.smoke)
        _, held_out = hold_out(made, card["held_out_tokens"])
        assert device is not None
        attention = preferred_attention(denoiser.model, denoiser.rope.rotary_dims, recipe, device)
        return denoiser.to(device, attention), held_out, card
    config = DiffusionConfig(
        seconds=given.train_seconds,
        window_tokens=given.window,
        step_tokens=2048 if given.smoke else given.step_tokens,
        steps=given.train_steps,
        peak=given.peak,
        shift=given.shift,
    )
    done = train(
        "reference",
        config,
        text=given.text,
        out=folder,
        workers=given.workers,
        smoke=given.smoke,
        report=lambda record: print(json.dumps(record), flush=True),
    )
    card = json.loads((done.folder / CARD).read_text(encoding="utf-8"))
    return done.denoiser, done.held_out, card


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.diffusion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--text", type=Path, nargs="+", default=[], help="folders of shards or of texts")
    parser.add_argument("--model", type=Path, help="measure this folder instead of training")
    parser.add_argument("--save", type=Path, help="folder of the run, whose model/ is what was trained")
    parser.add_argument("--train-seconds", type=float, default=150.0)
    parser.add_argument("--train-steps", type=int)
    parser.add_argument("--window", type=int, help="of the rows trained on; the base model's by default")
    parser.add_argument("--step-tokens", type=int, default=131_072)
    parser.add_argument("--peak", type=float, default=0.5)
    parser.add_argument("--shift", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--measure-seconds", type=float, default=240.0)
    parser.add_argument("--times", type=int, nargs="+", default=list(TIMES), help="lengths over the window")
    parser.add_argument("--depths", type=float, nargs="+", default=list(DEPTHS))
    parser.add_argument("--samples", type=int, default=6, help="needles of each depth and length")
    parser.add_argument("--texts", type=int, default=16, help="texts of each perplexity, at most")
    parser.add_argument("--draws", type=int, default=8, help="Monte-Carlo draws for each text")
    parser.add_argument("--steps", type=int, default=6, help="of filling a needle's block")
    parser.add_argument("--workers", type=int, default=min(12, max(1, (os.cpu_count() or 2) - 2)))
    parser.add_argument("--smoke", action="store_true", help="a tiny random model: the same code, no use")
    parser.add_argument("--from", dest="results", type=Path, help="write page and figure of these results")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, help=f"default {PAGE.relative_to(ROOT)}, none with --smoke")
    parser.add_argument("--figure", type=Path, help=f"default {FIGURE.relative_to(ROOT)}, none with --smoke")
    return parser


def main() -> None:
    parser = arguments()
    given = parser.parse_args()
    page = given.page or (None if given.smoke else PAGE)
    image = given.figure or (None if given.smoke else FIGURE)
    try:
        check_writable(given.out, page, image)
        if page is not None:
            check_page(page)
        if given.results is not None:
            if not given.results.is_file():
                parser.error(f"{given.results} does not exist; give a file that this benchmark wrote")
            publish(json.loads(given.results.read_text(encoding="utf-8")), page, image)
            return
        if not (given.text or given.smoke):
            parser.error("no text to train on and to measure with; give --text FOLDER of shards or texts")
        with nullcontext(given.save) if given.save else tempfile.TemporaryDirectory() as folder:
            publish(run(given, Path(folder)), page, image)
    except ValueError as error:
        parser.error(str(error))
    print(f"wrote {given.out}")


def run(given: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Train or load, then measure."""
    folder.mkdir(parents=True, exist_ok=True)
    denoiser, tail, card = prepare(given, folder)
    held_out, source = unseen(given, folder, tail, denoiser.tokenizer.bos_token_id)
    deadline = time.monotonic() + given.measure_seconds
    causal = Causal(load_causal("reference", smoke=given.smoke), denoiser.device)
    models: dict[str, Denoiser | Causal] = {"diffusion": denoiser, "causal": causal}
    on_gpu = denoiser.device.type == "cuda"
    facts = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": torch.__version__,
        "train_steps": card["steps"],
        "train_tokens": card["tokens"],
        "train_seconds": card["seconds"],
        "train_rows": card["rows"],
        "shift": card["shift"],
        "text": source,
        "draws": given.draws,
        "block_tokens": BLOCK_TOKENS,
        "steps": given.steps,
        "commit": commit(),
    }
    print(json.dumps(facts), flush=True)
    lengths = [denoiser.window_tokens * times for times in sorted(set(given.times) | {1})]
    todo = cases(models, held_out, lengths=lengths, given=given)
    return measure(todo, facts, deadline=deadline, out=given.out, window=denoiser.window_tokens)


def publish(rows: list[dict[str, Any]], page: Path | None, image: Path | None) -> None:
    """The table on standard output, and page and figure where they are wanted."""
    print(table(rows))
    if image is not None:
        image.parent.mkdir(parents=True, exist_ok=True)
        write_whole(image, figure(rows))
    if page is not None:
        write_page(page, rows)


if __name__ == "__main__":
    main()
