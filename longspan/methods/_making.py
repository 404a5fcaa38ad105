"""What commands share that make a method's asset for a model: the text they learn from, and the weights that it fits."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import longspan
from longspan.errors import UnsupportedLayerError
from longspan.evaluation.haystacks.pydoc import pydoc_text


def fingerprints(name: str) -> tuple[str, ...]:
    """Fingerprints of a model's weights in every number format it can be served in."""
    found: list[str] = []
    for kind in ("float32", "bfloat16", "float16"):
        try:
            model = longspan.load(name, dtype=kind)
        except UnsupportedLayerError:
            continue  # a format that the model cannot be served in needs no asset
        model.detach()
        if model.info.fingerprint not in found:
            found.append(model.info.fingerprint)
    return tuple(found)


def read_text(place: str) -> str:
    """A text file, the .txt and .md files of a folder, or "pydoc".

    Raises:
        ValueError: there is no text.
    """
    if place == "pydoc":
        return pydoc_text()
    path = Path(place)
    files = (
        sorted(file for file in path.rglob("*") if file.suffix in (".txt", ".md"))
        if path.is_dir()
        else [path]
    )
    if not files or not all(file.is_file() for file in files):
        raise ValueError(
            f"there is no text at {place}; give a text file, a folder with .txt or .md files, or pydoc"
        )
    return "\n\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


def spread_rows(ids: Tensor, row_tokens: int, most: int) -> Tensor:
    """Rows `[n, row_tokens]` of a text `[N]`, from its beginning to its end, `most` at most.

    Raises:
        ValueError: it is too short for one.
    """
    num_rows = min(most, len(ids) // row_tokens)
    if num_rows == 0:
        raise ValueError(
            f"the text has {len(ids)} tokens; give one of {row_tokens} or more, or fewer row_tokens"
        )
    starts = torch.linspace(0, len(ids) - row_tokens, num_rows).long()
    return torch.stack([ids[start : start + row_tokens] for start in starts.tolist()])
