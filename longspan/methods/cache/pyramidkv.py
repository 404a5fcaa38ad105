"""A pyramid of budgets: low layers keep much of a text, high layers little; within a layer the last tokens vote, as in SnapKV.

Attention spreads over a text in low layers and narrows to few tokens in high ones. With n = keep - window_tokens the mean
budget a layer beyond the window, layer l of L keeps the window and

    n_l = n * (w - (w - v) * l / (L - 1)),      v = 1 / beta,  w = 2 - v

keys with most votes: budgets fall evenly from layer to layer and sum to L * n. Where the first layer would keep more
than there is, w is what covers its text, and v = 2 - w.

Paper: PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling (2024).

Differs from the paper: votes are averaged within a group of query heads, so that a grouped-query cache stays grouped;
budgets sum exactly to `keep` a layer where the authors round each layer's down; they also keep a short text's layers
even below twice the budget, here the pyramid flattens bit by bit. Budgets need the whole text, so `when=chunk` is
refused and reading takes the memory of the text.

Fails when: high layers do need many places, as when a long list is counted or copied, and in shallow models, whose few
layers do not narrow (the reference model: hence the gentle beta of the card's claim); or when the window does not know
what will be asked, as with `snapkv`.

    model = longspan.load("reference", methods="pyramidkv(keep=0.25)")
    context = model.read(text)
    context.kept_tokens  # a quarter of context.num_tokens, averaged over layers
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longspan.eviction import WindowVotes

CARD = {
    "title": "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
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
        "text": "a gentle pyramid finds no fewer needles than SnapKV with the same budget in every layer",
        "spec": "pyramidkv(keep=0.5, beta=2, window_tokens=32)",
        "task": "niah_single_1",
        "length_tokens": 2048,
        "against": "snapkv(keep=0.5)",
        "margin": 0.0,
    },
    "tolerances": {},
    "example": "pyramidkv(keep=0.5)",
    "identity": "pyramidkv(keep=1.0)",
}


@dataclass(frozen=True, kw_only=True)
class PyramidKV(WindowVotes):
    """Keeps more in low layers than in high ones; see the module."""

    keep: float | int | str = 2048  # tokens a kv head in the mean layer, a share, or bytes; the paper's 12%
    window_tokens: int = 8  # last tokens, which vote and stay; the authors' LongBench runs
    beta: float = 20  # the last layer keeps 1/beta of the mean, beyond the window; the authors' code

    def __post_init__(self) -> None:
        if self.beta < 1:
            raise ValueError(
                f"got beta={self.beta:g}; allowed is 1 (all layers alike) or more, such as beta=20"
            )
        super().__post_init__()

    def layer_weights(self, num_layers: int, most: float) -> Sequence[float]:
        """Shares that fall evenly from the first layer to the last."""
        first = min(2 - 1 / self.beta, most)
        fall = 2 * (first - 1) / max(num_layers - 1, 1)
        return [first - fall * layer for layer in range(num_layers)] if num_layers > 1 else [1.0]
