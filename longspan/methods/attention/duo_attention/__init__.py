"""Retrieval heads keep the whole cache, streaming heads keep only sinks and recent tokens.

A kv head is a retrieval head when restricting it to the first and the latest tokens changes what
the model says about far text. That is learned once per model: a gate alpha in [0, 1] for every kv
head mixes its two attentions,

    out = alpha * full + (1 - alpha) * streaming,

and alpha is trained, weights frozen, on passkeys hidden in long text, so that the final hidden
states stay those of the full model while the mean gate shrinks (`identify.py`). The heads with the
largest gates, over all layers, become retrieval heads. At inference the gates are gone: in every
layer the two kinds of heads are stored apart, and a streaming head keeps `sink_tokens +
recent_tokens` keys whatever the length of the text, which is also all it visits.

Paper: DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads (2024).

Differs from the paper: gates are trained on numbers named by words, asked in the benchmark's plain
form, so that small models know the task (the paper: sequences of 32 words, asked by ordinal
number), and by default on fewer and shorter texts; the error is relative to the size of the hidden
states, so that one weight of the L1 term serves all models. While tokens are generated a streaming
head is cut back every 64 tokens, not at each one; it visits the paper's keys all the same.

Fails when: an answer needs far text through more heads than `retrieval_fraction` leaves (few kv
heads in a model make the cut coarse); the text fits in sinks and recent tokens, where nothing is
freed.

    model = longspan.load("reference", methods="duo_attention(retrieval_fraction=0.5)")
    context = model.read(text)
    context.ask("Who keeps the lantern?"), context.kv_bytes
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from longspan.methods._asset import check_made_for
from longspan.methods.attention.duo_attention.gates import Gates, load_gates, save_gates
from longspan.methods.attention.duo_attention.identify import identify_heads
from longspan.roles import KeyView, LayerInfo, ModelInfo, Selection, Step, Storage
from longspan.visit import Dense, Ranges, Visit

__all__ = ["CARD", "DuoAttention", "Gates", "identify_heads", "load_gates", "save_gates"]

CARD = {
    "title": "DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads",
    "year": 2024,
    "paper_id": 145,
    "family": "attention",
    "roles": ["Selection", "Storage"],
    "phase": "both",
    "training": "calibration",
    "exact": False,
    "frees": "frees",
    "needs": [
        "gates of the model, made once by python -m longspan.methods.attention.duo_attention MODEL TEXT GATES.json; "
        "those of the reference model are bundled"
    ],
    "claim": {
        "text": "with a full cache for half of the kv heads and sinks and recent tokens for the others, "
        "needles are found as with the full cache",
        "spec": "duo_attention(retrieval_fraction=0.5)",
        "task": "niah_multikey_1",
        "length_tokens": 4096,
        "against": "dense",
        "margin": -0.05,
    },
    "shares": {
        0.75: "duo_attention(retrieval_fraction=0.75)",
        0.5: "duo_attention(retrieval_fraction=0.5)",
        0.25: "duo_attention(retrieval_fraction=0.25)",
        0.125: "duo_attention(retrieval_fraction=0.0625)",
    },
    "tolerances": {},
    "example": "duo_attention(retrieval_heads=[1, 2], sink_tokens=4, recent_tokens=32)",
    "identity": "duo_attention(retrieval_fraction=1.0)",
}

BUNDLED = Path(__file__).with_name("reference.json")
SLACK_TOKENS = (
    64  # kept beyond the window while decoding, so that cuts are rare and guesses can be taken back
)
HOW = (
    "make them with `python -m longspan.methods.attention.duo_attention MODEL TEXT GATES.json` "
    "and pass gates=GATES.json"
)


@dataclass(frozen=True, kw_only=True)
class DuoAttention(Selection, Storage):
    """Retrieval heads attend to everything, streaming heads to sinks and recent tokens, which is all they keep."""

    retrieval_fraction: float = 0.5  # share of kv heads with a full cache; the paper's, grouped heads
    sink_tokens: int = 64  # first tokens a streaming head keeps; the paper's experiments
    recent_tokens: int = 256  # latest tokens it keeps, the current one included; the paper's experiments
    gates: str | None = None  # JSON file of gates; by default the bundled ones of the reference model
    retrieval_heads: tuple[int, ...] | None = None  # instead of gates: layer * num_kv_heads + head

    def __post_init__(self) -> None:
        if not 0.0 <= self.retrieval_fraction <= 1.0:
            raise ValueError(
                f"got retrieval_fraction={self.retrieval_fraction:g}; allowed is 0 (all heads stream) to 1 (none), "
                "such as 0.5"
            )
        if self.sink_tokens < 0:
            raise ValueError(f"got sink_tokens={self.sink_tokens}; allowed is 0 or more, such as 64")
        if self.recent_tokens < 1:
            raise ValueError(f"got recent_tokens={self.recent_tokens}; allowed is 1 or more, such as 256")
        if self.retrieval_heads is not None:
            if self.gates is not None or self.retrieval_fraction != 0.5:
                raise ValueError(
                    "got retrieval_heads together with gates or retrieval_fraction; retrieval_heads already says which "
                    "heads keep everything, leave the other out"
                )
            if any(head < 0 for head in self.retrieval_heads):
                raise ValueError(
                    f"got retrieval_heads={list(self.retrieval_heads)}; heads are numbered from 0"
                )

    def check(self, model: ModelInfo) -> None:
        """Raise ValueError where the gates are missing or another model's, or a head does not exist."""
        total = sum(layer.num_kv_heads for layer in model.layers)
        if self.retrieval_heads is not None:
            if max(self.retrieval_heads, default=0) >= total:
                raise ValueError(
                    f"duo_attention: got kv head {max(self.retrieval_heads)}; {model.name} has kv heads 0 to {total - 1}, "
                    f"numbered layer * {model.layers[0].num_kv_heads} + head"
                )
            return
        if not self._needs_gates:
            return
        if self.gates is None and not BUNDLED.is_file():
            raise ValueError(f"there are no gates for {model.name}; {HOW}")
        found = self._loaded
        check_made_for(model, "gates", self.gates, found.model, found.fingerprints, HOW)
        shape = [len(row) for row in found.alpha]
        if shape != [layer.num_kv_heads for layer in model.layers]:
            raise ValueError(
                f"{self.gates} holds gates of {len(shape)} layers that do not fit {model.name}; {HOW}"
            )

    def split(self, layer: LayerInfo) -> tuple[tuple[int, ...], ...]:
        kinds = [self._is_retrieval(layer, head) for head in range(layer.num_kv_heads)]
        groups = (
            tuple(head for head, kind in enumerate(kinds) if kind is wanted) for wanted in (True, False)
        )
        return tuple(group for group in groups if group)

    def visit(self, step: Step) -> Visit:
        if self._is_retrieval(step.layer, step.store.heads[0]):
            return Dense()
        return Ranges(sink_tokens=self.sink_tokens, window_tokens=self.recent_tokens)

    def compact(
        self,
        layer: LayerInfo,
        store: KeyView,
        state: dict[str, Any],
        *,
        event: Literal["chunk", "read", "token"],
    ) -> Tensor | None:
        if self._is_retrieval(layer, store.heads[0]):
            return None
        size = self.sink_tokens + self.recent_tokens
        slack = SLACK_TOKENS if event == "token" else 0
        if store.num_tokens <= size + 2 * slack:
            return None
        return sink_and_recent(store.positions, self.sink_tokens, self.recent_tokens + slack)

    @property
    def _needs_gates(self) -> bool:
        return 0.0 < self.retrieval_fraction < 1.0

    @cached_property
    def _loaded(self) -> Gates:
        return load_gates(BUNDLED if self.gates is None else Path(self.gates))

    @cached_property
    def _chosen(self) -> frozenset[tuple[int, int]]:
        return self._loaded.strongest(self.retrieval_fraction)

    def _is_retrieval(self, layer: LayerInfo, head: int) -> bool:
        if self.retrieval_heads is not None:
            return layer.index * layer.num_kv_heads + head in self.retrieval_heads
        if not self._needs_gates:
            return self.retrieval_fraction == 1.0
        return (layer.index, head) in self._chosen


def sink_and_recent(positions: Tensor, sink_tokens: int, recent_tokens: int) -> Tensor:
    """Places of positions below `sink_tokens` and of the latest `recent_tokens` positions of each row.

    positions: int64 `[B, k, S]`, -1 for padding.
    Returns int64 `[B, k, n]`, ascending, with -1 behind the places of rows that have fewer.
    """
    latest = positions.amax(dim=-1, keepdim=True)
    wanted = (positions >= 0) & ((positions < sink_tokens) | (positions > latest - recent_tokens))
    num_tokens = positions.shape[-1]
    places = torch.arange(num_tokens, device=positions.device).expand_as(positions)
    ordered = (
        torch.where(wanted, places, num_tokens).sort(dim=-1).values[..., : int(wanted.sum(dim=-1).max())]
    )
    return torch.where(ordered < num_tokens, ordered, -1)
