"""Confidence intervals for accuracies.

A score of one sample lies in [0, 1] (a task with several references gives fractions). Among all variables in [0, 1]
with a given mean, a yes/no variable has the largest variance, so the binomial intervals below are conservative for
fractions.

Papers: Wilson, *Probable inference, the law of succession, and statistical inference*, 1927 (score interval);
Newcombe, *Interval estimation for the difference between independent proportions*, 1998 (method 10).
"""

from __future__ import annotations

import math
from statistics import NormalDist

__all__ = ["newcombe_interval", "wilson_interval"]


def wilson_interval(mean: float, num_samples: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a mean of `num_samples` scores in [0, 1].

    It never leaves [0, 1] and stays honest at 0% and 100%, where the textbook interval has no width.

    Args:
        mean: mean score, in [0, 1].
        num_samples: how many scores the mean was taken over; 0 knows nothing and gives (0, 1).
        confidence: coverage, in (0, 1).

    Returns:
        Lower and upper bound, in [0, 1].
    """
    if not 0.0 <= mean <= 1.0:
        raise ValueError(f"mean is {mean}, a mean of scores lies in 0..1; divide percentages by 100.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}, allowed is a number between 0 and 1 such as 0.95.")
    if num_samples < 0:
        raise ValueError(f"num_samples is {num_samples}, allowed is 0 or more.")
    if num_samples == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    weight = z * z / num_samples
    centre = (mean + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(mean * (1 - mean) / num_samples + weight / (4 * num_samples))
    low = 0.0 if mean == 0.0 else max(0.0, centre - half)
    high = 1.0 if mean == 1.0 else min(1.0, centre + half)
    return low, high


def newcombe_interval(
    mean: float, num_samples: int, baseline_mean: float, baseline_num_samples: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Newcombe's interval of `mean - baseline_mean`, from the Wilson intervals of the two.

    It takes the two as independent. When both answered the same samples they are correlated, mostly positively, and the
    interval is then wider than needed: conservative.

    Args:
        mean: mean score of the method, in [0, 1].
        num_samples: scores behind `mean`.
        baseline_mean: mean score of the baseline, in [0, 1].
        baseline_num_samples: scores behind `baseline_mean`.
        confidence: coverage, in (0, 1).

    Returns:
        Lower and upper bound of the difference, in [-1, 1].
    """
    low, high = wilson_interval(mean, num_samples, confidence)
    baseline_low, baseline_high = wilson_interval(baseline_mean, baseline_num_samples, confidence)
    difference = mean - baseline_mean
    below = math.hypot(mean - low, baseline_high - baseline_mean)
    above = math.hypot(high - mean, baseline_mean - baseline_low)
    return difference - below, difference + above
