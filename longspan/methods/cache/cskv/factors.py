"""Factors of one model on disk: what turns the keys and values of a layer into latents and back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = "cskv-1"


@dataclass(frozen=True, kw_only=True)
class Factors:
    """What making the factors of a model gave.

    Args:
        model: the name it was loaded by, for messages.
        fingerprints: `ModelInfo.fingerprint` of its weights, one for each number format they may be loaded in.
        tensors: `{layer}.keys.down`, `{layer}.values.down` `[C, R]` and `{layer}.keys.up`, `{layer}.values.up` `[R, C]`,
            with C channels of all kv heads; the first r columns and rows serve any rank r up to R.
        settings: how they were made, for the reader.
    """

    model: str
    fingerprints: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def shape(self, layer: int, kind: str) -> tuple[int, int]:
        """`(C, R)` of the keys or values of a layer; zeros where there are no factors for it."""
        found = self.tensors.get(f"{layer}.{kind}.down")
        return (0, 0) if found is None else (found.shape[0], found.shape[1])


def save_factors(path: str | Path, factors: Factors) -> None:
    """Write factors as safetensors; the file appears whole or not at all."""
    target = Path(path)
    if not target.parent.is_dir():
        raise ValueError(f"there is no folder {target.parent} to save {target.name} in; make it first")
    facts = {
        "format": FORMAT,
        "model": factors.model,
        "fingerprints": json.dumps(factors.fingerprints),
        "settings": json.dumps(dict(factors.settings)),
    }
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.write_bytes(save({name: x.contiguous() for name, x in factors.tensors.items()}, facts))
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def load_factors(path: str | Path) -> Factors:
    """Read factors that `save_factors` wrote.

    Raises:
        ValueError: there is no such file, or it holds no factors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give the path that save_factors wrote")
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file; make it again with save_factors") from error
    if facts.get("format") != FORMAT or not _is_complete(tensors):
        raise ValueError(f"{path} holds no factors of cskv; make them again with save_factors")
    return Factors(
        model=facts["model"],
        fingerprints=tuple(json.loads(facts["fingerprints"])),
        tensors=tensors,
        settings=json.loads(facts["settings"]),
    )


def _is_complete(tensors: Mapping[str, Tensor]) -> bool:
    layers = {name.split(".")[0] for name in tensors}
    wanted = {f"{n}.{kind}.{part}" for n in layers for kind in ("keys", "values") for part in ("down", "up")}
    return bool(layers) and wanted == set(tensors) and all(layer.isdigit() for layer in layers)
