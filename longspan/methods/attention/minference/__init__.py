"""Dynamic sparse prefill: each head follows one of three patterns, and its index is estimated anew for every chunk.

Equation: softmax over the keys of M(q) only, where M(q) is, per query head, A-shape: the first tokens and a window;
vertical-slash: the columns and diagonals with the most attention in softmax(Q_last K^T / sqrt(D)), Q_last being the
chunk's last 64 queries; block-sparse: for each block of 64 queries the key blocks with the largest mean(Q_block) .
mean(K_block).

Paper: MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention (2024).

Differs from the paper: the text is read in chunks, each with an estimate of its own, and a query visits its own
piece of `local_tokens` densely (but in A-shape heads), so budgets are spent on the tokens before that.
Diagonals are chosen as blocks of 64 x 64, ranked by the attention that such a block is expected to catch (each
diagonal weighted by its share of the block), instead of one by one and widened to blocks later. Blocks of keys
begin at multiples of `block_tokens`, so the block with the piece's first token may hold some tokens on top of
the budget; the visit is a `BlockTable`, which the GPU kernels serve. Where keys are kept before rotation,
padding is not only at the left, or blocks are not of 16, 32, 64 or 128 tokens, single tokens are gathered
instead, blocks are counted from the end of the past, and the piece is the chunk; block-sparse heads are always
served so. Attention is dense where a pattern covers the past, and where that takes less time than an index.
Heads without a searched pattern are vertical-slash, as in the configurations the authors ship;
`search.search_patterns` is the offline search.

Fails when: attention is spread thinly over the past, or what the last 64 queries of a chunk look at is not what its
other queries need. The estimate costs 64 queries over the whole past, so prefill stays quadratic with a factor of
64 / chunk_tokens. Nothing is dropped: the questions see every token.

    model = longspan.load("reference", methods="minference()")
    model.read(text).ask("Who keeps the lantern?")
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from longspan.methods.attention.minference.index import HeadPattern, teraflops_of_dense, visit_patterns
from longspan.roles import LayerInfo, ModelInfo, Phase, Selection, Step
from longspan.visit import Dense, Visit

CARD = {
    "title": "MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention",
    "year": 2024,
    "paper_id": 89,
    "family": "attention",
    "roles": ["Selection"],
    "phase": "prefill",
    "training": "none",
    "exact": "when the budgets cover the past",
    "frees": "no",
    "needs": [],
    "claim": {
        "text": "visiting at most 512 tokens before its chunk, a query of the text loses no accuracy to dense reading",
        "spec": "minference(vertical_tokens=256, slash_tokens=256)",
        "task": "niah_multikey_1",
        "length_tokens": 4096,
        "against": "dense",
        "margin": -0.05,
    },
    "tolerances": {
        "chunked_reading": "each chunk is estimated from its own last 64 queries, so other chunks visit other keys",
        "left_padding": "padding moves the chunks and with them the 64 queries of each estimate",
        "keys_before_rotation": "beside a method that maps positions, single tokens are gathered in place of a table of "
        "blocks, whose blocks begin elsewhere, which changes the logits of random weights by up to 0.02 (of 0.45)",
    },
    "example": "minference(vertical_tokens=32, slash_tokens=32, block_tokens=16, dense_teraflops=0)",
    "identity": "minference(vertical_tokens=4096, slash_tokens=4096)",
}

DENSE_TERAFLOPS = 0.6  # about a millisecond of an H100 or H200; the launches that build an index take as long
PATTERNS = ("vertical_slash", "a_shape", "block_sparse")


@dataclass(frozen=True, kw_only=True)
class MInference(Selection):
    """Visits, per head and per block of queries, the past tokens that its pattern finds.

    Args:
        vertical_tokens: single past tokens that every query of a chunk visits.
        slash_tokens: past tokens that a block of queries visits along diagonals, in whole blocks (rounded up).
        local_tokens: queries that visit each other densely, in whole blocks (rounded up); a chunk, where that is shorter.
        block_tokens: queries, and keys, of a block.
        dense_teraflops: a chunk whose dense attention takes up to so many operations (10^12) is read densely; None for
            0.6 on a GPU, which is about what it does while an index is built, and 0 elsewhere.
        patterns: a JSON file of `search_patterns`: pattern and budgets of each layer and head; "" for vertical-slash
            everywhere. Its budgets take the place of `vertical_tokens` and `slash_tokens`.
    """

    vertical_tokens: int = 500  # the authors' search space holds (vertical, slash) = (500, 700)
    slash_tokens: int = 700  # see vertical_tokens
    local_tokens: int = 1024  # ours: as many as a chunk on a CPU has
    block_tokens: int = 64  # the authors' kernels
    dense_teraflops: float | None = None  # ours
    patterns: str = ""  # the authors search once a model; without it, vertical-slash everywhere

    phases: ClassVar[frozenset[Phase]] = frozenset({"prefill"})

    def __post_init__(self) -> None:
        for name, least in (
            ("vertical_tokens", 1),
            ("slash_tokens", 0),
            ("local_tokens", 1),
            ("block_tokens", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(
                    f"got {name}={getattr(self, name)}; allowed is {least} or more, such as {name}=512"
                )
        if self.dense_teraflops is not None and not self.dense_teraflops >= 0:
            raise ValueError(f"got dense_teraflops={self.dense_teraflops}; allowed is 0 or more, such as 0.6")
        assert self._layers is not None or not self.patterns

    def check(self, model: ModelInfo) -> None:
        """Raise ValueError when a patterns file is for another model."""
        layers = self._layers
        if layers is None:
            return
        wanted = [layer.num_heads for layer in model.layers]
        if [len(heads) for heads in layers] != wanted:
            raise ValueError(
                f"the patterns in {self.patterns} are for {len(layers)} layers of {len(layers[0]) if layers else 0} "
                f"heads, but {model.name} has {len(wanted)} of {wanted[0]}; search them again on this model"
            )

    def visit(self, step: Step) -> Visit:
        """See `Selection`."""
        if teraflops_of_dense(step) <= self._dense_teraflops(step.queries.is_cuda):
            return Dense()
        patterns = self._head_patterns(step.layer, step.store.heads)
        return visit_patterns(step, patterns, self.block_tokens, self.local_tokens)

    def _dense_teraflops(self, cuda: bool) -> float:
        if self.dense_teraflops is not None:
            return self.dense_teraflops
        return DENSE_TERAFLOPS if cuda else 0.0

    @cached_property
    def _layers(self) -> tuple[tuple[HeadPattern, ...], ...] | None:
        return read_patterns(self.patterns) if self.patterns else None

    def _head_patterns(self, layer: LayerInfo, kv_heads: Sequence[int]) -> list[HeadPattern]:
        heads = [kv * layer.num_groups + g for kv in kv_heads for g in range(layer.num_groups)]
        if self._layers is None:
            return [("vertical_slash", self.vertical_tokens, self.slash_tokens)] * len(heads)
        return [self._layers[layer.index][head] for head in heads]


def read_patterns(path: str) -> tuple[tuple[HeadPattern, ...], ...]:
    """Patterns per layer and query head, from a JSON file: `{"layers": [[["vertical_slash", 500, 700], ...], ...]}`."""
    try:
        layers = json.loads(Path(path).read_text(encoding="utf-8"))["layers"]
        found = tuple(tuple(tuple(head) for head in layer) for layer in layers)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"cannot read patterns={path!r} ({error}); give a JSON file written by search_patterns, or leave it out"
        ) from error
    for head in (head for layer in found for head in layer):
        named = len(head) == 3 and head[0] in PATTERNS
        if not named or not all(isinstance(size, int) and size >= 0 for size in head[1:]):
            raise ValueError(
                f"{path} holds the pattern {list(head)}; allowed are ['vertical_slash', verticals, slashes], "
                "['a_shape', sink, window] and ['block_sparse', tokens, 0]"
            )
    return found
