"""Perplexity by position: mean negative log-likelihood per bucket of token positions.

Perplexity over a whole text hides where a model fails: a model past its trained window can be fluent for the first
4K tokens and noise after. Buckets double in width, as distances do in rotary positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

__all__ = [
    "FIRST_BUCKET_TOKENS",
    "Bucket",
    "bucket_edges",
    "merge_buckets",
    "overall_nll",
    "perplexity_interval",
]

FIRST_BUCKET_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Predictions of the tokens at positions `start` (included) to `end` (excluded).

    Attributes:
        start: first predicted position, in tokens.
        end: one past the last predicted position.
        nll: mean negative log-likelihood, in nats a token.
        num_tokens: predictions behind the mean.
    """

    start: int
    end: int
    nll: float
    num_tokens: int

    @property
    def perplexity(self) -> float:
        """exp(nll); infinite where exp would overflow."""
        return math.exp(self.nll) if self.nll < 700 else math.inf


def bucket_edges(length_tokens: int, first: int = FIRST_BUCKET_TOKENS) -> tuple[int, ...]:
    """Edges of the position buckets of a text: 0, first, 2 first, 4 first, ..., length_tokens.

    Args:
        length_tokens: tokens of the text, at least 2.
        first: width of the first bucket, in tokens.

    Returns:
        Rising edges; bucket i covers positions edges[i] to edges[i + 1] - 1.
    """
    if length_tokens < 2:
        raise ValueError(f"length_tokens is {length_tokens}, perplexity needs at least 2 tokens.")
    edges = [0]
    edge = first
    while edge < length_tokens:
        edges.append(edge)
        edge *= 2
    return (*edges, length_tokens)


def merge_buckets(groups: Iterable[Sequence[Bucket]]) -> tuple[Bucket, ...]:
    """Token-weighted mean of several texts' buckets, matched by (start, end), in order of position."""
    sums: dict[tuple[int, int], tuple[float, int]] = {}
    for group in groups:
        for bucket in group:
            total, count = sums.get((bucket.start, bucket.end), (0.0, 0))
            sums[bucket.start, bucket.end] = (
                total + bucket.nll * bucket.num_tokens,
                count + bucket.num_tokens,
            )
    return tuple(
        Bucket(start=start, end=end, nll=total / count, num_tokens=count)
        for (start, end), (total, count) in sorted(sums.items())
    )


def overall_nll(buckets: Sequence[Bucket]) -> float:
    """Mean negative log-likelihood over all tokens of all buckets, in nats a token."""
    if not buckets:
        raise ValueError("got no buckets, a mean needs at least one.")
    return sum(bucket.nll * bucket.num_tokens for bucket in buckets) / sum(
        bucket.num_tokens for bucket in buckets
    )


def perplexity_interval(nlls: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Interval of the perplexity over texts: normal in the mean NLL, then exp.

    Args:
        nlls: mean NLL of each text, in nats a token.
        confidence: coverage, in (0, 1).

    Returns:
        Lower and upper perplexity, or None for fewer than two texts, where the spread is unknown.
    """
    if len(nlls) < 2:
        return None
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * stdev(nlls) / math.sqrt(len(nlls))
    centre = fmean(nlls)
    return math.exp(centre - half), math.exp(centre + half)
