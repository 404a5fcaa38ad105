"""Strengths of systems from pairwise verdicts, by the Bradley-Terry model, with intervals from a bootstrap over questions.

    P(i beats j) = p_i / (p_i + p_j),        strength_i = log p_i, with mean 0 over the systems

The likelihood is maximised by minorisation: p_i <- W_i / sum_j n_ij / (p_i + p_j), where W_i are the wins of i and n_ij
the matches of i and j. A tie is half a win for each. A finite maximum exists exactly when no group of systems always
lost to the rest (Ford 1957); a small prior gives one always: each system then also has `prior` wins and `prior` losses
against an imaginary system of strength 0.

Papers: Bradley and Terry, *Rank analysis of incomplete block designs: I. The method of paired comparisons*, 1952;
Hunter, *MM algorithms for generalized Bradley-Terry models*, 2004; Efron, *Bootstrap methods: another look at the
jackknife*, 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Match", "Ranked", "Ranking", "bradley_terry", "rank", "win_probability"]

_TOLERANCE = 1e-9
_MAX_STEPS = 20_000
_MAX_UNFITTED_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Match:
    """One verdict: on which question, who met whom, and the result: 1 when `a` won, 0 when `b` did, 0.5 for a tie."""

    question: str
    a: str
    b: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One system: its strength (natural logarithm, mean 0 over all systems), the interval, and its results."""

    name: str
    strength: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """All systems, strongest first. unfitted: bootstrap samples in which strengths were not finite, left out."""

    systems: tuple[Ranked, ...]
    num_questions: int
    num_bootstraps: int
    unfitted: int


def win_probability(strength: float, other: float) -> float:
    """How often a system of one strength is preferred to another, ties counted half."""
    return float(1.0 / (1.0 + np.exp(other - strength)))


def bradley_terry(matches: Sequence[Match], *, prior: float = 0.0) -> dict[str, float]:
    """Strength of each system, as a natural logarithm, with mean 0.

    Args:
        prior: wins and losses added for each system against an imaginary one of strength 0; 0 adds none, 0.5 is small.

    Raises:
        ValueError: no match, a score other than 0, 0.5 and 1, a system that meets itself, or, without a prior, systems that
            never won (or never lost) against the others, whose strength has no bound.
    """
    names, _, wins = _tables(matches, prior)
    total = wins.sum(axis=0)
    reached = _reached(total[None])[0]
    if not prior and not reached.all():
        # Who beats the fewest, directly or through others, is a group that never won against the rest.
        lowest = reached[int(np.argmin(reached.sum(axis=1)))]
        group = ", ".join(name for name, inside in zip(names, lowest, strict=True) if inside)
        raise ValueError(
            f"{group} never won or tied against the other systems, so strengths have no bound; "
            "judge more questions, or give prior=0.5."
        )
    strengths, settled = _fit(total[None], prior)
    if not settled[0]:
        raise ValueError(
            f"strengths did not settle in {_MAX_STEPS:,} steps, the results are too one-sided; "
            "judge more questions, or give prior=0.5."
        )
    return dict(zip(names, strengths[0].tolist(), strict=True))


