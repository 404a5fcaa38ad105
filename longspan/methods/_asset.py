"""Files that methods keep for one model: safetensors whose header says what they are, which appear whole and open unaltered."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from longspan.model_info import ModelInfo


def save_asset(path: str | Path, header: str, facts: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write tensors with JSON `facts`, and their hash, under the name `header`; the file appears whole or not at all.

    Raises:
        ValueError: there is no such folder.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise ValueError(f"there is no folder {target.parent} to save {target.name} in; make it first")
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    whole = {**facts, "hash": hash_tensors(tensors)}
    try:
        save_file(tensors, beside, metadata={header: json.dumps(whole)})
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def load_asset(
    path: Path, header: str, *, version: int, unreadable: str, foreign: str, how: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The facts and tensors that `save_asset` wrote; whether these are all there, and their hash, is for the caller to see.

    Args:
        version: the fact "format" of files that can be read.
        unreadable, foreign: what the file is not, and what it does not hold, for messages.
        how: to make one, for messages.

    Raises:
        ValueError: there is no such file, or it is no such file.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}; {how}")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            facts = json.loads((file.metadata() or {}).get(header, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"{path} is no {unreadable}, or is cut short; {how}") from error
    if not isinstance(facts, dict) or facts.get("format") != version:
        raise ValueError(f"{path} holds no {foreign}; {how}")
    return facts, tensors


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, types and bytes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        x = tensors[name].contiguous()
        total.update(f"{name} {tuple(x.shape)} {x.dtype}".encode())
        total.update(x.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def check_made_for(
    model: ModelInfo, what: str, file: str | None, made_of: str, fingerprints: Sequence[str], how: str
) -> None:
    """ValueError unless what a file holds was made of the model's weights; `file` None is the bundled one."""
    if model.fingerprint not in fingerprints:
        raise ValueError(
            f"there are no {what} for {model.name} ({model.fingerprint}): {file or 'the bundled file'} holds those of "
            f"{made_of} ({', '.join(fingerprints)}); {how}"
        )
