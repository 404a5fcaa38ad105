"""Makes the factors of a model: python -m longspan.methods.cache.cskv MODEL TEXT OUT.safetensors

    python -m longspan.methods.cache.cskv Qwen/Qwen3-8B books/ qwen3-8b.safetensors --rank 0.25 --bits 4

MODEL is "reference", a hub id or a folder; TEXT is a text file, a folder of .txt and .md files, or "pydoc" for the text
that Python carries; the factors then serve `cskv(factors="qwen3-8b.safetensors")` at any rank up to theirs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tqdm import tqdm

import longspan
from longspan.engine.prompt import encode
from longspan.low_rank import resolve_rank
from longspan.methods._making import fingerprints, read_text, spread_rows
from longspan.methods.cache.cskv.factors import Factors, save_factors
from longspan.methods.cache.cskv.train import GROUP_TOKENS, Training, collect, make_factors


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the factors are written, 2 with one line on bad input."""
    given = vars(_parser().parse_args(arguments))
    name, place, out = (given.pop(key) for key in ("model", "text", "out"))
    size = {key: given.pop(key) for key in ("rank", "value_rank", "max_tokens", "row_tokens")}
    try:
        how = Training(**{key: value for key, value in given.items() if value is not None})
        save_factors(out, make(name, read_text(place), how, **size))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def make(
    name: str,
    text: str,
    how: Training,
    *,
    rank: float = 0.5,
    value_rank: float | None = None,
    max_tokens: int = 32768,
    row_tokens: int = 2048,
) -> Factors:
    """Load a model by name and make its factors, showing a bar."""
    shares = rank, rank if value_rank is None else value_rank
    if not 0 < min(shares) <= max(shares) <= 1:
        raise ValueError(
            f"got shares {shares[0]:g} and {shares[1]:g} of the channels; allowed is above 0 and up to 1, such as 0.5"
        )
    if how.bits < 16 and how.steps and shares[0] != shares[1]:
        raise ValueError(
            f"got shares {shares[0]:g} and {shares[1]:g} to train for {how.bits} bits; keys and values are quantised together, "
            "so give equal ones"
        )
    if not GROUP_TOKENS <= row_tokens <= max_tokens:
        raise ValueError(
            f"got max_tokens={max_tokens}, row_tokens={row_tokens}; allowed is {GROUP_TOKENS} <= row_tokens <= max_tokens"
        )
    model = longspan.load(name, methods="cskv(rank=1.0)")
    try:
        rows = spread_rows(encode(model.tokenizer, text), row_tokens, max_tokens // row_tokens)
        pairs = collect(model, rows)
        channels = next(iter(pairs.values()))[0].shape[1]
        with tqdm(total=len(pairs), unit="layer") as bar:

            def show(layer: int, losses: Sequence[float]) -> None:
                if losses:
                    bar.set_postfix(first=f"{losses[0]:.4f}", last=f"{losses[-1]:.4f}")
                bar.update()

            ranks = resolve_rank(shares[0], channels), resolve_rank(shares[1], channels)
            tensors = make_factors(pairs, ranks, how, on_layer=show)
    finally:
        model.detach()
    settings = vars(how) | {
        "rank": shares[0],
        "value_rank": shares[1],
        "tokens": rows.numel(),
        "row_tokens": row_tokens,
    }
    return Factors(model=name, fingerprints=fingerprints(name), tensors=tensors, settings=settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m longspan.methods.cache.cskv",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="reference, a hub id or a folder")
    parser.add_argument("text", help="a text file, a folder of .txt and .md files, or pydoc")
    parser.add_argument("out", help="the safetensors file to write")
    parser.add_argument("--rank", type=float, default=0.5, help="largest share of channels that they serve")
    parser.add_argument("--value-rank", type=float, help="the same of values, if another")
    parser.add_argument("--max-tokens", type=int, default=32768, help="tokens of the text that are used")
    parser.add_argument("--row-tokens", type=int, default=2048, help="tokens that are read at a time")
    for name in ("steps", "batch_tokens", "bits", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"{name} of Training")
    parser.add_argument("--learning-rate", type=float, help="learning_rate of Training")
    return parser


if __name__ == "__main__":
    sys.exit(main())