def rank(
    matches: Sequence[Match],
    *,
    prior: float = 0.0,
    num_bootstraps: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Ranking:
    """Strengths with percentile intervals from resampled questions; all matches of a question stay together.

    Args:
        prior: see `bradley_terry`.
        num_bootstraps: resamples, 1 or more.
        confidence: coverage of each interval, in (0, 1).
        seed: of the resampling; the same seed gives the same intervals.

    Raises:
        ValueError: as `bradley_terry`; settings out of range; or more than 5% of the resamples cannot be fitted.
    """
    if num_bootstraps < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(
            f"got num_bootstraps={num_bootstraps} and confidence={confidence}; allowed are 1 or more, and "
            "a number between 0 and 1 such as 0.95."
        )
    strengths = bradley_terry(matches, prior=prior)
    names, questions, wins = _tables(matches, prior)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(questions), np.full(len(questions), 1 / len(questions)), size=num_bootstraps)
    resampled = np.einsum("bq,qij->bij", drawn.astype(np.float64), wins)
    if not prior:
        resampled = resampled[_reached(resampled).all(axis=(1, 2))]
    fitted, settled = (
        _fit(resampled, prior) if len(resampled) else (np.zeros((0, len(names))), np.zeros(0, bool))
    )
    fitted = fitted[settled]
    unfitted = num_bootstraps - len(fitted)
    if unfitted > _MAX_UNFITTED_SHARE * num_bootstraps:
        raise ValueError(
            f"{unfitted} of {num_bootstraps} resamples have a system that never won or never lost, so the "
            "intervals have no bound; judge more questions, or give prior=0.5."
        )
    tail = (1 - confidence) / 2
    low, high = np.quantile(fitted, [tail, 1 - tail], axis=0)
    systems = [
        Ranked(
            name=name,
            strength=strengths[name],
            low=float(low[i]),
            high=float(high[i]),
            **_results(name, matches),
        )
        for i, name in enumerate(names)
    ]
    return Ranking(
        systems=tuple(sorted(systems, key=lambda system: (-system.strength, system.name))),
        num_questions=len(questions),
        num_bootstraps=num_bootstraps,
        unfitted=unfitted,
    )


def _results(name: str, matches: Sequence[Match]) -> dict[str, int]:
    own = [
        match.score if match.a == name else 1 - match.score for match in matches if name in (match.a, match.b)
    ]
    return {"wins": own.count(1.0), "ties": own.count(0.5), "losses": own.count(0.0)}


def _tables(matches: Sequence[Match], prior: float) -> tuple[list[str], list[str], np.ndarray]:
    """Names, questions, and wins `[question, winner, loser]` with half a win each way for a tie."""
    if prior < 0 or not np.isfinite(prior):
        raise ValueError(f"got prior={prior}; allowed is 0 (none) or more, such as 0.5.")
    if not matches:
        raise ValueError("there is no match to rank by; give at least one legible verdict.")
    wrong = next((m for m in matches if m.score not in (0.0, 0.5, 1.0) or m.a == m.b), None)
    if wrong is not None:
        raise ValueError(
            f"got the match {wrong}; allowed are two different systems and the scores 1 (a won), 0.5 (tie) "
            "and 0 (b won)."
        )
    names = sorted({name for match in matches for name in (match.a, match.b)})
    questions = list(dict.fromkeys(match.question for match in matches))
    place = {name: index for index, name in enumerate(names)}
    row = {question: index for index, question in enumerate(questions)}
    wins = np.zeros((len(questions), len(names), len(names)))
    for match in matches:
        wins[row[match.question], place[match.a], place[match.b]] += match.score
        wins[row[match.question], place[match.b], place[match.a]] += 1 - match.score
    return names, questions, wins


def _reached(wins: np.ndarray) -> np.ndarray:
    """Whom each system beats, directly or through others, and itself: bool `[R, N, N]` from wins `[R, N, N]`."""
    size = wins.shape[-1]
    reached = (wins > 0) | np.eye(size, dtype=bool)
    for _ in range(max(1, (size - 1).bit_length())):
        reached = (reached.astype(np.float32) @ reached.astype(np.float32)) > 0
    return reached


def _fit(wins: np.ndarray, prior: float) -> tuple[np.ndarray, np.ndarray]:
    """Log strengths `[R, N]`, mean 0, of wins `[R, N, N]`, and which of the R settled."""
    met = wins + wins.transpose(0, 2, 1)
    won = wins.sum(axis=2) + prior
    log_p = np.zeros(won.shape)
    moving = np.ones(len(wins), dtype=bool)
    for _ in range(_MAX_STEPS):
        p = np.exp(log_p[moving])
        expected = (met[moving] / (p[:, :, None] + p[:, None, :])).sum(axis=2) + 2 * prior / (p + 1)
        new = np.log(won[moving] / expected)
        if not prior:
            new -= new.mean(axis=1, keepdims=True)
        change = np.abs(new - log_p[moving]).max(axis=1)
        log_p[moving] = new
        moving[np.flatnonzero(moving)[change < _TOLERANCE]] = False
        if not moving.any():
            break
    return log_p - log_p.mean(axis=1, keepdims=True), ~moving
