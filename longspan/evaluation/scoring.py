"""Predictions made elsewhere, scored by a task's own metric."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from longspan.errors import UserInputError
from longspan.evaluation.metrics import Metric, grade
from longspan.evaluation.task import metric_name

__all__ = ["Scored", "score_predictions"]

_PREDICTION = ("pred", "prediction")
_REFERENCES = ("answers", "references")


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Mean score of a file of predictions, 0 to 100, and of the metric's parts."""

    score: float
    num_samples: int
    parts: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"score": self.score, "num_samples": self.num_samples, "parts": dict(self.parts)}


def score_predictions(metric: Metric, path: Path) -> Scored:
    """Score a JSONL file: one object a line with `pred` and `answers` (a list, or one string).

    All other fields (`all_classes`, `length`, what `details` holds) are handed to the metric.

    Args:
        metric: how to score, such as a task's own.
        path: the file.

    Raises:
        UserInputError: the file is empty or a line is malformed; names the line.
    """
    graded = []
    for number, row in _rows(path):
        prediction = _field(row, _PREDICTION, number, path)
        references = _field(row, _REFERENCES, number, path)
        if not isinstance(prediction, str):
            raise UserInputError(
                f"{path} line {number}: `pred` is {type(prediction).__name__}; give a string"
            )
        references = [references] if not isinstance(references, list) else references
        if not references:
            raise UserInputError(f"{path} line {number}: `answers` is empty; give at least one reference")
        rest = {
            name: value for name, value in row.items() if name not in (*_PREDICTION, *_REFERENCES, "details")
        }
        details = rest | (row.get("details") or {})
        try:
            graded.append(grade(metric, prediction, [str(item) for item in references], details))
        except (KeyError, TypeError, ValueError) as error:
            raise UserInputError(
                f"{path} line {number} cannot be scored by {metric_name(metric)} ({type(error).__name__}: {error}); "
                "check its fields against the suite's published format"
            ) from error
    if not graded:
        raise UserInputError(
            f"{path} holds no prediction; give one JSON object a line with `pred` and `answers`"
        )
    names = dict.fromkeys(name for scores in graded for name in scores)
    means = {name: 100 * fmean(s[name] for s in graded if name in s) for name in names}
    return Scored(score=means.pop("score"), num_samples=len(graded), parts=means)


def _field(row: Mapping[str, Any], names: tuple[str, str], number: int, path: Path) -> Any:
    for name in names:
        if name in row:
            return row[name]
    raise UserInputError(
        f"{path} line {number} has no `{names[0]}`; give an object with `pred` and `answers`"
    )


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    # Split at line feeds only: a prediction may hold other line separators, such as U+2028.
    with open(path, encoding="utf-8", newline="\n") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserInputError(f"{path} line {number} is not an object; give `pred` and `answers`")
                yield number, row
        except UnicodeDecodeError as error:
            raise UserInputError(f"{path} is not UTF-8 text (byte {error.start}); convert it") from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserInputError(f"{path} line {number} is not JSON; give one object a line") from error
