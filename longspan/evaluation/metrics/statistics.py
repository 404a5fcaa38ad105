"""What the scores of many samples say: intervals of a mean, paired differences, the sign test, effective length.

Papers: Student, *The probable error of a mean*, 1908 (t interval); Efron, *Bootstrap methods: another look at the jackknife*,
1979 (percentile bootstrap); Dixon and Mood, *The statistical sign test*, 1946; Hsieh et al., *RULER: What's the Real
Context Size of Your Long-Context Language Models?*, 2024 (effective length, weighted averages).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, fmean, stdev
from typing import Literal

from longspan.evaluation.metrics.interval import wilson_interval

__all__ = [
    "RULER_THRESHOLD",
    "Interval",
    "IntervalKind",
    "effective_length",
    "mean_interval",
    "paired_difference",
    "sign_test",
    "student_quantile",
    "weighted_averages",
]

IntervalKind = Literal["wilson", "t", "bootstrap", "rule"]

RULER_THRESHOLD = 0.856
"""Score of Llama2-7B at 4K on the 13 tasks of RULER: the paper's bar for "satisfactory"."""

RESAMPLES = 5000
_CELLS_AT_ONCE = 2_000_000
_EXACT_FREEDOM = 100
_CHEAPER = 10
"""Samples that are drawn in the time of one count of a distinct value."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Two bounds and how they were found.

    Attributes:
        low, high: bounds.
        kind: "wilson", "t", "bootstrap", or "rule" (see `paired_difference`).
    """

    low: float
    high: float
    kind: IntervalKind


def mean_interval(scores: Sequence[float], confidence: float = 0.95) -> Interval:
    """Interval of the mean of scores in [0, 1].

    Wilson's where all scores are 0 or 1. Else Student's t, cut at 0 and 1: with the five to fifty samples of a long-context
    cell the percentile bootstrap is too narrow, for it knows neither the small-sample factor of the variance nor the wider
    tails of t, and t needs no random draws. Equal scores, or a single one, have no spread to measure; Wilson's interval
    of their mean is then used, which is conservative because no variable in [0, 1] varies more than a yes/no one.

    Args:
        scores: at least one, each in [0, 1].
        confidence: coverage, in (0, 1).

    Raises:
        ValueError: no scores, or a mean outside [0, 1].
    """
    if not scores:
        raise ValueError("there are no scores to take an interval of; give at least one.")
    mean = fmean(scores)
    if all(score in (0, 1) for score in scores) or min(scores) == max(scores):
        low, high = wilson_interval(mean, len(scores), confidence)
        return Interval(low=low, high=high, kind="wilson")
    half = student_quantile(0.5 + confidence / 2, len(scores) - 1) * stdev(scores) / math.sqrt(len(scores))
    return Interval(low=max(0.0, mean - half), high=min(1.0, mean + half), kind="t")


@lru_cache(maxsize=1024)
def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution.

    Args:
        probability: in (0.5, 1).
        freedom: degrees of freedom, 1 or more.

    Returns:
        t with P(T <= t) = probability, to about 1e-9.
    """
    z = NormalDist().inv_cdf(probability)
    if freedom > _EXACT_FREEDOM:
        # The expansion of Fisher and Cornish in 1/freedom, four terms (Abramowitz and Stegun 26.7.5).
        terms = (
            (z**3 + z) / 4,
            (5 * z**5 + 16 * z**3 + 3 * z) / 96,
            (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
            (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
        )
        return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
    # The angle's tangent is t / sqrt(freedom): bisection over angles needs no upper bound for t.
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if _student_inside(middle, freedom) < 2 * probability - 1 else (low, middle)
        )
    return math.sqrt(freedom) * math.tan(low)


def _student_inside(angle: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom) * tan(angle)), by the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for step in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * step / (step + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided p value of the sign test: how often a fair coin is at least as lopsided. Ties are dropped before.

    Args:
        wins, losses: samples on which the one, or the other, is better.

    Returns:
        In (0, 1]; 1 without any win or loss.
    """
    trials, fewer = wins + losses, min(wins, losses)
    if 2 * fewer >= trials - 1:
        return 1.0
    tail = sum(math.comb(trials, count) for count in range(fewer + 1))
    return min(1.0, 2 * tail / 2**trials)


