"""Kernels of one model on disk, as safetensors with what they were made of in the header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from longspan.methods._asset import hash_tensors, load_asset, save_asset
from longspan.methods.cache.lococo.mixing import NAMES, LayerKernels

FORMAT = 1
HEADER = "longspan_lococo"
HOW = "train them with `python -m longspan.methods.cache.lococo MODEL --text FILE --out FILE`"


@dataclass(frozen=True, kw_only=True, eq=False)
class Kernels:
    """What training gave.

    Args:
        model: the name it was loaded by, for messages.
        fingerprints: `ModelInfo.fingerprint` of its weights, one for each number format they may be loaded in.
        layers: of each open layer, by its index.
        settings: how they were trained, for the reader.
    """

    model: str
    fingerprints: tuple[str, ...]
    layers: Mapping[int, LayerKernels]
    settings: Mapping[str, Any] = field(default_factory=dict)


def save_kernels(path: str | Path, kernels: Kernels) -> None:
    """Write kernels in float16; the file appears whole or not at all."""
    tensors = {
        f"{index}.{name}": getattr(layer, name).detach().to("cpu", torch.float16).contiguous()
        for index, layer in kernels.layers.items()
        for name in NAMES
    }
    facts = {
        "format": FORMAT,
        "layers": sorted(kernels.layers),
        "model": kernels.model,
        "fingerprints": list(kernels.fingerprints),
        "settings": dict(kernels.settings),
    }
    save_asset(path, HEADER, facts, tensors)


def load_kernels(path: str | Path) -> Kernels:
    """Read kernels that `save_kernels` wrote.

    Raises:
        ValueError: there is no such file, it holds no kernels, or its tensors are not those that were written.
    """
    path = Path(path)
    facts, tensors = load_asset(
        path, HEADER, version=FORMAT, unreadable="safetensors file", foreign="kernels of lococo", how=HOW
    )
    try:
        wanted = sorted(f"{index}.{name}" for index in facts["layers"] for name in NAMES)
        if sorted(tensors) != wanted or hash_tensors(tensors) != facts["hash"]:
            raise ValueError(f"{path} was altered since it was written; {HOW}")
        return Kernels(
            model=str(facts["model"]),
            fingerprints=tuple(facts["fingerprints"]),
            layers={
                int(index): LayerKernels(**{name: tensors[f"{index}.{name}"] for name in NAMES})
                for index in facts["layers"]
            },
            settings=dict(facts["settings"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds kernels with a part missing ({error}); {HOW}") from error
