"""What a layer keeps: slabs of keys, values and positions, grown in place, forked without copying, freed for real.

A slab holds some kv heads of one layer that keep equally many tokens; a layer whose heads keep different numbers has
several slabs. The tensors behind a slab may be shared by forks: one fork at a time owns the spare room behind the
last token and appends there, any other copies first. Nothing below a slab's length is ever overwritten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SPARE_TOKENS = 256  # room left behind a finished context, so that a question needs no copy of it


class Slab:
    """Keys `[B, k, S, D]`, values `[B, k, S, D]` and positions `[B, 1 or k, S]` (-1: nothing) of some kv heads."""

    def __init__(self, heads: tuple[int, ...]) -> None:
        self.heads = heads
        self.num_tokens = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._positions: Tensor | None = None
        self._owns_room = True
        self._took_room = False  # from the slab it was forked from, which wants it back
        self.contiguous_from: int | None = None  # p when every row holds positions p, p+1, ... without holes
        self.filled = True  # no place is padding

    @property
    def keys(self) -> Tensor:
        assert self._keys is not None, "the slab is empty"
        return self._keys[:, :, : self.num_tokens]

    @property
    def values(self) -> Tensor:
        assert self._values is not None, "the slab is empty"
        return self._values[:, :, : self.num_tokens]

    @property
    def positions(self) -> Tensor:
        assert self._positions is not None, "the slab is empty"
        return self._positions[:, :, : self.num_tokens]

    @property
    def end(self) -> int:
        """The position behind the last one held; reads it off the device where places and positions differ."""
        if self.contiguous_from is not None:
            return self.contiguous_from + self.num_tokens
        return int(self.positions.max()) + 1

    @property
    def capacity(self) -> int:
        return 0 if self._keys is None else self._keys.shape[2]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(x for x in (self._keys, self._values, self._positions) if x is not None)

    def append(
        self,
        keys: Tensor,
        values: Tensor,
        positions: Tensor,
        *,
        first: int | None,
        padded: bool = False,
        reserve_tokens: int = 0,
    ) -> None:
        """Add T tokens: keys, values `[B, k, T, D]`, positions `[B, T]`, which are first, first+1, ... unless None; some are
        -1 where `padded`."""
        new = keys.shape[2]
        total = self.num_tokens + new
        if self.num_tokens == 0:
            self.contiguous_from = first
        elif self.contiguous_from is not None and first != self.contiguous_from + self.num_tokens:
            self.contiguous_from = None
        self.filled = self.filled and not padded
        if self._keys is None:
            self._allocate(keys, values, max(total, reserve_tokens))
        elif total > self.capacity or not self._owns_room:
            grown = max(
                total + SPARE_TOKENS, reserve_tokens, self.capacity + self.capacity // 2 if new > 1 else 0
            )
            self._reallocate(grown)
        assert self._keys is not None and self._values is not None and self._positions is not None
        self._keys[:, :, self.num_tokens : total] = keys
        self._values[:, :, self.num_tokens : total] = values
        self._positions[:, :, self.num_tokens : total] = positions[:, None]
        self.num_tokens = total

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a saved slab is: facts for a JSON header, and tensors by name; spare room is left out."""
        facts = {"heads": list(self.heads), "tokens": self.num_tokens, "from": self.contiguous_from}
        if not self.num_tokens:
            return facts, {}
        return facts, {"keys": self.keys, "values": self.values, "positions": self.positions}

    @classmethod
    def unpack(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Slab:
        """The slab that `pack` took apart, with room for a question behind it.

        Raises:
            KeyError, ValueError: something is missing, or tensors do not fit the facts.
        """
        slab = cls(tuple(facts["heads"]))
        if not facts["tokens"]:
            return slab
        keys, values, positions = (tensors[name] for name in ("keys", "values", "positions"))
        if keys.shape[1:3] != (len(slab.heads), facts["tokens"]) or positions.shape[2] != facts["tokens"]:
            raise ValueError(f"keys of shape {tuple(keys.shape)} for {facts}")
        slab._keys, slab._values, slab._positions = keys, values, positions
        slab.num_tokens, slab.contiguous_from = facts["tokens"], facts["from"]
        slab.filled = bool((positions >= 0).all())
        slab._reallocate(slab.num_tokens + SPARE_TOKENS)
        return slab

    def keep(self, index: Tensor) -> None:
        """Keep the places `index` int64 `[B, 1 or k, n]` (ascending, -1 pads) and free the rest."""
        B, k = self.keys.shape[:2]
        used = index >= 0
        rows = index.clamp(min=0).expand(B, k, -1)
        picked = rows[..., None].expand(-1, -1, -1, self.keys.shape[3])
        positions = self.positions.expand(B, max(index.shape[1], self.positions.shape[1]), -1)
        positions = positions.gather(2, index.clamp(min=0).expand(-1, positions.shape[1], -1))
        keys, values = self.keys.gather(2, picked), self.values.gather(2, picked)
        self._keys, self._values = keys, values
        self._positions = torch.where(used.expand_as(positions), positions, -1)
        self.num_tokens, self._owns_room = index.shape[2], True
        self.contiguous_from = None
        self.filled = bool((self._positions >= 0).all())

    def drop_oldest(self, num_tokens: int) -> None:
        """Free the first `num_tokens` places of every head."""
        if num_tokens > 0:
            self._cut(num_tokens, self.num_tokens, self.num_tokens - num_tokens + SPARE_TOKENS)
            if self.contiguous_from is not None:
                self.contiguous_from += num_tokens

    def crop(self, num_tokens: int) -> None:
        """Forget the last `num_tokens` places."""
        self.num_tokens = max(0, self.num_tokens - num_tokens)

    def fit(self) -> None:
        """Leave room for SPARE_TOKENS, no more and no less."""
        if self.num_tokens and self.capacity != self.num_tokens + SPARE_TOKENS:
            self._cut(0, self.num_tokens, self.num_tokens + SPARE_TOKENS)

    def fork(self) -> Slab:
        """A slab over the same tensors. It takes over the spare room, if this one has it, until `give_back`."""
        child = Slab(self.heads)
        child.num_tokens, child.contiguous_from = self.num_tokens, self.contiguous_from
        child.filled = self.filled
        child._keys, child._values, child._positions = self._keys, self._values, self._positions
        child._owns_room = child._took_room = self._owns_room
        self._owns_room = False
        return child

    def give_back(self, parent: Slab) -> None:
        """End of a fork: the spare room that it took over, and did not pass on, is the parent's again."""
        shared = self._keys is parent._keys
        if self._took_room and (self._owns_room or not shared):
            parent._owns_room, self._took_room = True, False
            if shared:
                self._owns_room = False

    def select_rows(self, rows: Tensor) -> None:
        """Take batch rows `rows` (beam search, repeats)."""
        if self._keys is not None:
            self._keys, self._values, self._positions = (
                x.index_select(0, rows.to(x.device)) for x in self.tensors
            )
            self._owns_room = True

    def _allocate(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        B, k, _, D = keys.shape
        self._keys = keys.new_empty((B, k, capacity, D))
        self._values = values.new_empty((B, k, capacity, values.shape[3]))
        self._positions = torch.empty(B, 1, capacity, dtype=torch.int64, device=keys.device)
        self._owns_room = True

    def _reallocate(self, capacity: int) -> None:
        self._cut(0, self.num_tokens, capacity)

    def _cut(self, start: int, stop: int, capacity: int) -> None:
        def copy(x: Tensor) -> Tensor:
            out = x.new_empty((*x.shape[:2], capacity, *x.shape[3:]))
            out[:, :, : stop - start] = x[:, :, start:stop]
            return out

        self._keys, self._values, self._positions = (copy(x) for x in self.tensors)
        self.num_tokens, self._owns_room = stop - start, True


@dataclass
class LayerStore:
    """The slabs of one layer; together they hold every kv head once."""

    slabs: list[Slab]

    def fork(self) -> LayerStore:
        return LayerStore([slab.fork() for slab in self.slabs])

    def give_back(self, parent: LayerStore) -> None:
        for slab, other in zip(self.slabs, parent.slabs, strict=True):
            slab.give_back(other)

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors' storage, spare room included."""
        return sum(x.untyped_storage().nbytes() for slab in self.slabs for x in slab.tensors)

    @property
    def kept_tokens(self) -> float:
        """Tokens held, averaged over kv heads."""
        heads = sum(len(slab.heads) for slab in self.slabs)
        return sum(slab.num_tokens * len(slab.heads) for slab in self.slabs) / max(heads, 1)
