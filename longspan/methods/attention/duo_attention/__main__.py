"""Makes the gates of a model: python -m longspan.methods.attention.duo_attention MODEL TEXT GATES.json

    python -m longspan.methods.attention.duo_attention Qwen/Qwen3-8B books/ qwen3-8b.json --max-tokens 32000 --steps 500

MODEL is "reference", a hub id or a folder; TEXT is a text file, a folder of them, or "pydoc" for the text that Python
carries; the gates then serve `duo_attention(gates="qwen3-8b.json")`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import longspan
from longspan.methods._making import fingerprints, read_text
from longspan.methods.attention.duo_attention.gates import Gates, save_gates
from longspan.methods.attention.duo_attention.identify import identify_heads


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the gates are written, 2 with one line on bad input."""
    given = _parser().parse_args(arguments)
    settings = {name: value for name, value in vars(given).items() if name not in ("model", "text", "out")}
    settings = {name: value for name, value in settings.items() if value is not None}
    try:
        gates = make_gates(given.model, read_text(given.text), **settings)
        save_gates(given.out, gates)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for layer, row in enumerate(gates.alpha):
        print(f"layer {layer:3d}  " + "  ".join("  -  " if gate is None else f"{gate:.3f}" for gate in row))
    return 0


def make_gates(name: str, text: str, **settings: Any) -> Gates:
    """Load a model by name and train its gates with `identify_heads(**settings)`, showing a bar."""
    model = longspan.load(name)
    try:
        with tqdm(total=settings.get("steps"), unit="step") as bar:

            def show(step: int, loss: float, gates: Tensor) -> None:
                bar.set_postfix(loss=f"{loss:.4f}", mean_gate=f"{float(gates.nanmean()):.3f}")
                bar.update()

            alpha = identify_heads(model.hf_model, model.tokenizer, text, on_step=show, **settings)
    finally:
        model.detach()
    return Gates(model=name, fingerprints=fingerprints(name), alpha=to_rows(alpha), settings=settings)


def to_rows(alpha: Tensor) -> tuple[tuple[float | None, ...], ...]:
    """Gates `[L, K]` as they are saved: four digits, None for NaN."""
    return tuple(
        tuple(None if gate != gate else round(gate, 4) for gate in row)
        for row in alpha.to(torch.float64).tolist()
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m longspan.methods.attention.duo_attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="reference, a hub id or a folder")
    parser.add_argument("text", help="a text file, a folder of .txt and .md files, or pydoc")
    parser.add_argument("out", help="the JSON file to write")
    for name in ("steps", "min_tokens", "max_tokens", "num_passkeys", "sink_tokens", "recent_tokens", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"{name} of identify_heads")
    for name in ("l1_weight", "learning_rate"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help=f"{name} of identify_heads")
    return parser


if __name__ == "__main__":
    sys.exit(main())
