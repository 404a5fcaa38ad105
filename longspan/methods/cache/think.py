"""The key channels that the last queries hardly use are dropped, for each kv head by itself.

A logit is a sum over channels. With the queries Q of the last `window_tokens` tokens of a text (those of all query heads
of a kv head) and its keys K, channel c weighs

    score(c) = || Q[:, c] ||_2 * || K[:, c] ||_2  =  || Q[:, c] K[:, c]^T ||_F

and the share `prune` of the channels that score lowest is dropped from the keys of all tokens but the last
`recent_tokens`. Those, and all that come after the text, keep every channel; values stay whole. Attention takes a dropped
channel as zero.

Paper: ThinK: Thinner Key Cache by Query-Driven Pruning (2024).

Differs from the paper: a kv head has one choice for the query heads of its group, whose queries are put together, so that a
grouped-query cache stays grouped (the authors repeat keys for every query head). Text that is read into a context later
loses the same channels.

Fails when: a question asks along channels that the end of the text did not use. Keys that are kept before rotation (beside
methods that map positions) lose channels of that form, whose partner of a rotary pair may stay.

    model = longspan.load("reference", methods="think(prune=0.4)")
    context = model.read(text)
    context.kv_bytes  # about a fifth less than dense: keys are half of it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.roles import Codec, Coded, Event, Held, LayerInfo, Step

CARD = {
    "title": "ThinK: Thinner Key Cache by Query-Driven Pruning",
    "year": 2024,
    "paper_id": None,
    "family": "cache",
    "roles": ["Codec"],
    "phase": "read",
    "training": "none",
    "exact": "when prune is 0",
    "frees": "frees",
    "needs": ["the question at the end of the text, for answers about details"],
    "claim": {
        "text": "without 40% of the key channels a needle is found nearly as often as with all of them",
        "spec": "think(prune=0.4)",
        "task": "niah_single_1",
        "length_tokens": 4096,
        "against": "dense",
        "margin": -0.1,
    },
    "shares": {
        0.75: "think(prune=0.5)",
    },
    "tolerances": {
        "keys_before_rotation": "keys that are kept before rotation are chosen from and lose channels so",
    },
    "example": "think(prune=0.5, window_tokens=16)",
    "identity": "think(prune=0.0)",
}


@dataclass(frozen=True, kw_only=True)
class ThinK(Codec):
    """Drops key channels; see the module."""

    prune: float = 0.4  # share of key channels; the paper's lambda
    window_tokens: int = 32  # last tokens whose queries choose; the authors' code
    recent_tokens: int = 32  # latest, which keep all channels; the authors' code

    def __post_init__(self) -> None:
        if not 0 <= self.prune < 1:
            raise ValueError(f"got prune={self.prune:g}; allowed is 0 to below 1, a share such as prune=0.4")
        if self.window_tokens < 1:
            raise ValueError(
                f"got window_tokens={self.window_tokens}; allowed is 1 or more, such as window_tokens=32"
            )
        if self.recent_tokens < 0:
            raise ValueError(
                f"got recent_tokens={self.recent_tokens}; allowed is 0 or more, such as recent_tokens=32"
            )

    def observe(self, step: Step) -> None:
        """Remember the queries of the last `window_tokens` tokens, over chunks; 0 for padding."""
        state = step.state
        if step.phase != "prefill" or "channels" in state or self.prune == 0:
            return
        last = step.queries[:, :, -self.window_tokens :]
        real = step.query_positions[:, None, -self.window_tokens :, None] >= 0
        last = torch.where(real, last, 0.0)
        if "queries" in state and last.shape[2] < self.window_tokens:
            last = torch.cat((state["queries"], last), dim=2)[:, :, -self.window_tokens :]
        state["queries"] = last.detach().clone()

    def code(self, held: Sequence[Held], *, event: Event) -> list[Coded | None]:
        if event != "read" or self.prune == 0:
            return [None] * len(held)
        return [self._code(h) for h in held]

    def _code(self, held: Held) -> Coded | None:
        """All tokens but the latest, and the numbers of the channels that their keys keep."""
        store, state = held.store, held.state
        num_tokens = store.num_tokens - self.recent_tokens
        if num_tokens <= 0:
            return None
        if "channels" not in state:
            state["channels"] = self._channels(held)
            del state["queries"]
        channels = state["channels"]
        at = channels.long()[:, :, None].expand(-1, -1, num_tokens, -1)
        tokens = {
            "keys": store.keys[:, :, :num_tokens].gather(3, at),
            "values": store.values[:, :, :num_tokens].clone(),
        }
        return Coded(num_tokens=num_tokens, tokens=tokens, shared={"channels": channels})

    def _channels(self, held: Held) -> Tensor:
        """Channels that stay, int16 `[B, k, C]`, ascending; of equal scores the first ones."""
        real = (held.store.positions >= 0)[..., None]
        keys = torch.where(real, held.store.keys, 0.0).float()
        queries = held.state["queries"].float().unflatten(1, (keys.shape[1], -1))
        scores = queries.square().sum((2, 3)) * keys.square().sum(2)
        kept = keys.shape[3] - int(keys.shape[3] * self.prune)
        best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :kept]
        return best.sort(dim=-1).values.short()

    def decode(
        self, layer: LayerInfo, tokens: Mapping[str, Tensor], shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        thin, values = tokens["keys"], tokens["values"]
        at = shared["channels"].long()[:, :, None].expand(thin.shape)
        keys = thin.new_zeros((*thin.shape[:3], layer.head_dim))
        return keys.scatter(3, at, thin), values
