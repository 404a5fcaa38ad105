"""Statistics against tables, exact sums, and RULER's own published averages."""

from __future__ import annotations

from itertools import product
from statistics import fmean

import pytest

from longspan.evaluation.metrics.interval import wilson_interval
from longspan.evaluation.metrics.statistics import (
    effective_length,
    mean_interval,
    paired_difference,
    sign_test,
    student_quantile,
    weighted_averages,
)

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)

# RULER, table 3: scores from 4K to 128K, effective length, wAvg(inc), wAvg(dec).
PUBLISHED = [
    ((96.7, 95.8, 96.0, 95.9, 95.9, 94.4), 131072, 95.5, 96.1),  # Gemini-1.5-pro
    ((96.6, 96.3, 95.2, 93.2, 87.0, 81.2), 65536, 89.0, 94.1),  # GPT-4-1106-preview
    ((95.6, 95.2, 94.2, 92.0, 84.3, 63.1), 32768, 82.7, 92.1),  # Command-R-plus
]


@pytest.mark.parametrize(("scores", "effective", "rising", "falling"), PUBLISHED)
def test_effective_length_and_averages_equal_those_of_ruler(
    scores: tuple[float, ...], effective: int, rising: float, falling: float
) -> None:
    by_length = {length: score / 100 for length, score in zip(LENGTHS, scores, strict=True)}
    assert effective_length(by_length) == effective
    found = weighted_averages(by_length)
    assert [round(value * 100, 1) for value in found] == [
        pytest.approx(rising, abs=0.11),
        pytest.approx(falling, abs=0.11),
    ]


def test_effective_length_needs_all_shorter_lengths_to_pass() -> None:
    assert effective_length({1: 0.9, 2: 0.5, 4: 0.9}) == 1
    assert effective_length({4: 0.9, 1: 0.856, 2: 0.86}) == 4
    assert effective_length({1: 0.85, 2: 1.0}) is None
    assert effective_length({}) is None
    assert effective_length({1: 0.9, 2: 0.7}, threshold=0.7) == 2
    # 0.34 is 85% of 0.4.
    assert effective_length({1: 0.4, 2: 0.34, 4: 0.33}, share_of_shortest=0.85) == 2
    with pytest.raises(ValueError, match="at least one length"):
        weighted_averages({})


@pytest.mark.parametrize(
    ("freedom", "value"),
    [
        # 97.5% points of Student's t, from published tables.
        (1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (5, 2.57058), (10, 2.22814), (30, 2.04227),
        (60, 2.00030), (100, 1.98397), (101, 1.98373), (120, 1.97993), (1000, 1.96234),
    ],
)  # fmt: skip
def test_student_quantiles_equal_tables(freedom: int, value: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(value, abs=6e-5)


def test_mean_interval_is_wilson_for_yes_and_no_and_t_for_shares() -> None:
    found = mean_interval([1.0, 0.0, 1, True])
    assert (found.kind, (found.low, found.high)) == ("wilson", wilson_interval(0.75, 4))
    found = mean_interval([0.2, 0.4, 0.6])
    half = 4.30265 * 0.2 / 3**0.5
    assert (found.kind, found.low, found.high) == ("t", 0.0, pytest.approx(0.4 + half, abs=1e-5))
    assert mean_interval([0.5] * 9).kind == "wilson"
    assert (mean_interval([0.5]).low, mean_interval([0.5]).high) == wilson_interval(0.5, 1)
    with pytest.raises(ValueError, match="no scores"):
        mean_interval([])


def test_t_covers_the_mean_of_shares_about_as_often_as_it_says() -> None:
    """Every way to draw 6 samples from three scores, exactly."""
    values = (0.25, 0.5, 0.75)
    draws = list(product(values, repeat=6))
    covered = sum(found.low <= 0.5 <= found.high for found in map(mean_interval, draws)) / len(draws)
    assert 0.93 < covered < 0.99


def test_sign_test_counts_coin_throws() -> None:
    """Against a count over all throws of up to nine coins."""
    for trials in range(10):
        for wins in range(trials + 1):
            away = abs(2 * wins - trials)
            as_far = sum(abs(2 * sum(throw) - trials) >= away for throw in product((0, 1), repeat=trials))
            assert sign_test(wins, trials - wins) == pytest.approx(as_far / 2**trials)
    # Conover, "Practical Nonparametric Statistics": 8 of 10 gives 0.109.
    assert sign_test(8, 2) == pytest.approx(0.109375)
    assert sign_test(3000, 2000) < 1e-40


@pytest.mark.parametrize("counts", [(5, 4, 1), (20, 4, 0)])
def test_paired_difference_gives_the_quantiles_of_the_exact_bootstrap(counts: tuple[int, int, int]) -> None:
    wins, ties, losses = counts
    mine, theirs = [1.0] * (wins + ties) + [0.0] * losses, [0.0] * wins + [1.0] * (ties + losses)
    mean, interval = paired_difference(mine, theirs)
    total = sum(counts)
    assert mean == pytest.approx((wins - losses) / total)
    chances = {0: 1.0}
    for _ in mine:
        step: dict[int, float] = {}
        for reached, chance in chances.items():
            for move, count in zip((1, 0, -1), counts, strict=True):
                step[reached + move] = step.get(reached + move, 0.0) + chance * count / total
        chances = step
    exact, below = [], 0.0
    for reached in sorted(chances):
        before, below = below, below + chances[reached]
        exact += [reached / total for edge in (0.025, 0.975) if before < edge <= below]
    assert (interval.kind, [interval.low, interval.high]) == ("bootstrap", pytest.approx(exact))
    assert paired_difference(mine, theirs) == (mean, interval)


def test_paired_difference_of_shares() -> None:
    many = [step / 997 for step in range(997)]
    difference, wide = paired_difference(many, many[::-1])
    assert difference == pytest.approx(0.0, abs=1e-12)
    # A difference uniform on [-1, 1] has a standard deviation of 3**-0.5.
    assert wide.high == pytest.approx(1.96 * 3**-0.5 / 997**0.5, rel=0.06)


def test_equal_differences_still_leave_room_for_doubt() -> None:
    share = wilson_interval(0.0, 20)[1]
    mean, interval = paired_difference([1.0] * 20, [1.0] * 20)
    assert (mean, interval.kind, interval.low, interval.high) == (0.0, "rule", -share, share)
    mean, interval = paired_difference([1.0] * 20, [0.0] * 20)
    assert (mean, interval.low, interval.high) == (1.0, pytest.approx(1 - 2 * share), 1.0)
    for one, other in (([], []), ([1.0], [1.0, 0.0])):
        with pytest.raises(ValueError, match="two lists of one length"):
            paired_difference(one, other)


def test_every_interval_holds_its_mean_and_stays_in_bounds() -> None:
    for scores in ([0.1, 0.9], [0.99, 1.0, 1.0], [0.0, 0.0, 0.01], [0.3] * 4 + [0.8]):
        found = mean_interval(scores)
        assert 0 <= found.low <= fmean(scores) <= found.high <= 1
