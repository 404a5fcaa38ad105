"""Rows to table lines: accuracy with its interval, seconds, bytes, per spec or any other grouping."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from longspan.evaluation.metrics.interval import wilson_interval
from longspan.evaluation.metrics.likelihood import Bucket, merge_buckets, overall_nll, perplexity_interval
from longspan.evaluation.results import Row

__all__ = ["Summary", "distinct", "skips", "summarise"]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One group of rows.

    Attributes:
        group: the values of the grouping fields, by name.
        num_samples: question-and-answer samples behind `accuracy`.
        accuracy: mean score, 0..1; None without such samples.
        interval: Wilson's 95% interval of `accuracy`.
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


def distinct(rows: Iterable[Row], field: str) -> list[Any]:
    """Values of a field, in order of first appearance."""
    return list(dict.fromkeys(row.get(field) for row in rows))


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


def skips(rows: Iterable[Row]) -> list[tuple[str, str, int, str, int]]:
    """Samples that were not run, as (spec, task, length_tokens, reason, count), in order of first appearance."""
    counts: dict[tuple[str, str, int, str], int] = {}
    for row in rows:
        if row["status"] == "skipped":
            key = (row["spec"], row["task"], row["length_tokens"], row["reason"])
            counts[key] = counts.get(key, 0) + 1
    return [(*key, count) for key, count in counts.items()]


def _summary(group: dict[str, Any], rows: Sequence[Row]) -> Summary:
    done = [row for row in rows if row["status"] == "done"]
    scores = [row["score"] for row in done if row.get("score") is not None]
    likelihoods = [row for row in done if row.get("nll") is not None]
    buckets = merge_buckets([_buckets(row) for row in likelihoods])
    timed = [row for row in done if row.get("score") is not None] or done
    accuracy = fmean(scores) if scores else None
    seconds = [row for row in done if row.get("decode_seconds")]
    generated = sum(row["generated_tokens"] for row in seconds)
    total_decode = sum(row["decode_seconds"] for row in seconds)
    kv_bytes = _known(done, "kv_bytes")
    peaks = _known(done, "peak_kv_bytes")
    whole = Bucket(start=0, end=0, nll=overall_nll(buckets), num_tokens=1) if buckets else None
    return Summary(
        group=group,
        num_samples=len(scores),
        accuracy=accuracy,
        interval=wilson_interval(accuracy, len(scores)) if accuracy is not None else None,
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
