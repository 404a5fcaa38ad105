"""Two specs, or two result files, on the same samples: wins, losses, the mean difference, the sign test.

Samples differ in difficulty far more than specs differ in skill, so scores are compared sample by sample. Two rows make a pair
when task, length, depth, seed and the model's fingerprint agree, and nothing that is known of the text differs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from longspan.errors import UserInputError
from longspan.evaluation.metrics.statistics import IntervalKind, paired_difference, sign_test
from longspan.evaluation.results import Row
from longspan.evaluation.summary import distinct

__all__ = [
    "Comparison",
    "Tally",
    "Unpaired",
    "compare_rows",
    "compare_with",
    "p_text",
    "points_text",
    "read_rows",
]

_SAME_TEXT = (("haystack", "another haystack"), ("generator", "another version of the task"))


@dataclass(frozen=True, kw_only=True)
class Tally:
    """The pairs of one task, or of all.

    Attributes:
        task: name; None for all tasks.
        num_pairs: samples that both sides answered.
        wins, losses, ties: pairs in which the first side scores higher, lower, the same.
        mean, other_mean: mean scores of the first and the second side over the pairs, 0..1.
        difference: `mean - other_mean`.
        interval, interval_kind: 95% interval of the difference, see `paired_difference`.
        p_value: of the exact two-sided sign test, ties dropped; not corrected for looking at several tasks.
    """

    task: str | None
    num_pairs: int
    wins: int
    losses: int
    ties: int
    mean: float
    other_mean: float
    difference: float
    interval: tuple[float, float]
    interval_kind: IntervalKind
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Unpaired:
    """Rows that could not be paired. task, why (in words), count."""

    task: str
    reason: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """First side against second side.

    Attributes:
        first, second: names of the sides.
        overall: all pairs, each sample weighing the same; None without any.
        tasks: by task, in order of first appearance.
        unpaired: what was left out.
    """

    first: str
    second: str
    overall: Tally | None
    tasks: tuple[Tally, ...]
    unpaired: tuple[Unpaired, ...]

    @property
    def num_unpaired(self) -> int:
        """All rows that were left out."""
        return sum(left.count for left in self.unpaired)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def compare_rows(mine: Sequence[Row], theirs: Sequence[Row], *, first: str, second: str) -> Comparison:
    """Pair the rows of two sides.

    Args:
        mine: rows of the first side: one spec on one model.
        theirs: rows of the second side.
        first, second: their names.
    """
    unpaired: Counter[tuple[str, str]] = Counter()
    left, right = _by_sample(mine, first, unpaired), _by_sample(theirs, second, unpaired)
    fingerprints = {key[-1] for key in left}, {key[-1] for key in right}
    pairs: dict[str, list[tuple[float, float]]] = {}
    for key in dict.fromkeys((*left, *right)):
        row, other = left.get(key), right.get(key)
        reason = _reason(row, other, first, second)
        if reason is None and row is not None and other is not None:
            pairs.setdefault(row["task"], []).append((row["score"], other["score"]))
            continue
        if (row is None or other is None) and key[-1] not in fingerprints[0] & fingerprints[1]:
            reason = "measured on another model"
        unpaired[key[0], reason or ""] += 1
    every = [pair for found in pairs.values() for pair in found]
    return Comparison(
        first=first,
        second=second,
        overall=_tally(None, every) if every else None,
        tasks=tuple(_tally(task, found) for task, found in pairs.items()),
        unpaired=tuple(Unpaired(task=task, reason=why, count=n) for (task, why), n in unpaired.items()),
    )


def compare_with(rows: Sequence[Row], against: str) -> list[Comparison]:
    """Every other spec of a file against one of them; empty when it is not there.

    Args:
        rows: rows of several specs.
        against: canonical spec of the second side.
    """
    specs = distinct(rows, "spec")
    if against not in specs:
        return []
    sides = {spec: [row for row in rows if row["spec"] == spec] for spec in specs}
    return [
        compare_rows(sides[spec], sides[against], first=spec, second=against)
        for spec in specs
        if spec != against
    ]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a results file, read without changing it: a last line that was cut short is passed over.

    Args:
        path: a results file, or a folder that holds `results.jsonl`.

    Raises:
        UserInputError: there is no such file, it holds no rows, or a line is not a row.
    """
    file = path / "results.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise UserInputError(
            f"there is no results file {str(file)!r}; give a results.jsonl or a folder with one"
        )
    rows: dict[str, dict[str, Any]] = {}
    whole, _, _ = file.read_bytes().rpartition(b"\n")
    for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
        try:
            row = json.loads(line)
            _ = row["status"], row["spec"], row["task"], row["length_tokens"]
            rows[row["key"]] = row
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserInputError(
                f"{file} line {number} is not a result row, allowed are files that `longspan bench` wrote; repair the line"
            ) from error
    if not rows:
        raise UserInputError(f"{file} holds no rows; run `longspan bench` into it first")
    return list(rows.values())


def _by_sample(
    rows: Sequence[Row], side: str, unpaired: Counter[tuple[str, str]]
) -> dict[tuple[Any, ...], Row]:
    """Rows by sample; of a sample measured several times (on two devices, say) the last row with a score counts."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row.get("nll") is not None or row.get("kind") == "likelihood":
            unpaired[row["task"], "has a likelihood, no score"] += 1
            continue
        key = (row["task"], row["length_tokens"], row.get("depth"), row.get("seed"), row.get("fingerprint"))
        before = found.get(key)
        if before is None:
            found[key] = row
            continue
        unpaired[row["task"], f"measured more than once with {side}, the last one counts"] += 1
        if row["status"] == "done" or before["status"] != "done":
            found[key] = row
    return found


def _reason(row: Row | None, other: Row | None, first: str, second: str) -> str | None:
    """Why two rows are no pair; None when they are."""
    for found, name in ((row, first), (other, second)):
        if found is None:
            return f"not measured with {name}"
    assert row is not None and other is not None
    for found, name in ((row, first), (other, second)):
        if found["status"] != "done":
            return f"skipped with {name}: {found['reason']}"
        if found.get("score") is None:
            return f"without a score with {name}"
    for field, words in _SAME_TEXT:
        if field in row and field in other and row[field] != other[field]:
            return words
    return None


def _tally(task: str | None, pairs: Sequence[tuple[float, float]]) -> Tally:
    mine, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    difference, interval = paired_difference(mine, theirs)
    wins = sum(one - other > 1e-9 for one, other in pairs)
    losses = sum(other - one > 1e-9 for one, other in pairs)
    return Tally(
        task=task,
        num_pairs=len(pairs),
        wins=wins,
        losses=losses,
        ties=len(pairs) - wins - losses,
        mean=fmean(mine),
        other_mean=fmean(theirs),
        difference=difference,
        interval=(interval.low, interval.high),
        interval_kind=interval.kind,
        p_value=sign_test(wins, losses),
    )


def points_text(difference: float) -> str:
    """A difference of shares in percentage points, always with its sign: 0.125 as +12.5."""
    shown = f"{difference * 100:+.1f}".removesuffix(".0")
    return "0" if shown in ("+0", "-0") else shown.replace("-", "\u2212")


def p_text(value: float) -> str:
    """A p value in two digits or so: 0.0423 as 0.042, anything under 0.001 as <0.001."""
    return "<0.001" if value < 0.001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"
