"""Attention sinks and a window: the first few tokens and the latest ones stay, everything between is dropped.

Much attention of a softmax goes to the first tokens whatever they say; without them a window alone breaks down. Kept is

    { k < sink_tokens }  and the latest  keep - sink_tokens

so the cache of a stream is as large as that of a page, whatever has passed through.

Paper: Efficient Streaming Language Models with Attention Sinks (2023).

Differs from the paper: keys stay where they stood. The paper numbers the kept tokens anew, 0 to keep - 1, at every
step, so that no distance exceeds the cache; here the sinks move ever further from the query, beyond the trained window
in a long stream, where rotary positions were never trained. `lm_infinite` caps that distance. Eviction comes after each
chunk of a text and after every 64 generated tokens, so that queries within a chunk see more than the window.

Fails when: the answer lies between sinks and window, which is gone; and, as positions stay, in a stream longer than the
trained window, where the model has never seen sinks so far away: at twice the reference model's window even needles
within the kept part are lost, and found again with `yarn(factor=2) + streaming()` or with sink_tokens=0.

    model = longspan.load("reference", methods="streaming()")
    context = model.read(open("long.txt"))
    context.kept_tokens  # 2004, however long the text
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from longspan.eviction import Eviction
from longspan.roles import LayerInfo, ScoredKeyView

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "Efficient Streaming Language Models with Attention Sinks",
    "year": 2023,
    "paper_id": None,
    "family": "cache",
    "roles": ["Storage"],
    "phase": "both",
    "training": "none",
    "exact": "while sinks and window cover the text",
    "frees": "frees",
    "needs": [],
    "claim": {
        "text": "with sinks and a window of half the text, needles of the later half are still found",
        "spec": "streaming(keep=1024)",
        "task": "niah_single_1",
        "length_tokens": 2048,
        "against": "dense",
        "at_least": 0.5,
    },
    "tolerances": {
        "chunked_reading": "within a chunk nothing is dropped, so a query sees the more the larger the chunk; with when=read "
        "everything is seen",
    },
    "example": "streaming(keep=100)",
    "identity": "streaming(keep=1024)",
}


@dataclass(frozen=True, kw_only=True)
class Streaming(Eviction):
    """Keeps sinks and a window; see the module."""

    keep: float | int | str = 2004  # sinks included: tokens, a share, or bytes; the authors' demo
    when: Literal["read", "chunk", "always"] = "always"  # so that a stream's cache never grows
    sink_tokens: int = 4  # first tokens, which always stay; the paper's

    def __post_init__(self) -> None:
        if self.sink_tokens < 0:
            raise ValueError(
                f"got sink_tokens={self.sink_tokens}; allowed is 0 or more, such as sink_tokens=4"
            )
        if self.spread != "uniform":
            raise ValueError(
                f"got spread={self.spread}; allowed is uniform, since every head keeps the same tokens in StreamingLLM"
            )
        super().__post_init__()

    def always_kept(self) -> tuple[int, int]:
        return self.sink_tokens, 1

    def what_stays(self) -> str:
        return "of sinks and window"

    def score(self, layer: LayerInfo, store: ScoredKeyView, state: dict[str, Any]) -> Tensor:
        """The later the better, `[B, 1, S]`."""
        positions = store.positions[:, :1]
        return positions - positions.amax(dim=-1, keepdim=True)
