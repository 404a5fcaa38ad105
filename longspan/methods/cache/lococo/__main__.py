"""Trains the kernels of a model: python -m longspan.methods.cache.lococo MODEL --text FILE... --out FILE

    python -m longspan.methods.cache.lococo Qwen/Qwen3-8B --text books/ --out qwen3-8b.safetensors --slots 128 512

MODEL is "reference" (the default), a hub id or a folder; a text is a file, a folder of .txt and .md files, or "pydoc" for
the text that Python carries. The kernels then serve `lococo(file="qwen3-8b.safetensors")` with any number of slots, best with
those that they were trained for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tqdm import tqdm

import longspan
from longspan.engine.prompt import encode
from longspan.methods._making import fingerprints, read_text, spread_rows
from longspan.methods.cache.lococo.kernels import Kernels, save_kernels
from longspan.methods.cache.lococo.train import Training, train_kernels


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the kernels are written, 2 with one line on bad input."""
    given = vars(_parser().parse_args(arguments))
    name, places, out = (given.pop(key) for key in ("model", "text", "out"))
    size = {key: given.pop(key) for key in ("rows", "row_tokens")}
    if given["slots"] is not None:
        given["slots"] = tuple(given["slots"])
    try:
        how = Training(**{key: value for key, value in given.items() if value is not None})
        save_kernels(out, make(name, "\n\n".join(map(read_text, places)), how, **size))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def make(name: str, text: str, how: Training, *, rows: int = 16, row_tokens: int = 3584) -> Kernels:
    """Load a model by name and train its kernels on parts of a text, showing a bar."""
    if rows < 1 or row_tokens < 2 * how.chunk_tokens:
        raise ValueError(
            f"got rows={rows}, row_tokens={row_tokens}; allowed is 1 or more, and at least two chunks of {how.chunk_tokens}"
        )
    model = longspan.load(name)
    try:
        parts = spread_rows(encode(model.tokenizer, text), row_tokens, rows)
        with tqdm(total=how.rounds * len(parts), unit="text") as bar:

            def show(loss: float) -> None:
                bar.set_postfix(error=f"{loss:.4f}")
                bar.update()

            layers = train_kernels(model, parts, how, on_row=show)
    finally:
        model.detach()
    settings = vars(how) | {"rows": len(parts), "row_tokens": row_tokens}
    return Kernels(model=name, fingerprints=fingerprints(name), layers=layers, settings=settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m longspan.methods.cache.lococo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", default="reference", help="reference, a hub id or a folder")
    parser.add_argument("--text", nargs="+", required=True, help="text files, folders of them, or pydoc")
    parser.add_argument("--out", required=True, help="the safetensors file to write")
    parser.add_argument("--rows", type=int, default=16, help="parts of the text to train on")
    parser.add_argument("--row-tokens", type=int, default=3584, help="tokens of each")
    parser.add_argument("--slots", type=int, nargs="+", help="numbers of slots to train for")
    for name in ("chunk_tokens", "rank", "width", "rounds", "queries", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"{name} of Training")
    for name in ("heavy", "local", "learning_rate"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help=f"{name} of Training")
    return parser


if __name__ == "__main__":
    sys.exit(main())
