"""Which sentences of the context an answer came from, read off the model's own copying heads.

While an answer token is produced, a head that copies attends to the same token in the context. The evidence for a
place is the attention it gets, counted only where it holds the token that was then produced, summed over heads, layers
and answer tokens: the criterion of "Retrieval Head Mechanistically Explains Long-Context Factuality" (2024).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan.engine.run import Run
from longspan.model_info import LayerInfo
from longspan.ops.attend import Problem, last_attention

TOP_PLACES = 8
AROUND_TOKENS = 120


@dataclass(frozen=True)
class Source:
    """A sentence of the context. `token` is its place in tokens from the context's start; `weight` is its share."""

    text: str
    token: int
    weight: float


class Tracer:
    """Collects evidence during decoding, from the attention steps of the run that decodes.

    Args:
        run: the run before the question is read into it. A reading may have made it of chosen tokens of `context`;
            its `origin` then names their places there.
        context: the run that holds the text, as far as it was kept; its own `origin`, if any, names places in the text.
    """

    def __init__(self, run: Run, context: Run) -> None:
        self.context_ids, self.context_tokens, self.own_tokens = run.ids, run.seen, run.own_tokens
        self.text_ids, self.origin = context.ids, context.origin
        self.chosen = None if run.origin is context.origin else run.origin
        self.evidence = torch.zeros(len(run.ids))
        self._pending: list[tuple[Tensor, Tensor]] = []

    def observe(self, layer: LayerInfo, problem: Problem) -> None:
        """After attention: remember where the last query of each head looked, in every row."""
        if layer.sliding_window_tokens is not None:
            return
        weights, places = last_attention(problem)
        top = weights.topk(min(TOP_PLACES, weights.shape[-1]), dim=-1)
        places = places.gather(2, top.indices)
        positions = problem.key_positions.repeat_interleave(
            weights.shape[1] // problem.key_positions.shape[1], dim=1
        )
        at = torch.where(places >= 0, positions.gather(2, places.clamp(min=0)), -1)
        self._pending.append((top.values.cpu(), at.cpu()))

    def settle(self, token: int) -> None:
        """The token that was produced after the last observed step."""
        for weights, positions in self._pending:
            inside = (positions >= 0) & (positions < self.context_tokens)
            place = positions.clamp(0, self.context_tokens - 1)
            rows = torch.arange(len(place))[:, None, None]
            place = place + self.own_tokens * rows.where(place < self.own_tokens, len(place) - 1)
            copied = inside & (self.context_ids[place] == token)
            self.evidence.index_add_(0, place[copied], weights[copied])
        self._pending = []

    def sources(self, tokenizer: Any, num_sources: int = 3) -> tuple[Source, ...]:
        """The sentences with most evidence, best first."""
        ids, left = self.text_ids, self.evidence.clone()
        if self.chosen is not None:
            left = torch.zeros(len(ids)).index_add_(0, self.chosen, self.evidence)
        total = float(left.sum())
        found: list[Source] = []
        while len(found) < num_sources and total > 0:
            place = int(left.argmax())
            if left[place] <= 0.05 * total:
                break
            text, start, stop = sentence_around(tokenizer, ids, place)
            weight = float(left[start:stop].sum()) / total
            left[start:stop] = 0
            token = int(self.origin[place]) if self.origin is not None else place
            if text:
                found.append(Source(text, token, weight))
        return tuple(sorted(found, key=lambda source: -source.weight))


def sentence_around(tokenizer: Any, ids: Tensor, place: int) -> tuple[str, int, int]:
    """The sentence or line that holds token `place`, with the token range it covers."""
    first, last = max(0, place - AROUND_TOKENS), min(len(ids), place + AROUND_TOKENS)
    pieces = [tokenizer.decode(ids[i : i + 1], skip_special_tokens=True) for i in range(first, last)]
    ends = [0]
    for piece in pieces:
        ends.append(ends[-1] + len(piece))
    text, at = "".join(pieces), ends[place - first]
    cuts = [0, *(m.end() for m in re.finditer(r"(?<=[.!?])[\"')\]]*\s+|\n+", text)), len(text)]
    begin = max(cut for cut in cuts if cut <= at)
    end = min((cut for cut in cuts if cut > at), default=len(text))
    inside = [i for i in range(len(pieces)) if ends[i + 1] > begin and ends[i] < end]
    return (
        text[begin:end].strip(),
        first + inside[0] if inside else place,
        first + inside[-1] + 1 if inside else place + 1,
    )
