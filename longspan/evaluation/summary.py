"""Rows to table lines: accuracy with its interval, seconds, bytes, per spec or any other grouping; scores by length."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from longspan.evaluation.metrics.likelihood import Bucket, merge_buckets, overall_nll, perplexity_interval
from longspan.evaluation.metrics.statistics import (
    IntervalKind,
    effective_length,
    mean_interval,
    weighted_averages,
)
from longspan.evaluation.results import Row

__all__ = ["LengthSummary", "Summary", "baseline_spec", "distinct", "skips", "summarise", "summarise_lengths"]

NOLIMA_SHARE = 0.85
"""Share of the score on short texts that still counts as served (Modarressi et al., *NoLiMa*, 2025)."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One group of rows.

    Attributes:
        group: the values of the grouping fields, by name.
        num_samples: question-and-answer samples behind `accuracy`.
        accuracy: mean score, 0..1; None without such samples.
        interval: 95% interval of `accuracy`.
        interval_kind: "wilson" or "t", see `longspan.evaluation.metrics.statistics.mean_interval`.
        prefill_seconds: median seconds from the text to the first token (reading plus the question's prefill), over
            samples with an answer; of reading alone where there are none.
        decode_seconds: median seconds of generation.
        decode_tokens_per_second: all generated tokens over all decode seconds.
        kv_bytes: mean bytes of keys and values held after reading.
        peak_kv_bytes: largest bytes of keys and values held at any time.
        num_texts: texts behind `perplexity`.
        perplexity, perplexity_interval, buckets: over these texts; None and () without.
        num_skipped, reasons: samples that were not run, and why.
    """

    group: dict[str, Any]
    num_samples: int = 0
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    interval_kind: IntervalKind | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    decode_tokens_per_second: float | None = None
    kv_bytes: float | None = None
    peak_kv_bytes: int | None = None
    num_texts: int = 0
    perplexity: float | None = None
    perplexity_interval: tuple[float, float] | None = None
    buckets: tuple[Bucket, ...] = ()
    num_skipped: int = 0
    reasons: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """A flat dictionary for JSON: the grouping fields first."""
        fields = asdict(self)
        return {**fields.pop("group"), **fields}

    @property
    def decode_seconds_per_token(self) -> float | None:
        """Seconds for each generated token."""
        return 1 / self.decode_tokens_per_second if self.decode_tokens_per_second else None


@dataclass(frozen=True, kw_only=True)
class LengthSummary:
    """One spec's scores by length, tasks weighing the same as in RULER.

    Attributes:
        spec: the spec.
        tasks: tasks behind every one of the scores.
        left_out, left_out_tokens: tasks, and lengths, that the spec has scores for but not together with all the others: an
            average over other tasks at one length would say nothing about length.
        scores: mean over `tasks` of each task's mean score, 0..1, by length in tokens.
        effective_tokens: see `longspan.evaluation.metrics.statistics.effective_length`, at RULER's threshold.
        effective_relative_tokens: the same, at 85% of the score at the shortest length, as in NoLiMa.
        rising_average, falling_average: RULER's wAvg(inc) and wAvg(dec).
    """

    spec: str
    tasks: tuple[str, ...]
    left_out: tuple[str, ...]
    left_out_tokens: tuple[int, ...]
    scores: Mapping[int, float]
    effective_tokens: int | None
    effective_relative_tokens: int | None
    rising_average: float
    falling_average: float


def distinct(rows: Iterable[Row], field: str) -> list[Any]:
    """Values of a field, in order of first appearance."""
    return list(dict.fromkeys(row.get(field) for row in rows))


def baseline_spec(rows: Iterable[Row]) -> str | None:
    """The spec that others are held against: dense, or the first where dense was not measured; None without rows."""
    specs = distinct(rows, "spec")
    return "dense" if "dense" in specs else next(iter(specs), None)


def summarise(rows: Sequence[Row], by: Sequence[str] = ("spec",)) -> list[Summary]:
    """Group rows by fields and summarise every group, in order of first appearance.

    Args:
        rows: result rows, see `longspan.evaluation.results`.
        by: grouping fields.

    Returns:
        One `Summary` a group.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(field) for field in by), []).append(row)
    return [_summary(dict(zip(by, key, strict=True)), group) for key, group in groups.items()]


def summarise_lengths(rows: Sequence[Row]) -> list[LengthSummary]:
    """Scores by length of every spec that has any, in order of first appearance; all lengths in tokens.

    A length is the one that was asked for, so specs compare on the same samples.
    """
    scored = [row for row in rows if row["status"] == "done" and row.get("score") is not None]
    return [
        _lengths(spec, [row for row in scored if row["spec"] == spec]) for spec in distinct(scored, "spec")
    ]


