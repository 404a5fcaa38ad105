"""The lower tier of a slab: what its storage method dropped and a later question may want back, on the host or on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

Tier = Literal["host", "disk"]


@dataclass(frozen=True)
class Archive:
    """All tokens of a text that a slab has seen, in pieces of keys `[B, k, n, D]`, values, positions `[B, 1, n]`; never changed, so
    forks share it."""

    tier: Tier
    pieces: tuple[tuple[Tensor, Tensor, Tensor], ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(keys.shape[2] for keys, _, _ in self.pieces)

    @property
    def num_bytes(self) -> int:
        return sum(x.nbytes for piece in self.pieces for x in piece)

    def and_then(self, keys: Tensor, values: Tensor, positions: Tensor) -> Archive:
        """This and more tokens."""
        put = _on_host if self.tier == "host" else _on_disk
        return Archive(self.tier, (*self.pieces, (put(keys), put(values), put(positions[:, :1]))))

    def load(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and positions of all its tokens, on a device."""
        keys, values, positions = (
            torch.cat([x.to(device, non_blocking=True) for x in parts], dim=2)
            for parts in zip(*self.pieces, strict=True)
        )
        return keys, values, positions


def from_saved(tier: Tier, tensors: Sequence[Tensor]) -> Archive:
    """The archive whose `load` gave these."""
    keys, values, positions = tensors
    return Archive(tier).and_then(keys, values, positions)


def _on_host(x: Tensor) -> Tensor:
    return x.detach().to("cpu", copy=True).contiguous()


def _on_disk(x: Tensor) -> Tensor:
    """A copy in a file without a name, mapped into memory: the system reads it when it is used, and removes it when nothing
    uses it any more."""
    plain = x.detach().cpu().contiguous()
    with tempfile.NamedTemporaryFile(prefix="longspan-", delete=False) as file:
        path = Path(file.name)
        plain.view(torch.uint8).numpy().tofile(file)
    try:
        return torch.from_file(str(path), shared=False, size=plain.numel(), dtype=plain.dtype).view(
            plain.shape
        )
    finally:
        path.unlink()
