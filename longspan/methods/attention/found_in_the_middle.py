"""Calibrate away the attention that a document gets for its place, so that what counts is what it says.

Attention on a document is its relevance plus a bias of its place. A dummy document put in the same place has the bias
alone, so subtracting its attention leaves relevance, and attention is redistributed over documents by it:

    rel(k) = Attn(document k) - Attn(dummy at place k)        alpha_k = softmax(rel / t)_k
    attn'(token i of document k) = alpha_k / Attn(document k) * C * attn(token i of document k)

Attn is the attention that the question's last token pays to a document, averaged over its tokens and over all heads
and layers; C keeps the documents' total. The factors are added to the logits as log(alpha_k C / Attn_k), in the last
half of the layers, for the question and the answer. Here documents are pieces of the text of one length, or what stands
between separators.

Cost: before each question the text is read once more in pieces of a document, with a dummy of each document's length
beside it: about two readings, and the memory of one, freed before the question is read.

Paper: Found in the Middle: Calibrating Positional Attention Bias Improves Long Context Utilization (2024).

Differs from the paper: the question stands behind the documents only, not before them too; a dummy stands between the
documents before it, but those behind it and the question are not read anew for it (their keys and queries are taken
from the text as it is); the dummy is made of the text's own tokens, taken at even steps; the first tokens (attention
sinks) belong to no document.

Fails when: an answer needs several documents at once (the temperature makes alpha nearly one-hot), or place itself
matters, as with the last of several updates. A model that finds facts anywhere gains nothing: in the reference model
calibrated attention ranks the right document first far more often than plain attention, but answers do not get better.

    model = longspan.load("reference", methods="found_in_the_middle(document_tokens=100)")
    model.read(text).ask("Who keeps the lantern?")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from longspan.roles import ModelInfo, Reader, Steering, Step

if TYPE_CHECKING:
    from torch import Tensor

PIECE_TOKENS = 1024  # longest piece of the second reading; documents may be longer
_Slab = tuple[int, tuple[int, ...]]  # a layer and kv heads that are stored together

CARD = {
    "title": "Found in the Middle: Calibrating Positional Attention Bias Improves Long Context Utilization",
    "year": 2024,
    "paper_id": 270,
    "family": "attention",
    "roles": ["Steering"],
    "phase": "decode",
    "training": "none",
    "exact": False,
    "frees": "no",
    "needs": ["about two more readings of the text before each question"],
    "claim": {
        "text": "attention redistributed by calibrated relevance alone answers about one fact among eight as well, "
        "within 10 points, in a model that is not lost in the middle",
        "spec": "found_in_the_middle",
        "task": "keys8_facts",
        "length_tokens": 2048,
        "against": "dense",
        "margin": -0.1,
    },
    "tolerances": {
        "left_padding": "measures a context before each question, which generate() does not have apart from its "
        "prompt; longspan.applied refuses it, so there are 0 batches to compare",
    },
    "example": "found_in_the_middle(document_tokens=32)",
    "identity": "found_in_the_middle(document_tokens=400)",
}


@dataclass(frozen=True, kw_only=True)
class FoundInTheMiddle(Steering):
    """Redistribute attention over documents by relevance, free of the bias of their places.

    Args:
        document_tokens: length of a document where no separator is given; a text of one document stays as it is.
        separator_id: token id that ends a document (a paragraph's end, say); documents then have their own lengths.
        temperature: t of the softmax over relevance, in attention per token; smaller is sharper.
        last_layers: layers from the last whose attention is calibrated; none for half of them.
        sink_tokens: first tokens of the text that belong to no document.
        dummy_ids: token ids of the dummy document, repeated or cut to length; none for tokens of the text itself.
    """

    document_tokens: int = 100  # the paper's passages: Wikipedia, at most 100 tokens
    separator_id: int | None = None  # documents of one length, since a method sees ids and no text
    temperature: float = 5e-5  # the paper's, for all its settings
    last_layers: int | None = None  # the paper's 16 of 32
    sink_tokens: int = 4  # attention sinks; the paper's documents follow an instruction
    dummy_ids: tuple[int, ...] = ()  # the text's own tokens at even steps

    def __post_init__(self) -> None:
        if self.document_tokens < 2:
            raise ValueError(f"got document_tokens={self.document_tokens}; allowed is 2 or more, such as 100")
        if not self.temperature > 0:
            raise ValueError(f"got temperature={self.temperature:g}; allowed is above 0, such as 5e-5")
        if self.last_layers is not None and self.last_layers < 1:
            raise ValueError(
                f"got last_layers={self.last_layers}; allowed is 1 or more, or none for half of the layers"
            )
        if self.sink_tokens < 0:
            raise ValueError(f"got sink_tokens={self.sink_tokens}; allowed is 0 or more")
        if self.separator_id is not None and self.separator_id < 0:
            raise ValueError(f"got separator_id={self.separator_id}; allowed is a token id, 0 or more")

    def check(self, model: ModelInfo) -> None:
        if self.last_layers is not None and self.last_layers > model.num_layers:
            raise ValueError(
                f"found_in_the_middle: got last_layers={self.last_layers}; {model.name} has {model.num_layers} layers"
            )

    def documents(self, ids: Tensor) -> list[tuple[int, int]]:
        """Documents of a text `[n]` as `(first token, behind the last)`; together they cover all but the sinks."""
        first, end = self.sink_tokens, len(ids)
        if self.separator_id is None:
            cuts = list(
                range(first + self.document_tokens, end - self.document_tokens // 2 + 1, self.document_tokens)
            )
        else:
            ends = (ids[first:-1] == self.separator_id) & (ids[first + 1 :] != self.separator_id)
            if not bool((ids == self.separator_id).any()):
                raise ValueError(
                    f"found_in_the_middle: got separator_id={self.separator_id}, which the text does not hold; take the last id of your "
                    "tokenizer's encoding of the separator, or leave it out for documents of one length"
                )
            cuts = (ends.nonzero()[:, 0] + first + 1).tolist()
        edges = [first, *(cut for cut in cuts if first < cut < end), end]
        return list(zip(edges, edges[1:], strict=False))

    def prepare(self, reader: Reader, run: Any, question_ids: Tensor) -> dict[int, Any]:
        """Per calibrated layer, what to add to the logits of the text's tokens, by position: float32 `[1, n]`."""
        documents = self.documents(run.ids)
        if len(documents) < 2:
            return {}
        plain, dummy, owner = self.measure(reader, run, question_ids, documents)
        lengths = torch.bincount(owner, minlength=len(documents) + 1)[:-1]
        factors = self.factors(plain, dummy, lengths)
        bias = torch.cat([factors, factors.new_zeros(1)])[owner][None]
        first = reader.info.num_layers - (self.last_layers or (reader.info.num_layers + 1) // 2)
        return {layer.index: bias for layer in reader.info.open_layers if layer.index >= first}

    def measure(
        self, reader: Reader, run: Any, question_ids: Tensor, documents: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attention per token that the question's last token pays, over heads and layers.

        Returns:
            On each document `[K]`, on a dummy in each document's place `[K]`, and the document of each token of the
            text `[n]`, K for none. The difference of the first two is the paper's calibrated attention.
        """
        ids = run.ids
        lengths = torch.tensor([stop - start for start, stop in documents], device=reader.info.device)
        owner = torch.full((len(ids),), len(documents), device=lengths.device)
        owner[documents[0][0] :] = torch.arange(len(documents), device=lengths.device).repeat_interleave(
            lengths
        )
        asked = _Asked(owner=owner, num_documents=len(documents))
        branch = reader.fork(run)
        reader.watch(branch, asked.observe)
        reader.advance(branch, question_ids)
        reader.give_back(branch, run)
        plain = _average(asked.mass) / lengths
        dummy = _average(self._dummy_mass(reader, ids, documents, asked)) / lengths
        return plain, dummy, owner

    def factors(self, plain: Tensor, dummy: Tensor, lengths: Tensor) -> Tensor:
        """Log of the factor on each document's attention, from attention per token on it and on its dummy: `[K]`."""
        log_alpha = torch.log_softmax((plain - dummy) / self.temperature, dim=0)
        total = (plain * lengths).sum().log() - (log_alpha + lengths.log()).logsumexp(0)
        return torch.where(
            plain > 0, log_alpha + total - plain.clamp(min=torch.finfo(plain.dtype).tiny).log(), 0.0
        )

    def bias(self, step: Step) -> Tensor | None:
        by_position = step.state.get("ask")
        if by_position is None or step.phase != "decode":
            return None
        at, end = step.store.positions, by_position.shape[1]
        inside = (at >= 0) & (at < end)
        bias = torch.where(inside, by_position[0][at.clamp(0, end - 1)], 0.0)
        return bias if bias.shape[1] == 1 else bias.repeat_interleave(step.layer.num_groups, dim=1)

    def _dummy_mass(
        self, reader: Reader, ids: Tensor, documents: list[tuple[int, int]], asked: _Asked
    ) -> dict[_Slab, Tensor]:
        """Attention on a dummy that stands where each document stands, `[h, K]` by layer and slab."""
        longest = max(stop - start for start, stop in documents)
        dummy = self._dummy(ids, longest)
        main = reader.new_run(num_tokens=len(ids))
        found: list[dict[_Slab, Tensor]] = []
        read = 0
        for start, stop in documents:
            for piece in ids[read:start].split(PIECE_TOKENS) if start > read else ():
                reader.advance(main, piece)
            branch = reader.fork(main)
            found.append({})
            reader.watch(branch, asked.scorer(found[-1]))
            for piece in dummy[: stop - start].split(PIECE_TOKENS):
                reader.advance(branch, piece)
            reader.give_back(branch, main)
            read = start
        shares = {}
        for key, mass in asked.mass.items():
            others = asked.total[key][:, None] + torch.log1p(-mass)
            shares[key] = torch.sigmoid(torch.stack([place[key] for place in found], dim=1) - others)
        return shares

    def _dummy(self, ids: Tensor, num_tokens: int) -> Tensor:
        if self.dummy_ids:
            given = torch.tensor(self.dummy_ids)
            return given.repeat(-(-num_tokens // len(given)))[:num_tokens]
        return ids[(torch.arange(num_tokens) * len(ids) // num_tokens).clamp(max=len(ids) - 1)]


@dataclass(kw_only=True)
class _Asked:
    """What the question's last token looked at, by layer and slab of kv heads.

    Args:
        owner: document of each token of the text `[n]`; `num_documents` for none.
        total: log of the softmax's denominator, `[h]`.
        mass: attention on each document, `[h, K]`.
    """

    owner: Tensor
    num_documents: int
    queries: dict[_Slab, tuple[Tensor, Tensor]] = field(default_factory=dict)
    total: dict[_Slab, Tensor] = field(default_factory=dict)
    mass: dict[_Slab, Tensor] = field(default_factory=dict)

    def observe(self, layer: int, step: Step) -> None:
        """Watcher of the question."""
        if step.layer.sliding_window_tokens is not None:
            return
        key, store = (layer, step.store.heads), step.store
        self.queries[key] = (step.queries[:, :, -1:], step.query_positions[:, -1:])
        logits = step.logits(*self.queries[key], 0, store.num_tokens)[0, :, 0]
        at = store.positions[0].repeat_interleave(logits.shape[0] // store.positions.shape[1], dim=0)
        logits = logits.masked_fill(at < 0, -torch.inf)
        self.total[key] = logits.logsumexp(-1)
        end = len(self.owner)
        owner = torch.where((at >= 0) & (at < end), self.owner[at.clamp(0, end - 1)], self.num_documents)
        mass = logits.new_zeros(logits.shape[0], self.num_documents + 1)
        self.mass[key] = mass.scatter_add_(1, owner, logits.softmax(-1))[:, :-1]

    def scorer(self, found: dict[_Slab, Tensor]) -> Callable[[int, Step], None]:
        """Watcher of a dummy: log of the sum of exp(logits) of the question's last token on it, `[h]`, into `found`."""

        def observe(layer: int, step: Step) -> None:
            key = (layer, step.store.heads)
            if key not in self.queries:
                return
            logits = step.logits(*self.queries[key], step.num_past, step.store.num_tokens)[0, :, 0].logsumexp(
                -1
            )
            found[key] = torch.logaddexp(found[key], logits) if key in found else logits

        return observe


def _average(by_layer: dict[_Slab, Tensor]) -> Tensor:
    """Mean over heads and layers of `[h, K]`: `[K]`."""
    return torch.cat(list(by_layer.values())).mean(dim=0)
