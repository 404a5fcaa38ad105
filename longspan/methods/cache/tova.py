"""The last query decides for all heads of a layer: keys that it attends to least are dropped.

With the attention of the latest token, averaged over all query heads of a layer,

    score(k) = mean over heads of softmax(q_last K^T / sqrt(D))[k]

the `keep` best keys stay, the same ones in every head. Nothing is protected: neither the first tokens nor the latest
stay unless the last query attends to them. A transformer so bounded is an RNN with many states.

Paper: Transformers are Multi-State RNNs (2024).

Differs from the paper: eviction comes after each chunk of a text and after every 64 generated tokens, each by the last
query before it, not at each token; of keys with equal scores the earlier one stays.

Fails when: the last token of a text does not point to what will be asked; one query is a noisy vote, and an evicted key
never comes back. Heads that look at different places have to share one choice. On the reference model needles that a
question asks for behind the text were lost at keep=0.5 and at keep=0.8 alike, so the card claims nothing.

    model = longspan.load("reference", methods="tova(keep=0.25)")
    context = model.read(text)
    context.kept_tokens  # a quarter of context.num_tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from longspan.eviction import Eviction, attention_received
from longspan.roles import LayerInfo, ScoredKeyView, Step

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "Transformers are Multi-State RNNs",
    "year": 2024,
    "paper_id": None,
    "family": "cache",
    "roles": ["Storage"],
    "phase": "both",
    "training": "none",
    "exact": "when keep covers the text and the answer",
    "frees": "frees",
    "needs": ["the question at the end of the text, for answers about details"],
    "claim": {},
    "tolerances": {
        "chunked_reading": "the last query of each chunk evicts, so what is kept hangs on the chunks; with when=read it does not",
    },
    "example": "tova(keep=0.5)",
    "identity": "tova(keep=1024)",
}


@dataclass(frozen=True, kw_only=True)
class Tova(Eviction):
    """Keeps what the last query attends to; see the module."""

    keep: float | int | str = 0.25  # tokens, a share, or bytes; the paper goes down to 1/8
    when: Literal["read", "chunk", "always"] = "always"  # the paper evicts while it generates

    def __post_init__(self) -> None:
        if self.spread != "uniform":
            raise ValueError(
                f"got spread={self.spread}; allowed is uniform, since the heads of a layer share one choice in TOVA; for a budget "
                "that heads share use adakv"
            )
        super().__post_init__()

    def observe(self, step: Step) -> None:
        """Remember the last query."""
        if step.phase == "prefill" or self.when == "always":
            step.state["query"] = step.queries[:, :, -1:].detach().clone()
            step.state["position"] = step.query_positions[:, -1:].clone()

    def score(self, layer: LayerInfo, store: ScoredKeyView, state: dict[str, Any]) -> Tensor:
        """Attention of the last query, mean over the layer's heads, `[B, 1, S]`."""
        return attention_received(store, state["query"], state["position"]).mean(1, keepdim=True)
