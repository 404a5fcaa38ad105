"""The last tokens of a text vote, once, for the keys that each head keeps; the rest is freed.

Queries of the observation window (the last `window_tokens` tokens) attend to the whole text; per kv head

    vote(k) = mean over the group's query heads of pool_k( sum over window queries of softmax(q K^T / sqrt(D))[k] )

and the `keep - window_tokens` keys with most votes stay, together with the window itself. Pooling over neighbours keeps
whole phrases instead of single tokens. Later tokens are all kept.

Paper: SnapKV: LLM Knows What You are Looking for Before Generation (2024).

Differs from the paper: votes are averaged within a group of query heads, so that a grouped-query cache stays grouped
(the authors repeat keys and values for every query head first); `keep` may also be a share of the text; of keys with
equal votes the earlier one stays, so that the choice does not hang on batch or chunk size.

Fails when: the window does not know what will be asked. `Context.ask` puts its question behind the compacted text, so a
fact that nothing at the text's end points to may be gone; end the text with the question (or generate under
`longspan.applied`, where the prompt holds it) when there is one.

    model = longspan.load("reference", methods="snapkv(keep=0.25)")
    context = model.read(text)
    context.kept_tokens  # a quarter of context.num_tokens
"""

from __future__ import annotations

from dataclasses import dataclass

from longspan.eviction import WindowVotes

CARD = {
    "title": "SnapKV: LLM Knows What You are Looking for Before Generation",
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
        "text": "with half of the cache freed a needle is still found, even by a question that comes after",
        "spec": "snapkv(keep=0.5)",
        "task": "niah_single_1",
        "length_tokens": 4096,
        "against": "dense",
        "margin": -0.1,
    },
    "tolerances": {},
    "example": "snapkv(keep=0.5, window_tokens=16)",
    "identity": "snapkv(keep=1.0)",
}


@dataclass(frozen=True, kw_only=True)
class SnapKV(WindowVotes):
    """Keeps what the end of a text attends to; see the module."""

    keep: float | int | str = 1024  # tokens per kv head, a share of the text, or bytes; the paper's Table 1
