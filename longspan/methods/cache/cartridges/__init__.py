"""Cartridges: a small KV cache, trained offline for one document, takes the place of the document's own.

Keys and values Z of p slots a layer begin as those of the document's first p tokens and are trained with the model frozen, on
questions q about the document with the model's own answers a, so that the model with Z in context predicts as with the
document D (self-study and context distillation):

    Z = argmin  sum over (q, a), t  of  KL( P(a_t | D, q, a_<t)  ||  P(a_t | Z, q, a_<t) )

The first slot, the sink, stays frozen. Slots stand at the positions 0 .. p-1 and the question follows at p. A cartridge is
made by `longspan train cartridge MODEL --text DOC --out FILE`; `read` then puts it in place of the text that it was made of,
without reading it. Several are put behind one another, `files=[A, B]`, for a text that is one document after the other.

Paper: Cartridges: Lightweight and general-purpose long context representations via self-study (2025).

Differs from the paper: trained are the keys before rotation, so that a cartridge can stand at any position: of several, the
second stands behind the first. The teacher's likeliest 20 tokens are kept, as there, and all others count as one. Models that cannot
be asked to invent questions, such as the reference model, study by questions made by rule of the document's sentences.
Without a file, `tokens=p` is the cartridge before its training: the text's first p tokens.

Fails when: questions are of kinds that self-study did not ask, or of details that it did not come by: what was not trained is
gone, and nothing says so. Several cartridges were never trained together: on the reference model two that were trained in
company of other passages answer two questions of three, those trained alone one of four. Answers have no sources.
A text of which one token is another needs a cartridge of its own.

    model = longspan.load("reference", methods="cartridges(file=doc.cartridge.safetensors)")
    context = model.read(text)  # the very text, of which nothing is read
    context.ask("Who keeps the lantern?"), context.kv_bytes
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from longspan.methods.cache.cartridges.cartridge import (
    HOW,
    Cartridge,
    hash_ids,
    load_cartridge,
    save_cartridge,
)
from longspan.roles import ModelInfo, Reader, Reading

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CARD", "Cartridge", "Cartridges", "hash_ids", "load_cartridge", "save_cartridge"]

CARD = {
    "title": "Cartridges: Lightweight and general-purpose long context representations via self-study",
    "year": 2025,
    "paper_id": 78,
    "family": "cache",
    "roles": ["Reading"],
    "phase": "read",
    "training": "required",
    "exact": "untrained, with tokens= the length of the text or more",
    "frees": "frees",
    "needs": ["a cartridge of the text, made once by longspan train cartridge MODEL --text DOC --out FILE"],
    "claim": {},
    "tolerances": {},
    "example": "cartridges(tokens=64)",
    "identity": "cartridges(tokens=1024)",
}

SEAM_TOKENS = 4  # most tokens, such as line ends, between two documents of one text


@dataclass(frozen=True, kw_only=True)
class Cartridges(Reading):
    """Settings of cartridges; one of the three is given."""

    file: str | None = None  # the cartridge of the text
    files: tuple[str, ...] = ()  # cartridges of the text's documents, in their order
    tokens: int | None = None  # no file: an untrained one of so many tokens, the paper's start of training

    def __post_init__(self) -> None:
        given = [self.file is not None, bool(self.files), self.tokens is not None]
        if sum(given) != 1:
            raise ValueError(
                f"got {sum(given)} of file, files and tokens; give one, file=doc.cartridge.safetensors for a text with a "
                f"cartridge ({HOW})"
            )
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"got tokens={self.tokens}; allowed is 1 or more")

    @property
    def paths(self) -> tuple[str, ...]:
        return self.files if self.file is None else (self.file,)

    def check(self, model: ModelInfo) -> None:
        """Raise ValueError where a file is missing, damaged, or another model's."""
        for path, found in zip(self.paths, self._loaded, strict=True):
            if found.fingerprint != model.fingerprint:
                raise ValueError(
                    f"{path} is a cartridge of {found.model} ({found.fingerprint}), and {model.name} is another model or in "
                    f"another number format ({model.fingerprint}); {HOW}"
                )
            shapes = {(x.shape[0], x.shape[2]) for x in found.keys}
            if len(found.keys) != model.num_layers or shapes != {
                (layer.num_kv_heads, layer.head_dim) for layer in model.layers
            }:
                raise ValueError(f"{path} does not fit the layers of {model.name}; {HOW}")

    def read(self, reader: Reader, ids: Iterable[Tensor], num_tokens: int | None) -> Any:
        """The cartridges in place of the text; ValueError where it is not the text that they were made of."""
        if self.tokens is not None:
            return reader.prefill(reader.new_run(), _first(ids, self.tokens))
        self.check_text(torch.cat(list(ids)))
        run = reader.new_run()
        starts = accumulate((found.num_tokens for found in self._loaded), initial=0)
        for start, found in zip(starts, self._loaded, strict=False):
            reader.put(run, found.keys, found.values, torch.arange(start, start + found.num_tokens))
        return reader.prefill(run, [])

    def check_text(self, ids: Tensor) -> None:
        """Raise ValueError where a text's ids `[S]` are not those of the cartridges' documents, one after the other."""
        place = self._loaded[0].head_tokens
        for number, (path, found) in enumerate(zip(self.paths, self._loaded, strict=True)):
            for skipped in range(1 if number == 0 else SEAM_TOKENS + 1):
                start, stop = place + skipped, place + skipped + found.document_tokens
                if stop <= len(ids) and hash_ids(ids[start:stop]) == found.document_hash:
                    place = stop
                    break
            else:
                where = "" if len(self.paths) == 1 else f" from token {place} on"
                raise ValueError(
                    f"the text is not{where} the document of {found.document_tokens} tokens that {path} was made of; give that "
                    "very text, or make a cartridge of this one with `longspan train cartridge`"
                )
        if place != len(ids):
            raise ValueError(
                f"the text goes on for {len(ids) - place} tokens behind what the cartridges were made of; read that text alone, "
                "and what follows with context.read"
            )

    @cached_property
    def _loaded(self) -> tuple[Cartridge, ...]:
        return tuple(map(load_cartridge, self.paths))


def _first(ids: Iterable[Tensor], num_tokens: int) -> Iterable[Tensor]:
    """The first tokens of a stream."""
    for chunk in ids:
        if num_tokens > 0:
            yield chunk[:num_tokens]
        num_tokens -= len(chunk)
