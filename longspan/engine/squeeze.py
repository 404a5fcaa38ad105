"""Keys and values of a saved slab under CacheGen's codec, chunk by chunk: smaller files, at a level that says how coarse."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from longspan.errors import UserInputError
from longspan.storage.cachegen import LEVELS, chunk_spans, decode_chunk, encode_chunk

_NAME = "cachegen."


def check_level(level: object) -> None:
    """UserInputError for what is no level."""
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < len(LEVELS):
        raise UserInputError(
            f"got level={level!r}; allowed are None (exact) and 0 (finest) to {len(LEVELS) - 1} (smallest)"
        )


def squeeze(
    facts: dict[str, Any], parts: dict[str, Tensor], *, level: int, layer: int, num_layers: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `Slab.pack` gave, with the tokens that are held as they came coded."""
    if "keys" not in parts or not parts["keys"].shape[2]:
        return facts, parts
    keys, values = parts["keys"], parts["values"]
    coded = {}
    for number, (start, end) in enumerate(chunk_spans(keys.shape[2])):
        data = encode_chunk(
            [keys[:, :, start:end]],
            [values[:, :, start:end]],
            level=LEVELS[level],
            layers=[layer],
            num_layers=num_layers,
        )
        coded[f"{_NAME}{number}"] = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
    rest = {name: part for name, part in parts.items() if name not in ("keys", "values")}
    return {**facts, "chunks": len(coded)}, {**rest, **coded}


def unsqueeze(
    facts: dict[str, Any], parts: dict[str, Tensor], dtype: torch.dtype
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `Slab.unpack` takes, of what `squeeze` gave or of what it never saw.

    Raises:
        KeyError, ValueError: a chunk is missing or damaged.
    """
    if "chunks" not in facts:
        return facts, parts
    chunks = [
        decode_chunk(parts[f"{_NAME}{number}"].cpu().numpy().tobytes(), dtype=dtype)
        for number in range(facts["chunks"])
    ]
    rest = {name: part for name, part in parts.items() if not name.startswith(_NAME)}
    device = next(iter(parts.values())).device
    keys, values = (torch.cat([chunk[i][0] for chunk in chunks], dim=2).to(device) for i in (0, 1))
    return facts, {**rest, "keys": keys, "values": values}