def _lengths(spec: str, rows: Sequence[Row]) -> LengthSummary:
    means = {
        (group.group["task"], group.group["length_tokens"]): group.accuracy or 0.0
        for group in summarise(rows, ("task", "length_tokens"))
    }
    whole, lengths = _complete(means)
    scores = {length: fmean(means[task, length] for task in whole) for length in lengths}
    rising, falling = weighted_averages(scores)
    return LengthSummary(
        spec=spec,
        tasks=tuple(whole),
        left_out=tuple(task for task in distinct(rows, "task") if task not in whole),
        left_out_tokens=tuple(sorted({length for _, length in means} - set(lengths))),
        scores=scores,
        effective_tokens=effective_length(scores),
        effective_relative_tokens=effective_length(scores, share_of_shortest=NOLIMA_SHARE),
        rising_average=rising,
        falling_average=falling,
    )


def _complete(cells: Iterable[tuple[str, int]]) -> tuple[list[str], list[int]]:
    """Tasks and lengths that were all measured together, the most cells of them: some lengths are too short for a task, and a
    run may stop in the middle of a length."""
    by_task: dict[str, set[int]] = {}
    for task, length in cells:
        by_task.setdefault(task, set()).add(length)
    every = set.intersection(*by_task.values())
    choices = [
        ([task for task, has in by_task.items() if has >= lengths], sorted(lengths))
        for lengths in [*by_task.values(), every]
    ]
    return max(choices, key=lambda choice: (len(choice[0]) * len(choice[1]), len(choice[0])))


def skips(rows: Iterable[Row]) -> list[tuple[str, str, int, str, int]]:
    """Samples that were not run, as (spec, task, length_tokens, reason, count), in order of first appearance.

    Reasons that differ in their numbers only ("needs 410 tokens", "needs 411 tokens") are one, in the words of the first.
    """
    counts: dict[tuple[str, str, int, str], tuple[str, int]] = {}
    for row in rows:
        if row["status"] == "skipped":
            alike = re.sub(r"\d[\d,.]*", "#", row["reason"])
            key = (row["spec"], row["task"], row["length_tokens"], alike)
            first, count = counts.get(key, (row["reason"], 0))
            counts[key] = (first, count + 1)
    return [(*key[:3], *found) for key, found in counts.items()]


def _summary(group: dict[str, Any], rows: Sequence[Row]) -> Summary:
    done = [row for row in rows if row["status"] == "done"]
    scores = [row["score"] for row in done if row.get("score") is not None]
    likelihoods = [row for row in done if row.get("nll") is not None]
    buckets = merge_buckets([_buckets(row) for row in likelihoods])
    timed = [row for row in done if row.get("score") is not None] or done
    interval = mean_interval(scores) if scores else None
    seconds = [row for row in done if row.get("decode_seconds")]
    generated = sum(row["generated_tokens"] for row in seconds)
    total_decode = sum(row["decode_seconds"] for row in seconds)
    kv_bytes = _known(done, "kv_bytes")
    peaks = _known(done, "peak_kv_bytes")
    whole = Bucket(start=0, end=0, nll=overall_nll(buckets), num_tokens=1) if buckets else None
    return Summary(
        group=group,
        num_samples=len(scores),
        accuracy=fmean(scores) if scores else None,
        interval=(interval.low, interval.high) if interval else None,
        interval_kind=interval.kind if interval else None,
        prefill_seconds=_median([_prefill(row) for row in timed]),
        decode_seconds=_median([row.get("decode_seconds") for row in done]),
        decode_tokens_per_second=generated / total_decode if total_decode else None,
        kv_bytes=fmean(kv_bytes) if kv_bytes else None,
        peak_kv_bytes=max(peaks, default=None),
        num_texts=len(likelihoods),
        perplexity=whole.perplexity if whole else None,
        perplexity_interval=perplexity_interval([row["nll"] for row in likelihoods]),
        buckets=buckets,
        num_skipped=len(rows) - len(done),
        reasons=tuple(distinct((row for row in rows if row["status"] == "skipped"), "reason")),
    )


def _buckets(row: Row) -> list[Bucket]:
    return [
        Bucket(start=start, end=end, nll=nll, num_tokens=count) for start, end, nll, count in row["buckets"]
    ]


def _prefill(row: Row) -> float | None:
    parts = [row[name] for name in ("read_seconds", "prefill_seconds") if row.get(name) is not None]
    return sum(parts) if parts else None


def _known(rows: Iterable[Row], field: str) -> list[Any]:
    return [row[field] for row in rows if row.get(field) is not None]


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
