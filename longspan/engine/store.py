"""What a layer keeps: slabs of keys, values and positions, grown in place, forked without copying, freed for real.

A slab holds some kv heads of one layer that keep equally many tokens; a layer whose heads keep different numbers has
several slabs. The tensors behind a slab may be shared by forks: one fork at a time owns the spare room behind the
last token and appends there, any other copies first. Nothing below a slab's length is ever overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from longspan.engine.archive import Archive, Tier, from_saved
from longspan.roles import Coded

Decoder: TypeAlias = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], tuple[Tensor, Tensor]]

DECODED_TOKENS = 16384  # at a time, since what a decoder makes on its way is several times as large
SPARE_TOKENS = 256  # most room left behind a finished context, so that a question needs no copy of it


def spare_tokens(num_tokens: int) -> int:
    """Room left behind so many tokens: an eighth of them, at least 16 and at most SPARE_TOKENS."""
    return min(SPARE_TOKENS, max(16, num_tokens // 8))


class Slab:
    """Keys `[B, k, S, D]`, values `[B, k, S, D]` and positions `[B, 1 or k, S]` (-1: nothing) of some kv heads.

    The first of them may be held in another form, `coded`; `decoder` makes keys and values of it when they are asked for, and
    they stay until `rest`.
    """

    def __init__(self, heads: tuple[int, ...], decoder: Decoder | None = None) -> None:
        self.heads = heads
        self.decoder = decoder
        self.coded: Coded | None = None
        self._decoded: tuple[Tensor, ...] | None = None
        self.archive: Archive | None = None
        self.num_tokens = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._positions: Tensor | None = None
        self._owns_room = True
        self._took_room = False  # from the slab it was forked from, which wants it back
        self.contiguous_from: int | None = None  # p when every row holds positions p, p+1, ... without holes
        self.filled = True  # no place is padding

    @property
    def coded_tokens(self) -> int:
        return 0 if self.coded is None else self.coded.num_tokens

    @property
    def raw_tokens(self) -> int:
        """Tokens held as they came: the last ones."""
        return self.num_tokens - self.coded_tokens

    @property
    def raw(self) -> tuple[Tensor, Tensor]:
        """Keys and values of these."""
        assert self._keys is not None and self._values is not None, "the slab is empty"
        return self._keys[:, :, : self.raw_tokens], self._values[:, :, : self.raw_tokens]

    @property
    def keys(self) -> Tensor:
        return self.raw[0] if self.coded is None else self._whole()[0]

    @property
    def values(self) -> Tensor:
        return self.raw[1] if self.coded is None else self._whole()[1]

    def _whole(self) -> tuple[Tensor, ...]:
        if self._decoded is None:
            assert self.coded is not None and self.decoder is not None
            self._decoded = tuple(x.new_empty(*x.shape[:2], self.num_tokens, x.shape[3]) for x in self.raw)
            for whole, part in zip(self._decoded, self.raw, strict=True):
                whole[:, :, self.coded_tokens :] = part
            for start, stop in _pieces(self.coded):
                made = self.decoder(_cut_coded(self.coded, start, stop), self.coded.shared)
                for whole, part in zip(self._decoded, made, strict=True):
                    whole[:, :, start:stop] = part
        return self._decoded

    def rest(self) -> None:
        """Forget keys and values that were made of another form."""
        self._decoded = None

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
        return 0 if self._keys is None else self.coded_tokens + self._keys.shape[2]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors behind it; the first, where there is one, has a row for each row of the batch."""
        own = tuple(x for x in (self._keys, self._values, self._positions) if x is not None)
        return own if self.coded is None else (*own, *self.coded.tokens.values(), *self.coded.shared.values())

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
                total + spare_tokens(total),
                reserve_tokens,
                self.capacity + self._keys.shape[2] // 2 if new > 1 else 0,
            )
            self._reallocate(grown)
        assert self._keys is not None and self._values is not None and self._positions is not None
        at = slice(self.raw_tokens, self.raw_tokens + new)
        self._keys[:, :, at] = keys
        self._values[:, :, at] = values
        self._positions[:, :, self.num_tokens : total] = positions[:, None]
        self.num_tokens = total
        self.rest()

    def code(self, coded: Coded) -> None:
        """Hold the oldest raw tokens in the form given, which comes behind what is coded already; frees them."""
        n, old = coded.num_tokens, self.coded
        assert 0 < n <= self.raw_tokens, f"{n} of {self.raw_tokens} tokens coded"
        left = self.raw_tokens - n
        self._keys, self._values = (
            _resized(x, n, n + left, left + spare_tokens(left))
            for x in (self._keys, self._values)
            if x is not None
        )
        if old is not None:
            joined = {name: torch.cat((old.tokens[name], x), dim=2) for name, x in coded.tokens.items()}
            coded = replace(coded, num_tokens=old.num_tokens + n, tokens=joined, shared=old.shared)
        self.coded = coded
        assert self._positions is not None
        self._positions = _resized(self._positions, 0, self.num_tokens, self.num_tokens + spare_tokens(left))
        self._owns_room = True
        self.rest()

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a saved slab is: facts for a JSON header, and tensors by name; spare room is left out."""
        facts: dict[str, Any] = {
            "heads": list(self.heads),
            "tokens": self.num_tokens,
            "from": self.contiguous_from,
        }
        if not self.num_tokens:
            return facts, {}
        keys, values = self.raw
        tensors = {"keys": keys, "values": values}
        if self.contiguous_from is None or not self.filled:
            tensors["positions"] = self.positions.int()
        if self.coded is not None:
            facts["coded"] = self.coded.num_tokens
            for kind, parts in (("coded", self.coded.tokens), ("shared", self.coded.shared)):
                tensors.update({f"{kind}.{name}": part for name, part in parts.items()})
        if self.archive is not None:
            facts["tier"] = self.archive.tier
            names = ("archive.keys", "archive.values", "archive.positions")
            tensors.update(zip(names, self.archive.load(torch.device("cpu")), strict=True))
        return facts, tensors

    @classmethod
    def unpack(
        cls, facts: dict[str, Any], tensors: dict[str, Tensor], decoder: Decoder | None = None
    ) -> Slab:
        """The slab that `pack` took apart, with room for a question behind it.

        Raises:
            KeyError, ValueError: something is missing, or tensors do not fit the facts.
        """
        slab = cls(tuple(facts["heads"]), decoder)
        if not facts["tokens"]:
            return slab
        keys, values, tokens = tensors["keys"], tensors["values"], facts["tokens"]
        if "positions" in tensors:
            positions = tensors["positions"].long()
        else:
            positions = torch.arange(facts["from"], facts["from"] + tokens, device=keys.device)
            positions = positions.expand(len(keys), 1, -1)
        coded_tokens = facts.get("coded", 0)
        raw = facts["tokens"] - coded_tokens
        if keys.shape[1:3] != (len(slab.heads), raw) or positions.shape[2] != facts["tokens"]:
            raise ValueError(f"keys of shape {tuple(keys.shape)} for {facts}")
        if coded_tokens:
            parts = {
                kind: {
                    name.removeprefix(f"{kind}."): x
                    for name, x in tensors.items()
                    if name.startswith(f"{kind}.")
                }
                for kind in ("coded", "shared")
            }
            slab.coded = Coded(num_tokens=coded_tokens, tokens=parts["coded"], shared=parts["shared"])
        if "tier" in facts:
            kept = [tensors[f"archive.{name}"] for name in ("keys", "values", "positions")]
            slab.archive = from_saved(facts["tier"], kept)
        slab._keys, slab._values, slab._positions = keys, values, positions
        slab.num_tokens, slab.contiguous_from = facts["tokens"], facts["from"]
        slab.filled = bool((positions >= 0).all())
        slab._reallocate(slab.num_tokens + spare_tokens(raw))
        return slab

    def keep(self, index: Tensor, blended: tuple[Tensor, Tensor] | None = None) -> None:
        """Keep the places `index` int64 `[B, 1 or k, n]` (ascending, -1 pads) and free the rest; what was coded is decoded.

        blended: keys and values `[B, k, n, D]` that stand at these places instead of their own.
        """
        B, k = self.keys.shape[:2]
        used = index >= 0
        rows = index.clamp(min=0).expand(B, k, -1)
        picked = rows[..., None].expand(-1, -1, -1, self.keys.shape[3])
        positions = self.positions.expand(B, max(index.shape[1], self.positions.shape[1]), -1)
        positions = positions.gather(2, index.clamp(min=0).expand(-1, positions.shape[1], -1))
        if blended is None:
            keys, values = self.keys.gather(2, picked), self.values.gather(2, picked)
        else:
            keys, values = (new.to(x.dtype) for new, x in zip(blended, (self.keys, self.values), strict=True))
        self._keys, self._values, self.coded = keys, values, None
        self._positions = torch.where(used.expand_as(positions), positions, -1)
        self.rest()
        self.num_tokens, self._owns_room = index.shape[2], True
        self.contiguous_from = None
        self.filled = bool((self._positions >= 0).all())

    def put_by(self, tier: Tier) -> None:
        """Add the tokens that have come since the last time to the archive, a lower tier that `recall` brings back."""
        known = self.archive or Archive(tier)
        if new := max(0, int(self.positions.max()) + 1 - known.num_tokens):
            last = (x[:, :, self.num_tokens - new :] for x in (self.keys, self.values, self.positions))
            self.archive = known.and_then(*last)

    def recall(self) -> None:
        """Hold all tokens of the archive again, instead of those that were kept of them."""
        assert self.archive is not None and self._keys is not None
        self._keys, self._values, self._positions = self.archive.load(self._keys.device)
        self.num_tokens, self.coded, self._owns_room = self._keys.shape[2], None, True
        self.filled = bool((self._positions >= 0).all())
        self.contiguous_from = 0 if self.filled else None
        self.rest()

    def drop_oldest(self, num_tokens: int) -> None:
        """Free the first `num_tokens` places of every head."""
        if num_tokens > 0:
            left = self.num_tokens - num_tokens
            self._cut(num_tokens, self.num_tokens, left + spare_tokens(left))
            if self.contiguous_from is not None:
                self.contiguous_from += num_tokens

    def crop(self, num_tokens: int) -> None:
        """Forget the last `num_tokens` places."""
        if num_tokens > self.raw_tokens:
            assert self.coded is not None, f"{num_tokens} of {self.num_tokens} tokens cropped"
            keys, values = self._whole()
            positions = self.positions.clone()
            self._keys, self._values, self._positions = keys, values, positions
            self.coded, self._owns_room = None, True
        self.num_tokens = max(0, self.num_tokens - num_tokens)
        self.rest()

    def fit(self) -> None:
        """Leave room for a question, no more and no less."""
        wanted = self.num_tokens + spare_tokens(self.raw_tokens)
        if self.num_tokens and self.capacity != wanted:
            self._cut(0, self.num_tokens, wanted)

    def fork(self) -> Slab:
        """A slab over the same tensors. It takes over the spare room, if this one has it, until `give_back`."""
        child = Slab(self.heads, self.decoder)
        child.coded, child.archive = self.coded, self.archive
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
        if self._keys is not None and self._values is not None and self._positions is not None:
            self._keys, self._values, self._positions = (
                x.index_select(0, rows.to(x.device)) for x in (self._keys, self._values, self._positions)
            )
            self._owns_room = True
        self.archive = None  # of rows that are read once
        if self.coded is not None:
            tokens, shared = (
                {name: x.index_select(0, rows.to(x.device)) for name, x in parts.items()}
                for parts in (self.coded.tokens, self.coded.shared)
            )
            self.coded = replace(self.coded, tokens=tokens, shared=shared)
        self.rest()

    def _allocate(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        B, k, _, D = keys.shape
        self._keys = keys.new_empty((B, k, capacity, D))
        self._values = values.new_empty((B, k, capacity, values.shape[3]))
        self._positions = torch.empty(B, 1, capacity, dtype=torch.int64, device=keys.device)
        self._owns_room = True

    def _reallocate(self, capacity: int) -> None:
        self._cut(0, self.num_tokens, capacity)

    def _cut(self, start: int, stop: int, capacity: int) -> None:
        """Hold the places from `start` to `stop`, with room for `capacity`; what is coded stays whole."""
        assert start == 0 or self.coded is None, "coded tokens are not cut"
        assert self._keys is not None and self._values is not None and self._positions is not None
        raw, coded = self.raw_tokens - (self.num_tokens - stop), self.coded_tokens
        self._keys, self._values = (
            _resized(x, start, raw, capacity - coded) for x in (self._keys, self._values)
        )
        self._positions = _resized(self._positions, start, stop, capacity)
        self.num_tokens, self._owns_room = stop - start, True


def _pieces(coded: Coded) -> Iterator[tuple[int, int]]:
    """Tokens from-to that can be decoded apart; all at once where groups of tokens are not cut so."""
    n = coded.num_tokens
    whole = any(DECODED_TOKENS * x.shape[2] % n for x in coded.tokens.values())
    for start in range(0, n, n if whole else DECODED_TOKENS):
        yield start, n if whole else min(n, start + DECODED_TOKENS)


def _cut_coded(coded: Coded, start: int, stop: int) -> Mapping[str, Tensor]:
    """The parts of `coded.tokens` that stand for these tokens."""
    n = coded.num_tokens
    return {
        name: x[:, :, start * x.shape[2] // n : stop * x.shape[2] // n] for name, x in coded.tokens.items()
    }


def _resized(x: Tensor, start: int, stop: int, capacity: int) -> Tensor:
    """A copy of the places from `start` to `stop` of `[B, k, S, ...]`, with room for `capacity`."""
    out = x.new_empty((*x.shape[:2], capacity, *x.shape[3:]))
    out[:, :, : stop - start] = x[:, :, start:stop]
    return out


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
    def tensors(self) -> Iterator[Tensor]:
        """All tensors behind it."""
        return (x for slab in self.slabs for x in slab.tensors)

    @property
    def kept_tokens(self) -> float:
        """Tokens held, averaged over kv heads."""
        heads = sum(len(slab.heads) for slab in self.slabs)
        return sum(slab.num_tokens * len(slab.heads) for slab in self.slabs) / max(heads, 1)
