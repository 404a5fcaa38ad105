"""Keys of low L2 norm stay: a small key tends to be one that later queries attend to.

    score(k) = - || K_k ||_2

No attention is looked at, so nothing needs to be remembered or computed beside the norm of what is stored. Rotation
leaves a norm as it is, so keys count alike whether they are held rotated or not.

Paper: A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression (2024).

Differs from the paper: it evicts once, after a text (`when=always` goes on while generating, as the authors' code does
beyond a length), and in every layer; the authors leave the first two whole, where norms say least. A scope does that:
`on(layers=2-31, knorm(keep=0.5))`. Of keys with equal norms the earlier one stays.

Fails when: norms and attention have little to do with each other, as in the first layers, and in models that normalise
each key before use, whose norms differ only by a learned scale a channel. On the reference model needles were lost at
keep=0.5 and at keep=0.9 alike, so the card claims nothing.

    model = longspan.load("reference", methods="knorm(keep=0.5)")
    context = model.read(text)
    context.kept_tokens  # half of context.num_tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longspan.eviction import Eviction
from longspan.roles import LayerInfo, ScoredKeyView

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression",
    "year": 2024,
    "paper_id": None,
    "family": "cache",
    "roles": ["Storage"],
    "phase": "read",
    "training": "none",
    "exact": "when keep covers the text",
    "frees": "frees",
    "needs": [],
    "claim": {},
    "tolerances": {},
    "example": "knorm(keep=0.5)",
    "identity": "knorm(keep=1.0)",
}


@dataclass(frozen=True, kw_only=True)
class KNorm(Eviction):
    """Keeps keys of low norm; see the module."""

    keep: float | int | str = 0.5  # tokens a kv head, a share of the text, or bytes; the paper's 50%

    def score(self, layer: LayerInfo, store: ScoredKeyView, state: dict[str, Any]) -> Tensor:
        """The lower the norm the better, `[B, k, S]`."""
        return -store.keys.float().norm(dim=-1)
