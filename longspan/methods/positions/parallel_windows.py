"""Parallel Context Windows: windows of a text are encoded apart at shared positions, a question attends to all of them.

Equation: the text is cut into windows of W tokens, each at the positions 0 .. W - 1 and blind to all others;
the t-th token of the question and its answer stands at W + t and sees every token:

    a token of the text at i in its window sees the j <= i of its window,                   at the distance i - j
    token t of the question sees all windows, each j at the distance W + t - j, and the u <= t of the question, at t - u

So no distance leaves the trained window L while question and answer have no more than L - W tokens, however
many windows there are, and reading costs as much per token for long texts as for short ones.

An encoder, which has no question, encodes each window of W tokens by itself, the text's first and last token (such as
[CLS] and [SEP]) around it; a token's state is then the mean over the windows that hold it.

Paper: Parallel Context Windows for Large Language Models (2022); Revisiting Parallel Context Windows: A
Frustratingly Simple Alternative and Chain-of-Thought Deterioration (2023), which finds it no better than an
ensemble of windows; for encoders LongEmbed: Extending Embedding Models for Long Context Retrieval (2024).

Differs from the paper: windows are cut by tokens, not between examples; the last one begins early enough to
be full, so that up to W - 1 tokens are read twice. Only the first window begins with the tokenizer's first
token. The second paper's ensemble, which asks each window by itself and adds up the predictions, is `window_ensemble`.
What is read on later, as a conversation's next turn, is part of the question. Layers with a sliding window of
their own keep it. LongEmbed averages the pooled vectors of windows; here the user pools states, which weighs tokens
of a text alike instead of windows.

Fails when: the answer takes tokens of several windows together; many windows share out a question's
attention; question and answer are longer than L - W.

    model = longspan.load("reference", methods="parallel_windows()")
    model.read(text_of_8192_tokens).ask("Who keeps the lantern?")
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from longspan.methods.positions._scaling import check_positions
from longspan.roles import LayerInfo, ModelInfo, Positions, Reader, Reading, Selection, Step
from longspan.visit import Band, Dense, Gather

if TYPE_CHECKING:
    from torch import Tensor

CARD = {
    "title": "Revisiting Parallel Context Windows: A Frustratingly Simple Alternative and Chain-of-Thought Deterioration",
    "year": 2023,
    "paper_id": 211,
    "family": "positions",
    "roles": ["Positions", "Selection", "Reading"],
    "phase": "both",
    "training": "none",
    "exact": "for texts up to window_tokens",
    "frees": "no",
    "needs": ["rotary positions, or an encoder's learned table"],
    "claim": {
        "text": "without training, at twice the trained window, a question over windows that were read apart still "
        "finds a hidden fact",
        "spec": "parallel_windows()",
        "task": "niah_single_1",
        "length_tokens": 8192,
        "against": "dense",
        "at_least": 0.8,
    },
    "tolerances": {},
    "example": "parallel_windows(window_tokens=64)",
    "identity": "parallel_windows(window_tokens=1024)",
}

PIECE_TOKENS = 1024  # of a window that pass through the model at once; bounds the memory of reading


@dataclass(frozen=True, kw_only=True)
class ParallelWindows(Positions, Selection, Reading):
    """Settings of Parallel Context Windows."""

    window_tokens: int | None = None  # W; 3/4 of the trained window (paper: all but a question); encoder: all

    def __post_init__(self) -> None:
        if self.window_tokens is not None and self.window_tokens < 1:
            raise ValueError(
                f"got window_tokens={self.window_tokens}; allowed is 1 or more, or none for 3/4 of the trained window"
            )

    def check(self, model: ModelInfo) -> None:
        """Refuse models without positions to change, and with layers that would disagree about the windows."""
        check_positions("parallel_windows", model)
        sizes = {None if layer.rope is None else self._window(layer) for layer in model.open_layers}
        if len(sizes) > 1:
            raise ValueError(
                f"parallel_windows needs the same windows in every layer, but {model.name} would have windows of "
                f"{', '.join(sorted(str(size) for size in sizes))} tokens (None: no rotary positions); give window_tokens, "
                "and a model with rotary positions in all layers"
            )

    def bands(self, layer: LayerInfo) -> tuple[Band, ...]:
        """The query's own window, and all windows before it, each as if it stood right before the query's."""
        window = self._window(layer)

        def inside(positions: Tensor) -> Tensor:
            return positions % window

        own = Band(low=lambda p: p // window * window, high=lambda p: p + 1, query=inside, key=inside)
        others = Band(
            low=lambda p: p * 0,
            high=lambda p: p // window * window,
            query=lambda p: p % window + window,
            key=inside,
        )
        return own, others

    def visit(self, step: Step) -> Dense | Gather:
        """The step's own window while the text is read, everything from the question on."""
        if step.phase == "decode":
            return Dense()
        window, past = self._window(step.layer), step.store.positions[..., : step.num_past]
        first = step.query_positions.amax(dim=-1) // window * window
        places = torch.arange(step.num_past, device=past.device).expand_as(past)
        places = places.where(past >= first[:, None, None], -1).sort(dim=-1).values
        held = int((places >= 0).sum(-1).max())
        return Gather(index=places[..., step.num_past - held :][:, :, None])

    def read(self, reader: Reader, ids: Iterable[Tensor], num_tokens: int | None) -> Any:
        """Read window by window; `run.origin` says where in the text each token stood."""
        window = self._window(reader.info.open_layers[0])
        if num_tokens is not None and num_tokens > window:
            num_tokens = -(-num_tokens // window) * window
        run = reader.new_run(num_tokens=num_tokens)
        places: list[Tensor] = []
        for start, tokens in _windows(ids, window):
            for piece in tokens.split(PIECE_TOKENS):
                reader.advance(run, piece)
            places.append(torch.arange(start, start + len(tokens)))
        run.origin = torch.cat(places)
        return reader.prefill(run, [])

    def extend(self, reader: Reader, run: Any, ids: Iterable[Tensor]) -> Any:
        """Read on as a question would be read: behind all windows, and looking at all of them."""
        branch = reader.fork(run)
        for chunk in ids:
            reader.advance(branch, chunk)
        first, added = int(run.origin[-1]) + 1, len(branch.ids) - len(run.origin)
        branch.origin = torch.cat([run.origin, torch.arange(first, first + added)])
        return branch

    def encoder_window(self, window_tokens: int) -> int:
        """The whole trained window, where none is given."""
        return self.window_tokens or window_tokens

    def _window(self, layer: LayerInfo) -> int:
        assert layer.rope is not None, "layers without rotary positions are refused earlier"
        return self.window_tokens or max(1, 3 * layer.rope.window_tokens // 4)


def _windows(ids: Iterable[Tensor], window: int) -> Iterator[tuple[int, Tensor]]:
    """A text in windows, each with the place where it begins; the last begins early enough to be full, if it can."""
    held, start, last = torch.zeros(0, dtype=torch.long), 0, torch.zeros(0, dtype=torch.long)
    for chunk in ids:
        held = torch.cat([held, chunk.cpu()])
        while len(held) >= window:
            last, held = held[:window], held[window:]
            yield start, last
            start += window
    if len(held):
        early = min(start, window - len(held))
        yield start - early, torch.cat([last[len(last) - early :], held])
