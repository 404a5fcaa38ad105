"""A cartridge on disk: trained keys and values that stand for one document, under one model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longspan.methods._asset import hash_tensors, load_asset, save_asset

FORMAT = 1
HEADER = "longspan_cartridge"
HOW = "make one with `longspan train cartridge MODEL --text DOC --out FILE`"


@dataclass(frozen=True, kw_only=True, eq=False)
class Cartridge:
    """What training made of a document.

    Args:
        keys: of each layer, before rotation, `[K, p, D]`; they stand at the positions 0 .. p-1.
        values: of each layer, `[K, p, D]`.
        model: the name it was loaded by, for messages.
        fingerprint: `ModelInfo.fingerprint` of its weights.
        document_hash: `hash_ids` of the document's own tokens.
        document_tokens: how many these are.
        head_tokens: tokens that the model's template puts before a document (bos and the like).
        settings: how it was made and what was measured, for the reader.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    model: str
    fingerprint: str
    document_hash: str
    document_tokens: int
    head_tokens: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """p."""
        return self.keys[0].shape[1]


def hash_ids(ids: Tensor) -> str:
    """SHA-256 of token ids `[n]`, whatever their integer type."""
    return hashlib.sha256(ids.to("cpu", torch.int64).contiguous().numpy().tobytes()).hexdigest()


def save_cartridge(path: str | Path, cartridge: Cartridge) -> None:
    """Write a cartridge as safetensors; the file appears whole or not at all."""
    tensors = {
        f"{name}.{layer}": x.detach().to("cpu").contiguous()
        for name, parts in (("keys", cartridge.keys), ("values", cartridge.values))
        for layer, x in enumerate(parts)
    }
    facts = {
        "format": FORMAT,
        "tokens": cartridge.num_tokens,
        "layers": len(cartridge.keys),
        "model": cartridge.model,
        "fingerprint": cartridge.fingerprint,
        "document_hash": cartridge.document_hash,
        "document_tokens": cartridge.document_tokens,
        "head_tokens": cartridge.head_tokens,
        "settings": dict(cartridge.settings),
    }
    save_asset(path, HEADER, facts, tensors)


def load_cartridge(path: str | Path) -> Cartridge:
    """Read a cartridge that `save_cartridge` wrote.

    Raises:
        ValueError: there is no such file, it holds no cartridge, or its tensors are not those that were written.
    """
    path = Path(path)
    facts, tensors = load_asset(
        path,
        HEADER,
        version=FORMAT,
        unreadable="cartridge",
        foreign="cartridge of this version of longspan",
        how=HOW,
    )
    try:
        names = [f"{name}.{layer}" for name in ("keys", "values") for layer in range(facts["layers"])]
        intact = sorted(tensors) == sorted(names) and hash_tensors(tensors) == facts["hash"]
        found = Cartridge(
            keys=tuple(tensors[f"keys.{layer}"] for layer in range(facts["layers"])) if intact else (),
            values=tuple(tensors[f"values.{layer}"] for layer in range(facts["layers"])) if intact else (),
            model=str(facts["model"]),
            fingerprint=str(facts["fingerprint"]),
            document_hash=str(facts["document_hash"]),
            document_tokens=int(facts["document_tokens"]),
            head_tokens=int(facts["head_tokens"]),
            settings=dict(facts["settings"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is a cartridge with a part missing ({error}); {HOW}") from error
    if not intact:
        raise ValueError(f"{path} was altered since it was written; {HOW}")
    return found
