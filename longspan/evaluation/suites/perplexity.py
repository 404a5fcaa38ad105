"""Perplexity by position on held-out text: where in a long input does the model stop predicting well?

For a passage of L tokens, PPL(bucket) = exp(-1/n sum log p(x_t | x_<t)) over the n positions t of each bucket
(0-512, 512-1K, 1K-2K, ...). Every token is predicted from all before it, so the last bucket shows the model at full
length. A passage is one contiguous stretch of the haystack, never wrapped around: repeated text would be copied, not
predicted.

Paper: Efficient Streaming Language Models with Attention Sinks (Xiao et al., 2023), whose figures show
perplexity along one long text.
*Differs from the paper*: buckets of doubling width instead of one figure or a running mean.
*Fails when* a method changes only what happens after reading (eviction at the end of the text): predictions made while
reading do not see it, and equal dense attention's.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from longspan.evaluation.haystacks import Haystack, TokenizerLike
from longspan.evaluation.metrics.likelihood import FIRST_BUCKET_TOKENS, Bucket, bucket_edges, overall_nll

if TYPE_CHECKING:
    from longspan.engine.model import SpanModel

CARD: dict[str, Any] = {
    "name": "perplexity",
    "title": "Efficient Streaming Language Models with Attention Sinks",
    "year": 2023,
    "version": 1,
    "metric": "perplexity by position bucket; over passages, exp of the token-weighted mean negative log-likelihood",
    "differs": [
        "buckets of doubling width instead of one running mean",
        "the text is the caller's haystack, not PG-19",
    ],
    "paper_id": None,
    "lengths": "any that the haystack fills",
    "needs": "nothing",
    "licence": "the haystack's",
}

CHARACTERS_PER_TOKEN = 8
"""Characters taken at first for each token wanted; doubled until there are enough tokens."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A stretch of text to predict. ids: token ids, the first is the tokenizer's beginning-of-text where it has one."""

    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """The exam: predict a passage token by token.

    Attributes:
        first_bucket_tokens: width of the first position bucket.
        chunk_tokens: tokens a step; bounds the memory that logits take (chunk x vocabulary x 4 bytes).
    """

    first_bucket_tokens: int = FIRST_BUCKET_TOKENS
    chunk_tokens: int = 512
    kind: Literal["answer", "likelihood"] = "likelihood"

    labels: None = None

    def num_items(self) -> None:
        """As many as there are seeds."""
        return None

    def takes_depth(self, length_tokens: int, tokenizer: TokenizerLike) -> bool:
        """False: nothing is hidden."""
        return False

    def build(
        self,
        *,
        length_tokens: int,
        depth: float | None,
        seed: int,
        haystack: Haystack,
        tokenizer: TokenizerLike,
    ) -> Passage:
        """A contiguous passage of exactly `length_tokens` tokens from a place that the seed decides.

        Raises:
            ValueError: the haystack is shorter than that.
        """
        rng = Random(f"perplexity/{length_tokens}/{seed}")
        start_ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        wanted = length_tokens - len(start_ids)
        sentences = haystack.sentences
        start = rng.randrange(len(sentences))
        while True:
            ids = _first_tokens(sentences, start, wanted, tokenizer)
            if len(ids) >= wanted:
                return Passage(ids=(*start_ids, *ids[:wanted]))
            if start == 0:
                raise ValueError(
                    f"the haystack has {len(ids):,} tokens, a passage of {length_tokens:,} tokens needs more text; "
                    "give a longer one with --haystack DIR"
                )
            start //= 2

    def measure(self, model: SpanModel, item: Passage) -> dict[str, Any]:
        """Mean negative log-likelihood by position bucket.

        Raises:
            ValueError: the model gives no finite likelihood.
        """
        began = time.perf_counter()
        buckets = position_nll(model, item.ids, self.first_bucket_tokens, self.chunk_tokens)
        seconds = time.perf_counter() - began
        if not all(math.isfinite(bucket.nll) for bucket in buckets):
            raise ValueError("the model's likelihood of this text is not a finite number")
        return {
            "nll": overall_nll(buckets),
            "buckets": [[bucket.start, bucket.end, bucket.nll, bucket.num_tokens] for bucket in buckets],
            "actual_tokens": len(item.ids),
            "read_seconds": seconds,
        }


def position_nll(
    model: SpanModel, ids: tuple[int, ...], first_bucket_tokens: int, chunk_tokens: int
) -> list[Bucket]:
    """Negative log-likelihood of each token given those before it, averaged by position bucket.

    Args:
        model: gives logits `[T, V]` chunk by chunk; logits at position t predict token t + 1.
        ids: token ids of the text, at least 2.
        first_bucket_tokens: width of the first bucket.
        chunk_tokens: tokens a step.

    Returns:
        Buckets in order of position. Position 0 is not predicted, so the first holds one token fewer.
    """
    import torch
    from torch.nn.functional import cross_entropy

    targets = torch.tensor(ids)
    losses = torch.full((len(ids),), math.nan, dtype=torch.float64)
    for start, logits in model.logits(targets, chunk_tokens=chunk_tokens):
        stop = min(start + logits.shape[0], len(ids) - 1)
        wanted = targets[start + 1 : stop + 1].to(logits.device)
        loss = cross_entropy(logits[: stop - start].float(), wanted, reduction="none")
        losses[start + 1 : stop + 1] = loss.double().cpu()
    edges = bucket_edges(len(ids), first_bucket_tokens)
    buckets = []
    for start, end in zip(edges, edges[1:], strict=False):
        part = losses[max(start, 1) : end]
        buckets.append(Bucket(start=start, end=end, nll=part.mean().item(), num_tokens=len(part)))
    return buckets


def _first_tokens(sentences: Any, start: int, wanted: int, tokenizer: TokenizerLike) -> list[int]:
    """The first `wanted` token ids of the text from sentence `start` on; fewer where the text ends before."""
    characters = wanted * CHARACTERS_PER_TOKEN
    while True:
        chosen, size, place = [], 0, start
        while place < len(sentences) and size < characters:
            chosen.append(sentences[place])
            size += len(sentences[place])
            place += 1
        ids = tokenizer.encode("".join(chosen).lstrip(), add_special_tokens=False)
        if len(ids) >= wanted or place == len(sentences):
            return ids[:wanted]
        characters *= 2


TASKS: dict[str, Perplexity] = {"perplexity": Perplexity()}
