"""Heavy hitters: the keys that all queries so far paid most attention to stay, beside the latest ones.

Per kv head a score is summed over every query since the text began, prompt and answer alike,

    received(k) = mean over the group's query heads of sum_t softmax(q_t K^T / sqrt(D))[k]      over queries t >= k

and of a budget of n keys the latest n/2 stay for being recent, the n/2 with the highest score for being heavy hitters.
A score moves with its key, so it goes on growing over what is still held.

Paper: H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models (2023).

Differs from the paper: eviction comes after each chunk of a text and after every 64 generated tokens, not at each token
(the authors' code evicts first at the end of the prompt: `when=read` does only that); a group of query heads shares one
score; of equal scores the earlier key stays. Attention to guesses of assisted decoding that are taken back stays counted.

Fails when: the key that matters was never attended to before it was asked for: on the reference model needles before
the latest part are lost even at keep=0.8. Sums favour early keys, which more queries have seen. Every query is scored
against all keys once more, which costs about what attention does.

    model = longspan.load("reference", methods="h2o(keep=0.2)")
    context = model.read(text)
    context.kept_tokens  # a fifth of context.num_tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch.nn import functional

from longspan.eviction import Eviction, attention_received
from longspan.roles import LayerInfo, ScoredKeyView, Step

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
    "year": 2023,
    "paper_id": None,
    "family": "cache",
    "roles": ["Storage"],
    "phase": "both",
    "training": "none",
    "exact": "when keep covers the text and the answer",
    "frees": "frees",
    "needs": [],
    "claim": {
        "text": "with half of the cache freed, needles of the last quarter of a text are still found",
        "spec": "h2o(keep=0.5)",
        "task": "niah_single_1",
        "length_tokens": 2048,
        "against": "dense",
        "at_least": 0.4,
    },
    "tolerances": {
        "chunked_reading": "keys are evicted after each chunk, so what is kept hangs on the chunks; with when=read it does not",
    },
    "example": "h2o(keep=0.5)",
    "identity": "h2o(keep=1024)",
}


@dataclass(frozen=True, kw_only=True)
class H2O(Eviction):
    """Keeps what was attended to most, and the latest; see the module."""

    keep: float | int | str = 0.2  # tokens a kv head, a share of the text, or bytes; the paper's 20%
    when: Literal["read", "chunk", "always"] = "always"  # the paper evicts while it generates
    recent: float = 0.5  # share of the budget for the latest tokens; the paper's half

    def __post_init__(self) -> None:
        if not 0 <= self.recent <= 1:
            raise ValueError(
                f"got recent={self.recent:g}; allowed is 0 to 1, the share of the budget for the latest tokens"
            )
        super().__post_init__()

    def latest_share(self) -> float:
        return self.recent

    def by_token(self) -> tuple[str, ...]:
        return ("received",)

    def observe(self, step: Step) -> None:
        """Add the attention of the step's queries to what each key has received, `[B, k, S]`."""
        if step.phase != "prefill" and self.when != "always":
            return
        new = attention_received(step, step.queries, step.query_positions)
        new = new.view(len(new), len(step.store.heads), -1, step.store.num_tokens).mean(2)
        old = step.state.get("received")
        if old is not None:
            old = old[..., : step.num_past]  # more only where guesses were taken back
            new = new + functional.pad(old, (0, new.shape[-1] - old.shape[-1]))
        step.state["received"] = new.detach()

    def score(self, layer: LayerInfo, store: ScoredKeyView, state: dict[str, Any]) -> Tensor:
        """Attention received so far."""
        received: Tensor = state["received"]
        return functional.pad(received, (0, store.num_tokens - received.shape[-1]))
