"""A text is read again, behind itself, and each key is kept for the most attention that this repetition ever pays it.

What a model needs to repeat a text holds whatever a question may need of it. Chunks of the text are fed once more to the
model that holds all of it, each behind the end of the one before; per kv head, over all query heads of its group,

    score(k) = max over the repetition's queries of softmax(q [K_sink, K_chunk, K_repetition]' / sqrt(D))[k]

with softmax over the sink, the chunk and what of the repetition came before, so that the cost grows with the text and not
with its square. Heads of all layers share one budget; what scores lowest is freed.

Paper: KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction (2025).

Differs from the paper: no sentence asks for the repetition, since a method sees token ids and no tokenizer: the text's own
tokens set the model off (`lead_tokens` of what came before the chunk; `prompt_ids` puts a sentence before them); every head
keeps the sink; text that is appended later is repeated alone, and competes with what earlier text scored.

Fails when: the model cannot repeat, being too weak, or out of its window: text and one chunk must fit into it together;
memory is short while reading, as nothing is dropped before the repetition has ended.

    model = longspan.load("reference", methods="kvzip(keep=0.3, chunk_tokens=1024)")
    context = model.read(text)  # takes two to three times as long
    context.kept_tokens  # 0.3 of context.num_tokens, over all heads and layers
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from longspan.eviction import LOGITS_AT_ONCE, Eviction
from longspan.roles import Event, Held, LayerInfo, Reader, Reading, ScoredKeyView, Step

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction",
    "year": 2025,
    "paper_id": None,
    "family": "cache",
    "roles": ["Storage", "Reading"],
    "phase": "read",
    "training": "none",
    "exact": "when keep covers the text",
    "frees": "frees",
    "needs": ["a window that holds the text and one chunk of it"],
    "claim": {
        "text": "with 0.7 of the cache freed, by repeating the text, a needle is still found",
        "spec": "kvzip(keep=0.3, chunk_tokens=1024)",
        "task": "niah_single_1",
        "length_tokens": 2048,
        "against": "dense",
        "margin": -0.1,
    },
    "tolerances": {},
    "example": "kvzip(keep=0.5, chunk_tokens=100)",
    "identity": "kvzip(keep=1.0)",
}


@dataclass(frozen=True, kw_only=True)
class KVzip(Eviction, Reading):
    """Keeps what repeating the text attends to; see the module.

    Args:
        chunk_tokens: tokens of the text that are repeated at once.
        lead_tokens: tokens before a chunk that are repeated with it.
        prompt_ids: token ids of a sentence put before each repetition, such as "Repeat the previous context exactly."
        sink_tokens: first tokens of the text, which every head keeps.
    """

    keep: float | int | str = 0.3  # the paper keeps a third to a fourth
    spread: Literal["uniform", "heads", "all"] = "all"  # the paper's non-uniform budgets
    when: Literal["read"] = "read"  # the text must have ended before it is repeated
    floor: float = 0.0  # the paper has no safeguard
    chunk_tokens: int = 2048  # the paper's 2K
    lead_tokens: int = 8  # the authors' code
    prompt_ids: tuple[int, ...] = ()  # a method sees ids and no text
    sink_tokens: int = 4  # the authors' system prompt; attention sinks

    def __post_init__(self) -> None:
        for name, least in (("chunk_tokens", 1), ("lead_tokens", 0), ("sink_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"got {name}={getattr(self, name)}; allowed is {least} or more")
        if self.when != "read":
            raise ValueError(
                f"got when={self.when}; allowed is read, since a text is repeated once all of it was read"
            )
        if any(token < 0 for token in self.prompt_ids):
            raise ValueError(f"got prompt_ids={list(self.prompt_ids)}; allowed are token ids, 0 or more")
        super().__post_init__()

    def always_kept(self) -> tuple[int, int]:
        return self.sink_tokens, 0

    def what_stays(self) -> str:
        return "at the start"

    def by_token(self) -> tuple[str, ...]:
        return ("received",)

    def keeps_itself(self) -> bool:
        return True

    def read(self, reader: Reader, ids: Iterable[Tensor], num_tokens: int | None) -> Any:
        run = reader.prefill(reader.new_run(num_tokens=num_tokens), ids)
        return self._zip(reader, run, first=0)

    def extend(self, reader: Reader, run: Any, ids: Iterable[Tensor]) -> Any:
        return self._zip(reader, reader.prefill(reader.fork(run), ids), first=len(run.ids))

    def compact_together(self, held: Sequence[Held], *, event: Event) -> list[Tensor | None]:
        """Waits until all that is held has been repeated."""
        repeated = all(_scored(h) == h.store.num_tokens for h in held)
        return super().compact_together(held, event=event) if repeated else [None] * len(held)

    def score(self, layer: LayerInfo, store: ScoredKeyView, state: dict[str, Any]) -> Tensor:
        received: Tensor = state["received"]
        return received

    def _zip(self, reader: Reader, run: Any, *, first: int) -> Any:
        """Repeat the text from token `first` on, which is all that has no score yet, and free what the repetition can do without."""
        ids = run.ids
        held = reader.held(run, self)
        parts: dict[tuple[int, tuple[int, ...]], list[Tensor]] = {}
        for h in held:
            old = h.state.get("received")
            parts[h.layer.index, h.store.heads] = [] if old is None else [old]
        prompt = ids.new_tensor(self.prompt_ids)
        for start in range(first, len(ids), self.chunk_tokens):
            stop = min(start + self.chunk_tokens, len(ids))
            branch = reader.fork(run)
            reader.watch(branch, _Repetition(self, len(ids) - start, len(ids) - stop, parts))
            reader.advance(branch, torch.cat((prompt, ids[max(0, start - self.lead_tokens) : stop])))
            run.peak_bytes = max(run.peak_bytes, branch.peak_bytes)
            reader.give_back(branch, run)
        for h in held:
            h.state["received"] = torch.cat(parts[h.layer.index, h.store.heads], dim=2)
        reader.keep(run, self.compact_together(held, event="read"))
        return run


@dataclass(frozen=True)
class _Repetition:
    """Watches a repetition of the tokens that stand between `start` and `stop` from the text's end, slab by slab."""

    method: KVzip
    start: int
    stop: int
    parts: dict[tuple[int, tuple[int, ...]], list[Tensor]]

    def __call__(self, layer: int, step: Step) -> None:
        found = self.parts.get((layer, step.store.heads))
        if found is not None:
            found.append(self.received(step))

    def received(self, step: Step) -> Tensor:
        """The most attention `[1, k, stop-start]` that each of these tokens gets."""
        first, last = step.num_past - self.start, step.num_past - self.stop
        sinks = min(self.method.sink_tokens, first)
        positions = step.store.positions[:, :, step.num_past :]
        most = step.queries.new_zeros((*step.queries.shape[:2], last - first), dtype=torch.float32)
        at_once = max(1, LOGITS_AT_ONCE // (most.shape[1] * (sinks + last - first + step.num_new)))
        for begin in range(0, step.num_new, at_once):
            queries = step.queries[:, :, begin : begin + at_once]
            at = step.query_positions[:, begin : begin + at_once]
            spans = ((0, sinks), (first, last), (step.num_past, step.store.num_tokens))
            logits = [step.logits(queries, at, *span).float() for span in spans]
            unseen = positions[:, :1, None] > at[:, None, :, None]
            logits[2] = logits[2].masked_fill(unseen, -torch.inf)
            attention = torch.cat(logits, dim=-1).softmax(dim=-1)[..., sinks : sinks + last - first]
            most = torch.maximum(most, attention.amax(dim=2))
        return most.view(len(most), len(step.store.heads), -1, last - first).amax(dim=2)


def _scored(held: Held) -> int:
    received = held.state.get("received")
    return 0 if received is None else int(received.shape[2])
