"""Keys and values of a saved slab under CacheGen's codec, chunk by chunk: smaller files, at a level that says how coarse."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from longspan.errors import UserInputError
from longspan.storage.cachegen import LEVELS, chunk_spans, decode_chunk, encode_chunk

_NAME = "cachegen."
_COUNTS = {
    "": "chunks",
    "archive.": "archive_chunks",
}  # of what is held and of its lower tier: where a header counts chunks


def check_level(level: object) -> None:
    """UserInputError for what is no level."""
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < len(LEVELS):
        raise UserInputError(
            f"got level={level!r}; allowed are None (exact) and 0 (finest) to {len(LEVELS) - 1} (smallest)"
        )


def squeeze(
    facts: dict[str, Any], parts: dict[str, Tensor], *, level: int, layer: int, num_layers: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `Slab.pack` gave, with the tokens that are held as they came coded, and those of a lower tier."""
    facts, parts = dict(facts), dict(parts)
    for of, counted in _COUNTS.items():
        if f"{of}keys" not in parts or not parts[f"{of}keys"].shape[2]:
            continue
        keys, values = parts.pop(f"{of}keys"), parts.pop(f"{of}values")
        spans = chunk_spans(keys.shape[2])
        for number, (start, end) in enumerate(spans):
            data = encode_chunk(
                [keys[:, :, start:end]],
                [values[:, :, start:end]],
                level=LEVELS[level],
                layers=[layer],
                num_layers=num_layers,
            )
            parts[f"{_NAME}{of}{number}"] = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
        facts[counted] = len(spans)
    return facts, parts


def unsqueeze(
    facts: dict[str, Any], parts: dict[str, Tensor], dtype: torch.dtype
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `Slab.unpack` takes, of what `squeeze` gave or of what it never saw.

    Raises:
        KeyError, ValueError: a chunk is missing or damaged.
    """
    found = {name: part for name, part in parts.items() if not name.startswith(_NAME)}
    for of, counted in _COUNTS.items():
        if counted not in facts:
            continue
        coded = [parts[f"{_NAME}{of}{number}"] for number in range(facts[counted])]
        chunks = [decode_chunk(data.cpu().numpy().tobytes(), dtype=dtype) for data in coded]
        for i, name in enumerate(("keys", "values")):
            found[f"{of}{name}"] = torch.cat([chunk[i][0] for chunk in chunks], dim=2).to(coded[0].device)
    return facts, found