def paired_difference(
    mine: Sequence[float], theirs: Sequence[float], confidence: float = 0.95, seed: int = 0
) -> tuple[float, Interval]:
    """Mean of `mine - theirs` over the same samples, with the percentile bootstrap's interval over the pairs.

    Pairs are resampled whole, so what makes a sample hard for both drops out. When all differences are equal there is nothing to
    resample; the interval is then by rule: with n of n samples at one difference, at most a share u of all samples can
    differ from it, where u is the upper end of Wilson's interval for 0 of n, and those may lie anywhere in [-1, 1].

    Args:
        mine, theirs: scores in [0, 1] of the same samples, in the same order.
        confidence: coverage, in (0, 1).
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: no pairs, or lists of different lengths.
    """
    if not mine or len(mine) != len(theirs):
        raise ValueError(
            f"there are {len(mine)} and {len(theirs)} scores to pair, allowed are two lists of one length, at least 1."
        )
    differences = [one - other for one, other in zip(mine, theirs, strict=True)]
    mean = fmean(differences)
    if max(differences) - min(differences) < 1e-12:
        share = wilson_interval(0.0, len(differences), confidence)[1]
        low, high = mean - share * (1 + mean), mean + share * (1 - mean)
        return mean, Interval(low=low, high=high, kind="rule")
    low, high = _bootstrap(differences, confidence, seed)
    return mean, Interval(low=low, high=high, kind="bootstrap")


def _bootstrap(values: Sequence[float], confidence: float, seed: int) -> tuple[float, float]:
    import numpy as np

    distinct, counts = np.unique(np.round(values, 12), return_counts=True)
    few = len(distinct) * _CHEAPER <= len(values)
    at_once = max(1, _CELLS_AT_ONCE // (len(distinct) if few else len(values)))
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - start)
        if few:
            # How often each distinct value comes up: the same as drawing samples, without drawing each.
            drawn = generator.multinomial(len(values), counts / counts.sum(), size=size)
            means.append(drawn @ distinct / len(values))
        else:
            places = generator.integers(len(values), size=(size, len(values)))
            means.append(np.asarray(values)[places].mean(axis=1))
    edge = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), (edge, 1 - edge))
    return float(low), float(high)


def effective_length(
    scores: Mapping[int, float], threshold: float = RULER_THRESHOLD, share_of_shortest: float | None = None
) -> int | None:
    """Longest tested length that is still served well, after RULER.

    RULER takes the longest length above the threshold. Here all shorter tested lengths must pass too: a length that passes
    after one that fails is luck, or a task that does not measure length.

    Args:
        scores: mean score in [0, 1] by length in tokens.
        threshold: least score that passes.
        share_of_shortest: replaces `threshold` by this share of the score at the shortest length (NoLiMa: 0.85).

    Returns:
        A length in tokens; None when the shortest fails already, or nothing was measured.
    """
    lengths = sorted(scores)
    if lengths and share_of_shortest is not None:
        threshold = share_of_shortest * scores[lengths[0]]
    longest = None
    for length in lengths:
        if scores[length] < threshold - 1e-9:
            break
        longest = length
    return longest


def weighted_averages(scores: Mapping[int, float]) -> tuple[float, float]:
    """RULER's wAvg(inc) and wAvg(dec): the n-th shortest length weighs n, or counts down from the number of lengths.

    Args:
        scores: mean score by length, at least one.

    Returns:
        The average that favours long texts, and the one that favours short ones.
    """
    if not scores:
        raise ValueError("there are no scores to average; give at least one length.")
    ordered = [scores[length] for length in sorted(scores)]
    weights = range(1, len(ordered) + 1)
    total = sum(weights)
    rising = sum(weight * score for weight, score in zip(weights, ordered, strict=True)) / total
    falling = sum(weight * score for weight, score in zip(weights, reversed(ordered), strict=True)) / total
    return rising, falling
