"""Which saved context can stand for the beginning of a text, and the hashes by which it is found.

Ids are hashed in blocks of `BLOCK_TOKENS`, each hash over all before it, so that two texts share exactly as many hashes as
they have whole blocks in common. The first hash is that of everything else that keys and values depend on (`space_of`).

    h_0 = H(space)        h_i = H(h_{i-1}, ids of block i)        key of n tokens = H(h_{n // BLOCK_TOKENS}, the rest, n)
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from longspan.engine.plan import Plan
    from longspan.engine.run import Run

BLOCK_TOKENS = 256
_HASH_BYTES = 16


def depends_on_cuts(plan: Plan) -> bool:
    """Does it matter where a text is cut when it is read in parts? Methods that see the tokens of a step together, or the
    text's length so far, do other things at other cuts, and behind the end of a text."""
    return plan.reading_name is not None or any(
        layer.selections or layer.steerings or layer.growing or layer.storage or layer.codec
        for layer in plan.layers
    )


def serves_prefixes(plan: Plan) -> bool:
    """Can a context be read on as if its text had never ended? Not where something was dropped at its end or put in
    another form, nor where a method reads in an order of its own."""
    return plan.reading_name is None and not any(layer.storage or layer.codec for layer in plan.layers)


def can_be_cropped(run: Run) -> bool:
    """Does a run hold what it held at any earlier point? Methods must remember nothing, and sliding windows hold every token."""
    remembers = any(value is not None for state in run.states.values() for value in state.values())
    windows = [layer.info.sliding_window_tokens for layer in run.plan.layers]
    slid = any(window is not None and run.seen > window for window in windows)
    return serves_prefixes(run.plan) and run.num_rows == 1 and not remembers and not slid


def usable_tokens(
    plan: Plan, chunk_tokens: int, common: int, saved: int, wanted: int, *, croppable: bool
) -> int:
    """Tokens of a saved context that serve a text, 0 for none; fewer than `saved` means that it must be cropped.

    Args:
        common: tokens that both begin with.
        saved: tokens of the saved context.
        wanted: tokens of the text.
    """
    if common == saved == wanted:
        return saved
    if not serves_prefixes(plan):
        return 0
    step = chunk_tokens if depends_on_cuts(plan) else 1
    if common == saved and saved % step == 0:
        return saved
    return common // step * step if croppable else 0


def space_of(facts: dict[str, Any]) -> str:
    """Hash of everything but the text that decides what a context holds.

    Args:
        facts: a saved context's header, or as many of its entries.
    """
    names = ("fingerprint", "dtype", "tokenizer", "spec", "chunk_tokens", "whole")
    return _hash(json.dumps([facts[name] for name in names]).encode())


class Trail:
    """The hashes of a text's blocks, `hashes[i]` over the first i of them."""

    def __init__(self, space: str, ids: Tensor) -> None:
        self._data = ids.cpu().long().numpy().astype("<i8").tobytes()
        self.space, self.num_tokens = space, len(ids)
        self.hashes = [space]
        for block in range(self.num_tokens // BLOCK_TOKENS):
            start = block * BLOCK_TOKENS
            self.hashes.append(_hash(self.hashes[-1].encode(), self._bytes(start, start + BLOCK_TOKENS)))

    def key(self, num_tokens: int) -> str:
        """Key of the context of the first `num_tokens`."""
        blocks = num_tokens // BLOCK_TOKENS
        rest = self._bytes(blocks * BLOCK_TOKENS, num_tokens)
        return _hash(self.hashes[blocks].encode(), rest, num_tokens.to_bytes(8, "little"))

    def _bytes(self, start: int, stop: int) -> bytes:
        return self._data[8 * start : 8 * stop]


def text_ids(run: Run) -> Tensor:
    """Ids `[S]` of the text that a run read, in the text's order."""
    return ids_in_order(run.ids, run.origin)


def ids_in_order(ids: Tensor, origin: Tensor | None) -> Tensor:
    """Ids that stand at the places `origin` of a text (None: in its order), in its order; -1 at places that nothing stands for."""
    if origin is None:
        return ids
    text = ids.new_full((int(origin.max()) + 1,), -1)
    text[origin] = ids
    return text


def common_tokens(a: Tensor, b: Tensor) -> int:
    """Tokens that two texts `[n]` begin with alike."""
    length = min(len(a), len(b))
    differs = (a[:length] != b[:length]).nonzero()
    return int(differs[0]) if len(differs) else length


def _hash(*parts: bytes) -> str:
    digest = blake2b(digest_size=_HASH_BYTES)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
