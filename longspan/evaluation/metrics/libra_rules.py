"""LIBRA's scores: the best of the right answers, less a share for each wrong one that is named.

Paper: Churin et al., *Long Input Benchmark for Russian Analysis*, 2024 (LIBRA).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics import Metric
from longspan.evaluation.metrics.overlap_rouge import libra_f1
from longspan.evaluation.metrics.retrieval import count
from longspan.evaluation.metrics.text import substring

__all__ = ["libra_count", "libra_em", "libra_qa"]


def libra_em(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if a right answer stands in the reply letter for letter, less the wrong ones named.

    Official scorer: LIBRA `em`. Its faults: case counts, and a short answer counts inside a longer word.

    Args:
        details: "negative_outputs", answers that are wrong: each that stands in the reply costs an equal share, all of them
            the whole score.
    """
    return _less_wrong(substring, prediction, references, details)


def libra_count(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Part of the reply's numbers that are right, less the wrong answers named. Official: LIBRA `count_score`.

    Args:
        details: as in `libra_em`.
    """
    return _less_wrong(count, prediction, references, details)


def libra_qa(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """Token F1, less the wrong answers named. Official: LIBRA `f1`.

    Args:
        details: as in `libra_em`.
    """
    return _less_wrong(libra_f1, prediction, references, details)


def _less_wrong(
    metric: Metric, prediction: str, references: Sequence[str], details: Mapping[str, Any]
) -> float:
    score = metric(prediction, references, details)
    assert isinstance(score, float)  # none of the three gives parts
    wrong = details.get("negative_outputs") or ()
    named = sum(str(answer) in prediction for answer in wrong)
    return max(0.0, score - named / len(wrong)) if wrong else score
