"""Scores with a part for the group that a question belongs to, so that means over a file give a benchmark's columns.

Papers: Bai et al., *LongBench*, 2023 (LongBench-E: by length), and *LongBench v2*, 2024 (by difficulty and length).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics import Metric, grade
from longspan.evaluation.metrics.choice import classification_fixed, longbench_v2_choice, longbench_v2_letter
from longspan.evaluation.metrics.text import first_line

__all__ = [
    "by_length",
    "classification_first_line_fixed",
    "longbench_v2",
    "longbench_v2_compensated",
]

SHORT_WORDS, LONG_WORDS = 4000, 8000
CHANCE = 0.25


def by_length(metric: Metric) -> Metric:
    """The metric with a part "0-4k", "4-8k" or "8k+" by the words of the text: LongBench-E's three columns.

    Args:
        metric: of the task; its name is kept. Where `details` has no "length", there is no such part.
    """

    @functools.wraps(metric)
    def scored(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
        found = grade(metric, prediction, references, details)
        length = details.get("length")
        if length is None:
            return found
        words = int(length)
        bucket = "0-4k" if words < SHORT_WORDS else "4-8k" if words < LONG_WORDS else "8k+"
        return {**found, bucket: found["score"]}

    return scored


def classification_first_line_fixed(
    prediction: str, references: Sequence[str], details: Mapping[str, Any]
) -> float:
    """`classification_fixed` of the answer's first line, for LongBench's trec and lsht."""
    return classification_fixed(first_line(prediction), references, details)


def longbench_v2(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """`longbench_v2_choice` with parts for the question's difficulty (easy, hard) and length (short, medium, long).

    Official scorer: LongBench v2 `result.py`, whose columns the means of the parts are.

    Args:
        details: "difficulty" and "length"; absent ones make no part.
    """
    return _with_parts(longbench_v2_choice(prediction, references, details), details)


def longbench_v2_compensated(
    prediction: str, references: Sequence[str], details: Mapping[str, Any]
) -> dict[str, float]:
    """`longbench_v2` with a quarter for an answer without a letter: `compensated` in LongBench v2 `result.py`."""
    if longbench_v2_letter(prediction) is None:
        return _with_parts(CHANCE, details)
    return longbench_v2(prediction, references, details)


def _with_parts(score: float, details: Mapping[str, Any]) -> dict[str, float]:
    groups = [str(details[name]) for name in ("difficulty", "length") if details.get(name)]
    return {"score": score, **dict.fromkeys(groups, score)}
