"""Layers whose last queries look at nothing but the first and the latest tokens keep only these; the others keep all.

Once a text is read, the lazy ratio of every layer i is the attention of its last queries that stays at both ends,

    r_i = mean over the last `last_tokens` queries and all heads of sum over sink and recent keys of softmax(q K^T / sqrt(D))

The layers with the highest ratios, a share of `lazy_layers` of all, turn into streaming attention: they hold the sink and
the latest `recent_tokens` tokens, and go on to while an answer is generated.

Paper: LightTransfer: Your Long-Context LLM is Secretly a Hybrid Model with Effortless Adaptation (2025).

Differs from the paper: ratios are compared once all layers have read the text, and not in a queue while they do, so memory
falls after reading and not during it; only the variant without training (LightTransfer-Test).

Fails when: no layer is lazy at the text's end, or the one that looks for what will be asked seemed so there; the ratio
says nothing where text and window are about as long.

    model = longspan.load("reference", methods="light_transfer(lazy_layers=0.5)")
    context = model.read(text)
    context.kv_bytes  # half of the layers hold 1024 tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from longspan.eviction import SLACK_TOKENS, attention_received, places_of, remember_last
from longspan.roles import Event, Held, Step, Storage, Together

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "LightTransfer: Your Long-Context LLM is Secretly a Hybrid Model with Effortless Adaptation",
    "year": 2025,
    "paper_id": 197,
    "family": "cache",
    "roles": ["Storage"],
    "phase": "both",
    "training": "none",
    "exact": "when sink and recent tokens cover text and answer",
    "frees": "frees",
    "needs": [],
    "claim": {
        "text": "with half of the layers holding no more than 256 tokens a needle is still found",
        "spec": "light_transfer(lazy_layers=0.5, recent_tokens=252)",
        "task": "niah_single_1",
        "length_tokens": 2048,
        "against": "dense",
        "margin": -0.1,
    },
    "shares": {
        0.75: "light_transfer(lazy_layers=0.25, recent_tokens=252)",
        0.5: "light_transfer(lazy_layers=0.5, recent_tokens=252)",
        0.25: "light_transfer(lazy_layers=0.75, recent_tokens=252)",
        0.125: "light_transfer(lazy_layers=0.875, recent_tokens=124)",
    },
    "tolerances": {},
    "example": "light_transfer(lazy_layers=0.5, recent_tokens=64)",
    "identity": "light_transfer(lazy_layers=0.5, recent_tokens=1024)",
}


@dataclass(frozen=True, kw_only=True)
class LightTransfer(Storage):
    """Gives lazy layers a streaming cache; see the module.

    Args:
        lazy_layers: share of the layers that become streaming, those with the highest lazy ratios.
        sink_tokens: first tokens that they keep.
        recent_tokens: latest tokens that they keep.
        last_tokens: last queries of a text that are asked where they look.
    """

    lazy_layers: float = 0.5  # the paper's main setting
    sink_tokens: int = 4  # the paper's appendix A
    recent_tokens: int = 1020  # the paper's appendix A
    last_tokens: int = 32  # the best of the paper's table 7

    def __post_init__(self) -> None:
        if not 0 <= self.lazy_layers <= 1:
            raise ValueError(
                f"got lazy_layers={self.lazy_layers:g}; allowed is 0 to 1, a share of the layers such as 0.5"
            )
        if self.sink_tokens < 0:
            raise ValueError(f"got sink_tokens={self.sink_tokens}; allowed is 0 or more")
        for name, value in (("recent_tokens", self.recent_tokens), ("last_tokens", self.last_tokens)):
            if value < 1:
                raise ValueError(f"got {name}={value}; allowed is 1 or more")

    def together(self) -> Together:
        return "model"

    def observe(self, step: Step) -> None:
        if step.phase == "prefill":
            remember_last(step, self.last_tokens)

    def compact_together(self, held: Sequence[Held], *, event: Event) -> list[Tensor | None]:
        """Once a text is read, which layers are lazy; from then on these stream."""
        if event == "chunk":
            return [None] * len(held)
        if event == "read":
            ratios = torch.stack([self.lazy_ratio(h) for h in held], dim=1)
            ranks = ratios.sort(dim=1, descending=True, stable=True).indices.argsort(dim=1)
            lazy = ranks < round(self.lazy_layers * len(held))
            for number, h in enumerate(held):
                h.state["lazy"] = lazy[:, number].clone()
                for name in ("queries", "positions"):
                    del h.state[name]
        return [self._stream(h, 0 if event == "read" else SLACK_TOKENS) for h in held]

    def lazy_ratio(self, held: Held) -> Tensor:
        """Attention of the last queries of a layer that stays at both ends, `[B]`."""
        queries, positions = held.state["queries"], held.state["positions"]
        received = attention_received(held.store, queries, positions).mean(dim=1)
        at_ends = self._at_ends(held)[:, 0]
        return (received * at_ends).sum(dim=-1) / (positions >= 0).sum(dim=-1).clamp(min=1)

    def _at_ends(self, held: Held) -> Tensor:
        """Sink and recent tokens, `[B, 1, S]`."""
        positions = held.store.positions
        recent = positions > positions.amax(dim=-1, keepdim=True) - self.recent_tokens
        return ((positions < self.sink_tokens) | recent) & (positions >= 0)

    def _stream(self, held: Held, slack_tokens: int) -> Tensor | None:
        """Places of sink and recent tokens in rows whose layer is lazy, once more than the slack lies between them."""
        if "lazy" not in held.state:
            return None
        there = held.store.positions >= 0
        gone = there & ~self._at_ends(held) & held.state["lazy"][:, None, None]
        gone &= gone.sum(dim=-1, keepdim=True) > slack_tokens  # row by row, as each would alone
        return places_of(there & ~gone) if bool(gone.any()) else None
