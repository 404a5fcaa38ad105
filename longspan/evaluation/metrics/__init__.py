"""How answers are scored: the official metric of each benchmark, and intervals of their means.

A metric takes a prediction, the references and the details of a sample, and gives a score from 0 to 1, or that score with
its parts. Grouped by what they measure: `text` and `overlap` (strings, word overlap), `choice`, `code`, `retrieval`,
`ordering` and `citation` are about one answer, `interval`, `likelihood` and `ranking` about many samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["Metric", "grade"]

Metric = Callable[[str, Sequence[str], Mapping[str, Any]], float | Mapping[str, float]]
"""(prediction, references, details) to a score from 0 to 1, or to {"score": ..., further parts}.

`details` holds whatever else the official scorer asks for, such as the classes to choose from; a metric that needs none
ignores it.
"""


def grade(
    metric: Metric, prediction: str, references: Sequence[str], details: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Score of one answer, with its parts.

    Args:
        metric: how to score.
        prediction: what the model wrote.
        references: accepted answers, or the parts of one answer: the metric says which.
        details: what else the metric needs; None is {}.

    Returns:
        "score" from 0 to 1, and the metric's other parts, such as "precision" and "recall".

    Raises:
        ValueError: the metric gave no score, or one that is not a number from 0 to 1.
    """
    found = metric(prediction, references, {} if details is None else details)
    parts = {
        name: float(value)
        for name, value in (found if isinstance(found, Mapping) else {"score": found}).items()
    }
    if "score" not in parts:
        raise ValueError(
            f"a metric gave the parts {sorted(parts)}; it must give a number or a part named 'score'"
        )
    if math.isnan(parts["score"]) or not -1e-9 <= parts["score"] <= 1 + 1e-9:
        raise ValueError(
            f"a metric gave the score {parts['score']}; a score lies in 0..1, so divide percentages by 100"
        )
    parts["score"] = min(1.0, max(0.0, parts["score"]))
    return parts
