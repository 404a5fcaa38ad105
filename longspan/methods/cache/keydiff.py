"""Keys that point elsewhere stay: those least similar to the mean direction of all keys of their head.

With every key brought to length 1,

    anchor = mean over k of K_k / ||K_k||        score(k) = - cos(K_k, anchor)

which drops the keys that are most alike, and so keeps those held as diverse as a budget allows. No attention is looked
at, and after each chunk of a text only what is still held is compared, so memory is bounded while reading.

Keys are compared as they are held: rotated, as in the authors' implementation and others' of it, so that equal words far apart
differ; under a method that holds them before rotation (`self_extend`, `lm_infinite`, ...) they are compared so.

Paper: KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in Resource-Constrained Environments (2025).

Differs from the paper: a text is evicted from in chunks of the reader's size (the paper's blocks are of 128 tokens; set
`chunk_tokens`), and answers after every 64 tokens; the paper's variant with a protected window of latest tokens is not
here. Of equal scores the earlier key stays.

Fails when: a head's keys have no common direction, so that the mean is near zero and the choice is noise; or when a fact
is worded like everything around it.

    model = longspan.load("reference", methods="keydiff(keep=2048)")
    context = model.read(text)
    context.kept_tokens  # 2048
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch.nn import functional

from longspan.eviction import Eviction
from longspan.roles import LayerInfo, ScoredKeyView

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in Resource-Constrained Environments",
    "year": 2025,
    "paper_id": None,
    "family": "cache",
    "roles": ["Storage"],
    "phase": "both",
    "training": "none",
    "exact": "when keep covers the text and the answer",
    "frees": "frees",
    "needs": [],
    "claim": {
        "text": "with half of the cache freed a needle is still found, though no attention was looked at",
        "spec": "keydiff(keep=0.5)",
        "task": "niah_single_1",
        "length_tokens": 2048,
        "against": "dense",
        "margin": -0.1,
    },
    "tolerances": {
        "chunked_reading": "keys are evicted after each chunk, so what is kept hangs on the chunks; with when=read it does not",
        "keys_before_rotation": "keys that are held before rotation are compared so, and others are the odd ones",
    },
    "example": "keydiff(keep=0.5)",
    "identity": "keydiff(keep=1024)",
}


@dataclass(frozen=True, kw_only=True)
class KeyDiff(Eviction):
    """Keeps keys unlike the mean key; see the module."""

    keep: float | int | str = 8192  # tokens a kv head, a share, or bytes; the 8K of the paper's abstract
    when: Literal["read", "chunk", "always"] = "always"  # the paper holds the budget throughout

    def score(self, layer: LayerInfo, store: ScoredKeyView, state: dict[str, Any]) -> Tensor:
        """The less like the mean direction the better, `[B, k, S]`; padding is no part of the mean."""
        directions = functional.normalize(store.keys.float(), dim=-1)
        anchor = (directions * (store.positions >= 0)[..., None]).sum(dim=2, keepdim=True)
        return -(directions * functional.normalize(anchor, dim=-1)).sum(-1)
