"""Intervals against published values and exact sums; perplexity buckets against hand sums."""

from __future__ import annotations

import math
from math import comb

import pytest

from longspan.evaluation.metrics.interval import newcombe_interval, wilson_interval
from longspan.evaluation.metrics.likelihood import (
    Bucket,
    bucket_edges,
    merge_buckets,
    overall_nll,
    perplexity_interval,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_published_intervals(successes: int, trials: int, low: float, high: float) -> None:
    found = wilson_interval(successes / trials, trials)
    assert found == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_wilson_is_symmetric_and_knows_nothing_without_samples() -> None:
    low, high = wilson_interval(0.2, 50)
    assert wilson_interval(0.8, 50) == (pytest.approx(1 - high), pytest.approx(1 - low))
    assert wilson_interval(0.0, 0) == (0.0, 1.0)
    assert wilson_interval(1.0, 10)[1] == 1.0


def test_wilson_covers_the_truth_about_as_often_as_it_says() -> None:
    trials, truth = 40, 0.9
    covered = sum(
        comb(trials, hits) * truth**hits * (1 - truth) ** (trials - hits)
        for hits in range(trials + 1)
        if wilson_interval(hits / trials, trials)[0] <= truth <= wilson_interval(hits / trials, trials)[1]
    )
    assert 0.93 < covered < 0.98


@pytest.mark.parametrize(("mean", "count", "confidence"), [(1.2, 5, 0.95), (0.5, -1, 0.95), (0.5, 5, 95.0)])
def test_wilson_refuses_what_is_no_mean(mean: float, count: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="allowed|lies in"):
        wilson_interval(mean, count, confidence)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        # Newcombe 1998, "Interval estimation for the difference between independent proportions", table II, method 10.
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_newcombe_equals_published_intervals(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    found = newcombe_interval(first[0] / first[1], first[1], second[0] / second[1], second[1])
    assert found == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_bucket_edges_double_and_end_at_the_length() -> None:
    assert bucket_edges(4096) == (0, 512, 1024, 2048, 4096)
    assert bucket_edges(3000) == (0, 512, 1024, 2048, 3000)
    assert bucket_edges(512) == (0, 512)
    assert bucket_edges(2) == (0, 2)
    with pytest.raises(ValueError, match="at least 2"):
        bucket_edges(1)


def test_merging_weighs_by_tokens() -> None:
    one = [Bucket(start=0, end=4, nll=1.0, num_tokens=3), Bucket(start=4, end=8, nll=2.0, num_tokens=4)]
    two = [Bucket(start=0, end=4, nll=3.0, num_tokens=1)]
    merged = merge_buckets([one, two])
    assert merged[0] == Bucket(start=0, end=4, nll=1.5, num_tokens=4)
    assert merged[1] == one[1]
    assert overall_nll(merged) == pytest.approx((4 * 1.5 + 4 * 2.0) / 8)
    assert merged[1].perplexity == pytest.approx(math.e**2)
    assert Bucket(start=0, end=1, nll=800.0, num_tokens=1).perplexity == math.inf
    with pytest.raises(ValueError, match="no buckets"):
        overall_nll([])


def test_perplexity_interval_holds_the_mean_and_needs_two_texts() -> None:
    assert perplexity_interval([2.0]) is None
    low, high = perplexity_interval([2.0, 2.2, 2.4]) or (0, 0)
    half = 1.959964 * 0.2 / math.sqrt(3)
    assert (low, high) == (pytest.approx(math.exp(2.2 - half)), pytest.approx(math.exp(2.2 + half)))
