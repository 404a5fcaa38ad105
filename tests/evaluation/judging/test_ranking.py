"""Bradley-Terry against closed forms, its own likelihood equations, and known strengths; bootstrap and bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest

from longspan.evaluation.metrics.ranking import Match, bradley_terry, rank, win_probability


def matches(*results: tuple[str, str, float]) -> list[Match]:
    return [Match(question=str(i), a=a, b=b, score=score) for i, (a, b, score) in enumerate(results)]


def simulated(strengths: dict[str, float], questions: int, rng: np.random.Generator) -> list[Match]:
    """Every pair once on each question, ties never."""
    names = list(strengths)
    return [
        Match(
            question=str(q), a=a, b=b, score=float(rng.random() < win_probability(strengths[a], strengths[b]))
        )
        for q in range(questions)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]


def test_two_systems_have_a_closed_form() -> None:
    # Three wins to one: p_a / p_b = 3.
    found = bradley_terry(matches(("a", "b", 1), ("a", "b", 1), ("b", "a", 0), ("a", "b", 0)))
    assert found == {"a": pytest.approx(math.log(3) / 2), "b": pytest.approx(-math.log(3) / 2)}
    # Two wins, two ties and one loss are three wins to two.
    tied = bradley_terry(
        matches(("a", "b", 1), ("b", "a", 0), ("a", "b", 0.5), ("b", "a", 0.5), ("b", "a", 1))
    )
    assert tied["a"] - tied["b"] == pytest.approx(math.log(3 / 2))
    assert win_probability(tied["a"], tied["b"]) == pytest.approx(0.6)


def test_a_chain_has_a_closed_form() -> None:
    # On a tree the likelihood splits: each edge has its own odds, 4:1 and 2:1.
    found = bradley_terry(matches(*[("a", "b", 1)] * 4, ("a", "b", 0), *[("b", "c", 1)] * 2, ("b", "c", 0)))
    assert found["a"] - found["b"] == pytest.approx(math.log(4))
    assert found["b"] - found["c"] == pytest.approx(math.log(2))
    assert sum(found.values()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("prior", [0.0, 0.5, 3.0])
def test_expected_wins_equal_wins(prior: float) -> None:
    """At the maximum every system wins as often as the model expects, matches against the imaginary system included."""
    played = simulated({"a": 1.0, "b": 0.2, "c": -0.4, "d": -0.8}, 25, np.random.default_rng(3))
    found = bradley_terry(played, prior=prior)
    # Strengths have mean 0, so the imaginary system stands at some shift that is common to all equations.
    shifts = []
    for name, strength in found.items():
        expected = won = 0.0
        for match in played:
            if name in (match.a, match.b):
                other = match.b if match.a == name else match.a
                expected += win_probability(strength, found[other])
                won += match.score if match.a == name else 1 - match.score
        if not prior:
            assert expected == pytest.approx(won, abs=1e-5)
            continue
        # won + prior = expected + 2 * prior * P(beats the imaginary system)
        share = (won + prior - expected) / (2 * prior)
        shifts.append(strength - math.log(share / (1 - share)))
    if prior:
        assert len(shifts) == 4 and max(shifts) - min(shifts) < 1e-5


def test_a_prior_draws_together_and_makes_one_sided_results_finite() -> None:
    one_sided = matches(("a", "b", 1), ("a", "b", 1))
    with pytest.raises(ValueError, match=r"^b never won or tied against the other systems"):
        bradley_terry(one_sided)
    found = bradley_terry(one_sided, prior=0.5)
    assert 0 < found["a"] - found["b"] < 5
    assert bradley_terry(one_sided, prior=5.0)["a"] < found["a"]


def test_groups_that_never_meet_or_never_win_are_named() -> None:
    apart = matches(("a", "b", 1), ("a", "b", 0), ("c", "d", 1), ("c", "d", 0))
    with pytest.raises(ValueError, match="a, b never won or tied"):
        bradley_terry(apart)
    below = matches(("a", "b", 1), ("a", "b", 0), ("c", "d", 0.5), ("a", "c", 1), ("b", "d", 1))
    with pytest.raises(ValueError, match="c, d never won or tied"):
        bradley_terry(below)
    assert bradley_terry([*below, Match(question="z", a="d", b="b", score=0.5)])["a"] > 0


def test_true_strengths_lie_in_their_intervals_about_as_often_as_promised() -> None:
    truth = {"a": 0.9, "b": 0.3, "c": -0.3, "d": -0.9}
    rng = np.random.default_rng(11)
    inside = total = 0
    for _ in range(40):
        found = rank(simulated(truth, 80, rng), num_bootstraps=200)
        inside += sum(system.low <= truth[system.name] <= system.high for system in found.systems)
        total += len(found.systems)
    # 160 intervals of 95%, in fours that lean on each other: 88% is over three standard errors below.
    assert 0.88 < inside / total < 1.0


def test_a_ranking_is_sorted_counted_and_repeatable() -> None:
    played = simulated({"a": 1.5, "b": 0.0, "c": -1.5}, 60, np.random.default_rng(0))
    played.append(Match(question="tie", a="a", b="b", score=0.5))
    first = rank(played, seed=4, num_bootstraps=300)
    assert first == rank(played, seed=4, num_bootstraps=300)
    assert first != rank(played, seed=5, num_bootstraps=300)
    assert [system.name for system in first.systems] == ["a", "b", "c"]
    assert first.num_questions == 61 and first.unfitted <= 3
    assert {system.name: system.strength for system in first.systems} == bradley_terry(played)
    for system in first.systems:
        assert system.low < system.strength < system.high
        assert system.wins + system.ties + system.losses == (120 if system.name == "c" else 121)
        assert system.ties == (0 if system.name == "c" else 1)
    narrow = rank(played, seed=4, num_bootstraps=300, confidence=0.5)
    assert narrow.systems[0].high - narrow.systems[0].low < first.systems[0].high - first.systems[0].low


def test_matches_of_one_question_stay_together() -> None:
    """A question that counts ten times is one draw of the bootstrap: the interval is that of the questions."""
    rng = np.random.default_rng(2)
    single = [Match(question=str(q), a="a", b="b", score=float(rng.random() < 0.6)) for q in range(60)]
    tenfold = [match for match in single for _ in range(10)]
    apart = [Match(question=f"{i}", a="a", b="b", score=match.score) for i, match in enumerate(tenfold)]
    width = [s[0].high - s[0].low for s in (rank(m).systems for m in (single, tenfold, apart))]
    assert width[1] == pytest.approx(width[0], rel=1e-6)
    assert width[2] == pytest.approx(width[0] / math.sqrt(10), rel=0.15)


def test_intervals_without_bound_are_refused() -> None:
    few = matches(("a", "b", 1), ("a", "b", 1), ("a", "b", 0))
    with pytest.raises(ValueError, match=r"of 1000 resamples .* give prior=0.5"):
        rank(few)
    assert rank(few, prior=0.5).unfitted == 0


@pytest.mark.parametrize(
    ("played", "settings", "message"),
    [
        ([], {}, "no match"),
        (matches(("a", "a", 1)), {}, "two different systems"),
        (matches(("a", "b", 0.7)), {}, "scores 1"),
        (matches(("a", "b", 0.5)), {"prior": -1.0}, "prior=-1.0"),
        (matches(("a", "b", 0.5)), {"prior": math.nan}, "prior=nan"),
        (matches(("a", "b", 0.5)), {"num_bootstraps": 0}, "num_bootstraps=0"),
        (matches(("a", "b", 0.5)), {"confidence": 1.0}, "confidence=1.0"),
    ],
)
def test_bad_input(played: list[Match], settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank(played, **settings)
