"""Keys and values of adjacent layers share the token factors of one singular value decomposition.

The dominant singular vectors of the caches of neighbouring layers nearly agree. So the keys of `group_layers` layers,
before rotation, are put side by side along the channels, and decomposed once, when the text has been read:

    [K_1 | ... | K_g] = X  [S, g * C],     A = X V^T  [S, r],     K_l ~ A V_l,     V = [V_1 | ... | V_g]  [r, g * C]

with the r leading right singular vectors as rows of V, C channels of all kv heads of a layer; values likewise with a
rank of their own. All layers of the group hold the same A, and each its own V_l; keys and values are made of these when
a query attends. Tokens that come later stay in full precision.

Paper: xKV: Cross-Layer SVD for KV-Cache Compression (2025).

Differs from the paper: ranks may be shares of a group's channels (the defaults are the authors' 384 and 576 of the 4096
that four layers of their model have), and a smaller last group gets its share of a rank given as a number; V is
orthonormal and A carries the singular values (the authors give each its square root), which changes no product. Layers
with a sliding window are left out, others of unlike shape or number of tokens are grouped apart. A text too short to
gain by it stays as it is. A text read behind the first one stays in full precision. The authors' selective
reconstruction (xKV-SR) is not part of it.

Fails when: what is asked for lies in few tokens that look like no others, for the factors serve the bulk of the text.
While reading everything is held in full precision. A saved file holds the shared factors once per layer.

    model = longspan.load("reference", methods="xkv(key_rank=0.25, value_rank=0.375)")
    context = model.read(text)
    context.ask("Who keeps the lantern?"), context.kv_bytes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.low_rank import Rank, Solver, check_rank, resolve_rank, right_factors, to_heads, to_matrix
from longspan.roles import Codec, Coded, Event, Held, LayerInfo, Together

CARD = {
    "title": "xKV: Cross-Layer SVD for KV-Cache Compression",
    "year": 2025,
    "paper_id": 109,
    "family": "cache",
    "roles": ["Codec"],
    "phase": "read",
    "training": "none",
    "exact": "at full rank",
    "frees": "frees",
    "needs": [],
    "claim": {
        "text": "with a seventh of the bytes a needle is found as with the full cache",
        "spec": "xkv",
        "task": "niah_single_2",
        "length_tokens": 2048,
        "against": "dense",
        "margin": -0.1,
    },
    "shares": {
        0.75: "xkv(key_rank=0.56, value_rank=0.84)",
        0.5: "xkv(key_rank=0.37, value_rank=0.55)",
        0.25: "xkv(key_rank=0.175, value_rank=0.26)",
        0.125: "xkv(key_rank=0.078, value_rank=0.117)",
        0.06: "xkv(key_rank=0.028, value_rank=0.042)",
    },
    "tolerances": {},
    "example": "xkv(group_layers=2, key_rank=16, value_rank=24)",
    "identity": "xkv(key_rank=1.0, value_rank=1.0)",
}


@dataclass(frozen=True, kw_only=True)
class XKV(Codec):
    """Token factors shared by a group of layers, right factors for each layer; see the module."""

    group_layers: int = 4  # adjacent layers that share token factors; the paper's xKV-4
    key_rank: Rank = 0.09375  # share of a group's channels, or a number; the authors' 384 of 4096
    value_rank: Rank = 0.140625  # as key_rank; the authors' 576 of 4096
    solver: Solver = "exact"  # or random: a few passes over the text instead of a full SVD

    def __post_init__(self) -> None:
        if self.group_layers < 1:
            raise ValueError(f"got group_layers={self.group_layers}; allowed is 1 or more, such as 4")
        check_rank(self.key_rank, name="key_rank")
        check_rank(self.value_rank, name="value_rank")

    def together(self) -> Together:
        return "model"

    def needs_pre_rotary(self) -> bool:
        return True

    def code(self, held: Sequence[Held], *, event: Event) -> list[Coded | None]:
        found: list[Coded | None] = [None] * len(held)
        if event == "read":
            for places in self._groups(held):
                for place, coded in zip(places, self._code_group([held[i] for i in places]), strict=True):
                    found[place] = coded
        return found

    def decode(
        self, layer: LayerInfo, tokens: Mapping[str, Tensor], shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        num_heads = shared["keys"].shape[2] // layer.head_dim
        keys, values = (to_heads(tokens[name][:, 0] @ shared[name], num_heads) for name in ("keys", "values"))
        return keys, values

    def _groups(self, held: Sequence[Held]) -> list[list[int]]:
        """Places in `held` that are decomposed together: slabs of adjacent layers, alike in heads and shapes."""
        order = {index: n for n, index in enumerate(dict.fromkeys(h.layer.index for h in held))}
        groups: dict[tuple[object, ...], list[int]] = {}
        for place, h in enumerate(held):
            store = h.store
            if not store.num_tokens or _still_coded(h):
                continue
            number = order[h.layer.index] // self.group_layers
            alike = (number, store.heads, store.keys.shape, store.values.shape)
            groups.setdefault(alike, []).append(place)
        return list(groups.values())

    def _code_group(self, group: Sequence[Held]) -> list[Coded | None]:
        stores = [h.store for h in group]
        num_tokens = stores[0].num_tokens
        channels = [x.shape[1] * x.shape[3] for x in (stores[0].keys, stores[0].values)]
        ranks = [
            min(self._rank(rank, wide, len(group)), num_tokens)
            for rank, wide in zip((self.key_rank, self.value_rank), channels, strict=True)
        ]
        full = len(group) * num_tokens * sum(channels)
        if full <= sum(r * (num_tokens + len(group) * wide) for r, wide in zip(ranks, channels, strict=True)):
            return [None] * len(group)
        keys = self._factorise([to_matrix(s.keys, s.positions) for s in stores], ranks[0])
        values = self._factorise([to_matrix(s.values, s.positions) for s in stores], ranks[1])
        dtype = stores[0].keys.dtype
        tokens = {"keys": keys[0][:, None].to(dtype), "values": values[0][:, None].to(dtype)}
        found: list[Coded | None] = []
        for h, key_part, value_part in zip(group, keys[1], values[1], strict=True):
            h.state["end"] = int(h.store.positions.max())
            shared = {"keys": key_part.to(dtype), "values": value_part.to(dtype)}
            found.append(Coded(num_tokens=num_tokens, tokens=tokens, shared=shared))
        return found

    def _rank(self, rank: Rank, channels: int, num_layers: int) -> int:
        """The rank for a group of so many layers with `channels` each."""
        if rank > 1:
            rank = max(2, round(rank * num_layers / self.group_layers))
        return resolve_rank(rank, num_layers * channels)

    def _factorise(self, layers: Sequence[Tensor], rank: int) -> tuple[Tensor, list[Tensor]]:
        """Token factors `[B, S, r]` and the right factors `[B, r, C]` of each layer, of matrices `[B, S, C]`."""
        matrix = torch.cat(list(layers), dim=2)
        right = right_factors(matrix, rank, self.solver)
        parts = right.split([x.shape[2] for x in layers], dim=2)
        return matrix @ right.mT, [part.contiguous() for part in parts]


def _still_coded(h: Held) -> bool:
    """Does the slab hold coded tokens before those it shows? A storage method's cut makes them plain again."""
    end = h.state.get("end")
    positions = h.store.positions
    return end is not None and not bool(((positions >= 0) & (positions <= end)).any())
