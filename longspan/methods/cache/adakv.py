"""The kv heads of a layer share one budget: the keys with most votes of all heads together stay, each head keeping a floor.

Votes are those of the last tokens of a text, as in SnapKV. Of a layer with K kv heads and a budget of n keys a head,

    kept = the floor * n best keys of each head, and then the best of all heads, K * n in total

so a head that attends to few places gives its room to one that attends to many, which loses least of the layer's
attention. Heads that keep different numbers are stored apart, so what is dropped is freed.

Paper: Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference (2024).

Differs from the paper: the window that votes counts towards the floor, which is exactly kept (the authors mix an even
and an adaptive budget by that share, and round each head's); votes are averaged within a group of query heads.
`spread=all` lets the heads of all layers share one budget, which the paper does not.

Fails when: votes of different heads do not mean the same, as when one head's attention is sharp but useless; or when
the window does not know what will be asked, as with `snapkv`. Heads stored apart are attended to one by one.

    model = longspan.load("reference", methods="adakv(keep=0.25)")
    context = model.read(text)
    context.kept_tokens  # a quarter of context.num_tokens, averaged over heads
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from longspan.eviction import WindowVotes

CARD = {
    "title": "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference",
    "year": 2024,
    "paper_id": None,
    "family": "cache",
    "roles": ["Storage"],
    "phase": "read",
    "training": "none",
    "exact": "when keep covers the text",
    "frees": "frees",
    "needs": ["the question at the end of the text, for answers about details"],
    "claim": {
        "text": "of the same budget, shared by a layer's heads, no fewer needles are found than with SnapKV's even one",
        "spec": "adakv(keep=0.5)",
        "task": "niah_single_1",
        "length_tokens": 2048,
        "against": "snapkv(keep=0.5)",
        "margin": 0.0,
    },
    "tolerances": {},
    "example": "adakv(keep=0.5, window_tokens=16)",
    "identity": "adakv(keep=1.0)",
}


@dataclass(frozen=True, kw_only=True)
class AdaKV(WindowVotes):
    """Keeps the best keys of all heads of a layer; see the module."""

    keep: float | int | str = 1024  # tokens a kv head on average, a share, or bytes; the authors' code
    spread: Literal["uniform", "heads", "all"] = "heads"  # who shares a budget; the paper's layers
    floor: float = 0.2  # share of an even budget that each head keeps; the paper's safeguard
